#!/usr/bin/env bash
# The main job: set-up → train → infer. Killed or stopped, the same command goes on where it was.
set -euo pipefail

if [[ $# -eq 0 || "$1" == -* ]]; then
    echo "usage: bash train.sh configs/NAME.yaml [options of src/train.py, such as --folds 0 or --set train.epochs=3]" >&2
    exit 2
fi
config="$1"
shift
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
# Relative to where the caller stands if it is there, else to the repository.
[[ ! -e "$config" || "$config" == /* ]] || config="$PWD/$config"
config="${config#"$root/"}"

cd -- "$root"
source ./setup.sh
exec "$PYTHON" src/train.py "$config" "$@" --submit
