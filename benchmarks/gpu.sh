#!/usr/bin/env bash
# What is worth measuring on one CUDA GPU, in one command of at most 9 minutes: benchmarks/gpu.sh [--toy] [--budget-s 520].
# Needs torch, transformers, numpy and safetensors; longtake itself need not be installed. Writes benchmarks/results/gpu_<name>.json.
set -eu
cd "$(dirname "$0")/.."
PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
