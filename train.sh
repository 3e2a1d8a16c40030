#!/usr/bin/env bash
# The main job: set-up → train → infer. Killed or stopped, the same command goes on where it was.
set -euo pipefail

if [[ $# -eq 0 || "$1" == -* ]]; then
    echo "usage: bash train.sh configs/NAME.yaml … [options of src/train.py, such as --folds 0 or --set train.epochs=3]" >&2
    exit 2
fi
root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
configs=()
while [[ $# -gt 0 && "$1" != -* ]]; do
    # Relative to where the caller stands if it is there, else to the repository.
    config="$1"
    [[ ! -e "$config" || "$config" == /* ]] || config="$PWD/$config"
    configs+=("${config#"$root/"}")
    shift
done

cd -- "$root"
source ./setup.sh
exec "$PYTHON" src/train.py "${configs[@]}" "$@" --submit
