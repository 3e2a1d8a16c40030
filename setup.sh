#!/usr/bin/env bash
# Makes ready a Python that has what the code needs:   source setup.sh [dev]
#
# An active environment that satisfies the supported ranges of pyproject.toml (Kaggle, Colab, conda) is used as it is.
# Else .venv is made from requirements.txt, once, and activated; `dev` adds requirements-dev.txt. Afterwards $PYTHON is the
# command to run. Without a GPU, PyPI's torch is a CUDA build of gigabytes on many machines; the small one:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu bash train.sh configs/NAME.yaml

_scenes_root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]:-$0}")" && pwd -P)"
_scenes_venv="$_scenes_root/.venv"
# requires-python of pyproject.toml
_scenes_supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

# shellcheck disable=SC1091
# Whether .venv is whole: made to its end (activate comes last), never moved, its interpreter still there.
_scenes_whole() (
    [[ -f "$_scenes_venv/bin/activate" ]] && source "$_scenes_venv/bin/activate" &&
        [[ "$VIRTUAL_ENV" -ef "$_scenes_venv" ]] && "$_scenes_venv/bin/python" -c "$_scenes_supported" 2>/dev/null
)

# Whether .venv is whole and holds these requirement files. The stamp of a file is its copy, written after the install.
_scenes_fresh() {
    local file
    for file in "$@"; do
        cmp -s -- "$_scenes_root/$file" "$_scenes_venv/$file" || return 1
    done
    _scenes_whole
}

# The first interpreter that does; tried by running it, because a shim on PATH may have nothing behind it.
_scenes_find_python() {
    local python PATH=":$PATH:"
    PATH="${PATH//":$_scenes_venv/bin:"/:}" # a .venv about to be removed cannot make its successor
    PATH="${PATH#:}" PATH="${PATH%:}"
    for python in python3 python python3.13 python3.12 python3.11; do
        # Debian's Python has no ensurepip, and so cannot make a .venv, until python3-venv is installed.
        if "$python" -c "import ensurepip, venv; $_scenes_supported" >/dev/null 2>&1; then
            command -v -- "$python"
            return 0
        fi
    done
    echo "error: no Python 3.11, 3.12 or 3.13 (with its venv module) found on PATH" >&2
    echo "       → install one (Debian, Ubuntu: apt install python3-venv; conda create -n scenes python=3.12)" >&2
    return 1
}

# Why pip failed, in its words, and what can be done.
_scenes_explain() {
    tail -n 20 -- "$_scenes_venv/pip.log"
    cat <<END
error: pip could not install $1; its reason stands above. Mend it and give the same command again:
       → no network: set HTTPS_PROXY, or PIP_INDEX_URL to a mirror, or PIP_FIND_LINKS to a folder of wheels
       → no room in $_scenes_root: make some; the head of setup.sh tells how to get the small torch
       → no matching version: needs Python 3.11, 3.12 or 3.13 on a 64-bit machine; this is $("$_scenes_venv/bin/python" -VV)
END
}

# Makes or refreshes .venv from these requirement files; in a subshell, so that nothing of it stays behind.
_scenes_install() (
    if command -v flock >/dev/null; then
        flock -n 9 || { echo "Waiting for another setup.sh to finish …" && flock 9; }
    fi
    ! _scenes_fresh "$@" || return 0 # the other one did it

    if ! _scenes_whole; then
        python="$(_scenes_find_python)" || return 1
        echo "Making .venv (once, a few minutes; python src/scenes/environment.py tells what the active Python lacks) …"
        rm -rf -- "$_scenes_venv"
        "$python" -m venv "$_scenes_venv" || return 1
    else
        echo "Bringing .venv up to date with $* …"
    fi
    for file in "$@"; do
        cmp -s -- "$_scenes_root/$file" "$_scenes_venv/$file" && continue
        "$_scenes_venv/bin/python" -m pip --version >/dev/null 2>&1 || "$_scenes_venv/bin/python" -m ensurepip >/dev/null
        rm -f -- "$_scenes_venv/$file" # before the install: one that is interrupted does not count
        "$_scenes_venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
            --requirement "$_scenes_root/$file" </dev/null 2>"$_scenes_venv/pip.log" ||
            { _scenes_explain "$file" >&2 && return 1; }
        cp -- "$_scenes_root/$file" "$_scenes_venv/$file"
    done
) 9<"$_scenes_root/setup.sh" # the lock is on this file: it is there and is never removed

# shellcheck disable=SC1091
_scenes_setup() {
    local extra=""
    [[ "${1:-}" != dev ]] || extra=dev
    # An active .venv of ours is not judged by the ranges: it follows the pinned files.
    if ! [[ "${VIRTUAL_ENV:-}" -ef "$_scenes_venv" ]]; then
        for PYTHON in python python3; do
            ! "$PYTHON" "$_scenes_root/src/scenes/environment.py" $extra >/dev/null 2>&1 || return 0
        done
    fi
    PYTHON=python
    set -- requirements.txt ${extra:+requirements-dev.txt}
    _scenes_fresh "$@" || _scenes_install "$@" || return 1
    source "$_scenes_venv/bin/activate"
}

_scenes_setup "$@"
