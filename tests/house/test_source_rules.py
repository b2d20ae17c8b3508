"""Rules about the source that no linter of ours knows: sizes, dangerous calls, who reads the environment."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "src").rglob("*.py")) + sorted((ROOT / "examples").glob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"),
    *("torch.load", "torch.save", "pandas.read_pickle", "pd.read_pickle"),
}
FORBIDDEN_ARGUMENTS = {"allow_pickle": True, "shell": True, "trust_remote_code": True}


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(tree: ast.AST) -> Iterator[str]:
    """What can run code that a model, a dataset or a file controls (FACTS: eval and pickle, CVE-2026-6878), as `line: what`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.Call):
            if _dotted(node.func) in FORBIDDEN_CALLS:
                yield f"{node.lineno}: {_dotted(node.func)}()"
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and FORBIDDEN_ARGUMENTS.get(keyword.arg or "") is keyword.value.value is True:
                    yield f"{node.lineno}: {keyword.arg}=True"


def swallowing(tree: ast.AST) -> Iterator[str]:
    """Handlers that catch what they do not name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {"bare except" if kind is None else _dotted(kind) for kind in caught}
            yield from (f"{node.lineno}: {name}" for name in names & {"bare except", "Exception", "BaseException"})


def environment_reads(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _dotted(node) in ("os.environ", "os.getenv", "os.environb"):
            yield f"{node.lineno}: {_dotted(node)}"


def _found(rule, files: list[Path]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{hit}" for path in files for hit in rule(ast.parse(path.read_text(encoding="utf-8")))]


def test_nothing_runs_what_a_file_or_a_model_says():
    assert _found(dangers, SOURCE) == []


def test_no_handler_catches_what_it_does_not_name():
    """A user's own reward function may raise anything; it is the one place where we do not know the names."""
    users_code = ROOT / "src/longtake/rewards/functions.py"
    assert _found(swallowing, [path for path in SOURCE if path != users_code]) == []


def test_only_config_env_reads_the_environment():
    others = [path for path in SOURCE if path.relative_to(ROOT) != Path("src/longtake/config/env.py") and "src" in path.parts]
    assert _found(environment_reads, others) == []


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("eval(answer)", dangers),
        ("import pickle", dangers),
        ("from dill import loads", dangers),
        ("import torch\ntorch.load(path)", dangers),
        ("np.load(path, allow_pickle=True)", dangers),
        ("subprocess.run(line, shell=True)", dangers),
        ("try:\n    f()\nexcept:\n    pass", swallowing),
        ("try:\n    f()\nexcept (OSError, Exception):\n    pass", swallowing),
        ("import os\nos.environ['X']", environment_reads),
    ],
)
def test_the_rules_see_what_they_are_for(code: str, rule):
    assert list(rule(ast.parse(code)))


def test_the_rules_let_the_harmless_pass():
    code = "model.eval()\nre.compile(x)\nnp.load(p, allow_pickle=False)\nretrieval(x)\nsafetensors.torch.load_file(p)"
    assert list(dangers(ast.parse(code))) == []


def _function_sizes(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or 0) - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_functions_are_short():
    sizes = [entry for path in SOURCE for entry in _function_sizes(path)]
    assert [entry for entry in sizes if entry[0] > 100] == []
    lengths = sorted(size for size, _ in sizes)
    assert lengths[int(0.95 * len(lengths))] <= 60
    assert median(lengths) <= 12


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE}
    assert {name: length for name, length in lengths.items() if length > 800} == {}
    assert sorted(lengths.values())[int(0.95 * len(lengths))] <= 500


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert [str(path.relative_to(ROOT)) for path in SOURCE if marks.search(path.read_text(encoding="utf-8"))] == []


def test_modules_and_longer_public_functions_and_classes_say_what_they_are():
    silent = []
    for path in (path for path in SOURCE if "testing" not in path.parts):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        silent += [str(path.relative_to(ROOT))] if path.name != "__init__.py" and ast.get_docstring(tree) is None else []
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None and (node.end_lineno or 0) - node.lineno > 20:
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert silent == []
