#!/usr/bin/env bash
# Sets up the environment, trains, and writes the submission. If it is stopped or killed, the same command resumes.
set -euo pipefail

if [[ $# -eq 0 || "$1" == -* ]]; then
    echo "usage: bash train.sh configs/NAME.yaml … [options of src/train.py, such as --folds 0 or --set train.epochs=3]" >&2
    exit 2
fi
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
configs=()
while [[ $# -gt 0 && "$1" != -* ]]; do
    # A path is relative to the current folder if it exists there, else to the repository.
    config="$1"
    [[ ! -e "$config" || "$config" == /* ]] || config="$PWD/$config"
    configs+=("${config#"$root/"}")
    shift
done

cd -- "$root"
source ./setup.sh
# Letting glibc use large memory pages makes training on a CPU faster (benchmarks/allocator.py).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec "$PYTHON" src/train.py "${configs[@]}" "$@" --submit
