#!/usr/bin/env bash
# The test command: style, types, tests. Arguments go to pytest.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
source ./setup.sh dev

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy src
# Two workers and one thread each: more threads than cores slow torch down.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n 2 -rs "$@"
