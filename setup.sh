#!/usr/bin/env bash
# Prepares a Python environment with everything the code needs:   source setup.sh [dev]
#
# An active environment within the version ranges of pyproject.toml (Kaggle, Colab, conda) is used as it is. Otherwise
# .venv is created once from requirements.txt, with every version pinned by requirements.lock, and activated; `dev` adds
# requirements-dev.txt. Packages are installed by uv if it is on PATH, else by pip; the result is the same. Afterwards,
# $PYTHON is the command to run.
#
# PyPI's torch for Linux is a CUDA build of several gigabytes. On a machine without a GPU, get the small build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu bash train.sh configs/NAME.yaml

_scenes_root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")" && pwd -P)"
_scenes_venv="$_scenes_root/.venv"
# requires-python in pyproject.toml
_scenes_supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

# shellcheck disable=SC1091
# Whether .venv is intact: completely created, not moved, and with its interpreter still in place.
_scenes_intact() (
    [[ -f "$_scenes_venv/bin/activate" ]] && source "$_scenes_venv/bin/activate" &&
        [[ "$VIRTUAL_ENV" -ef "$_scenes_venv" ]] && "$_scenes_venv/bin/python" -c "$_scenes_supported" 2>/dev/null
)

# Whether a requirements file is installed in its current form. Its stamp, written after installing, is a copy of the
# file and the lock.
_scenes_installed() {
    cat -- "$_scenes_root/$1" "$_scenes_root/requirements.lock" | cmp -s -- - "$_scenes_venv/$1"
}

# Whether .venv is intact and has all of these requirements files installed.
_scenes_ready() {
    local file
    for file in "$@"; do
        _scenes_installed "$file" || return 1
    done
    _scenes_intact
}

# Prints the first Python that can create .venv. Each is tried, because a version manager's shim may not work.
_scenes_find_python() {
    local python PATH=":$PATH:"
    PATH="${PATH//":$_scenes_venv/bin:"/:}" # not the .venv that is about to be removed
    PATH="${PATH#:}" PATH="${PATH%:}"
    for python in python3 python python3.13 python3.12 python3.11; do
        # Without the package python3-venv, Debian's Python has no ensurepip.
        if "$python" -c "import ensurepip, venv; $_scenes_supported" >/dev/null 2>&1; then
            command -v -- "$python"
            return 0
        fi
    done
    echo "error: no Python 3.11, 3.12 or 3.13 with its venv module on PATH" >&2
    echo "       → install one (Debian, Ubuntu: apt install python3-venv; conda create -n scenes python=3.12), or uv" >&2
    return 1
}

_scenes_create_venv() {
    local python
    echo "Creating .venv (once; takes a few minutes with pip, less with uv) …"
    if command -v uv >/dev/null; then
        # An active environment, perhaps the very .venv to be replaced, must not be its base.
        (unset VIRTUAL_ENV CONDA_PREFIX && uv venv --quiet --clear --seed --python '>=3.11,<3.14' "$_scenes_venv") && return
        echo "uv could not create it; trying Python's own venv" >&2
    fi
    python="$(_scenes_find_python)" || return 1
    rm -rf -- "$_scenes_venv"
    "$python" -m venv "$_scenes_venv"
}

# Installs a requirements file into .venv.
_scenes_install() {
    local wanted=(--requirement "$_scenes_root/$1" --constraint "$_scenes_root/requirements.lock") options=() place
    if command -v uv >/dev/null; then
        # uv does not read pip's settings. Pass on those that say where packages are, with pip's order of precedence.
        [[ -z "${PIP_INDEX_URL:-}" ]] || options+=(--default-index "$PIP_INDEX_URL")
        for place in ${PIP_EXTRA_INDEX_URL:-}; do options+=(--index "$place"); done
        for place in ${PIP_FIND_LINKS:-}; do options+=(--find-links "$place"); done
        uv pip install --quiet --python "$_scenes_venv/bin/python" --index-strategy unsafe-best-match \
            ${options[@]+"${options[@]}"} "${wanted[@]}" </dev/null && return
        echo "uv could not install $1; trying pip" >&2
    fi
    "$_scenes_venv/bin/python" -m pip --version >/dev/null 2>&1 || "$_scenes_venv/bin/python" -m ensurepip >/dev/null
    # Python compiles what is imported; pip would compile everything, which takes longer than unpacking it.
    "$_scenes_venv/bin/python" -m pip install --quiet --no-input --no-compile --disable-pip-version-check \
        "${wanted[@]}" </dev/null 2>"$_scenes_venv/pip.log" && return
    tail -n 20 -- "$_scenes_venv/pip.log" >&2
    cat >&2 <<END
error: pip could not install $1, for the reason above. Fix it and run the same command again:
       → no network: set HTTPS_PROXY, or PIP_INDEX_URL to a mirror, or PIP_FIND_LINKS to a folder of wheels
       → disk full: free space in $_scenes_root; the first lines of setup.sh say how to get the small torch
       → no matching version: needs Python 3.11, 3.12 or 3.13 on a 64-bit machine; this is $("$_scenes_venv/bin/python" -VV)
END
    return 1
}

# Creates or updates .venv from these requirements files; runs in a subshell to leave the caller's shell unchanged.
_scenes_update() (
    if command -v flock >/dev/null; then
        flock -n 9 || { echo "Waiting for another setup.sh to finish …" && flock 9; }
    fi
    ! _scenes_ready "$@" || return 0 # the other setup.sh did the work

    if _scenes_intact; then
        echo "Updating .venv from $* …"
    else
        _scenes_create_venv || return 1
    fi
    for file in "$@"; do
        ! _scenes_installed "$file" || continue
        rm -f -- "$_scenes_venv/$file" # an interrupted installation does not count
        _scenes_install "$file" || return 1
        cat -- "$_scenes_root/$file" "$_scenes_root/requirements.lock" >"$_scenes_venv/$file"
    done
) 9<"$_scenes_root/setup.sh" # the file to lock: it always exists

# shellcheck disable=SC1091
_scenes_setup() {
    local extra=""
    [[ "${1:-}" != dev ]] || extra=dev
    # Our own .venv, if active, must match the pinned versions, not just the ranges.
    if ! [[ "${VIRTUAL_ENV:-}" -ef "$_scenes_venv" ]]; then
        for PYTHON in python python3; do
            ! "$PYTHON" "$_scenes_root/src/scenes/environment.py" $extra >/dev/null 2>&1 || return 0
        done
    fi
    PYTHON=python
    set -- requirements.txt ${extra:+requirements-dev.txt}
    _scenes_ready "$@" || _scenes_update "$@" || return 1
    source "$_scenes_venv/bin/activate"
}

_scenes_setup "$@"
