#!/bin/sh
# Makes .venv: finds a suitable Python, gets uv, installs the project and the pinned set. `make setup` calls it.
#   scripts/setup.sh               make .venv
#   scripts/setup.sh find-python   only print the Python that would be used
# PYTHON=/path/to/python picks the Python; INSTALLER=pip does without uv; EXTRAS=adamw8bit adds those of setup.cfg instead of dev's. Plain sh: macOS's bash is old, and a bare machine has no more.
set -eu
cd "$(dirname "$0")/.."

WANTED="3.12 or 3.13" # as python_requires in setup.cfg says; suitable() is the check
PYENV=${PYENV_ROOT:-${HOME:-}/.pyenv}
NL='
'
unsuitable="" # what was found and is too old, too new or broken, for the error

say() { printf '%s\n' "$*" >&2; }

# version FILE: prints "3.12"; fails where FILE does not really run (pyenv leaves shims that exit 127).
version() {
    [ -x "$1" ] && [ ! -d "$1" ] && "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

suitable() {
    found=$(version "$1") || found="does not run"
    case $found in
    3.12 | 3.13) return 0 ;;
    esac
    case "$unsuitable$NL" in
    *"  $1: "*) ;;
    *) [ ! -e "$1" ] || unsuitable="$unsuitable$NL  $1: $found" ;;
    esac
    return 1
}

# on_path NAME: every file of that name on PATH, not only the first, because the first may be a dead shim.
on_path() {
    (
        IFS=:
        for folder in $PATH; do
            [ ! -x "$folder/$1" ] || printf '%s\n' "$folder/$1"
        done
    )
}

# find_python: sets $python, or fails.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        python=$(command -v "$PYTHON") || python=$PYTHON
        suitable "$python" && return 0
        say "error: PYTHON=$PYTHON is not Python $WANTED ($found). Name another, or leave PYTHON out and one is looked for."
        exit 1
    fi
    candidates=$(for name in python3.12 python3.13 python3 python; do on_path "$name"; done)
    candidates="$candidates$NL$(printf '%s\n' "$PYENV"/versions/3.12*/bin/python "$PYENV"/versions/3.13*/bin/python)"
    if find_uv; then
        candidates="$candidates$NL$(uv_pythons)"
    fi
    old_ifs=$IFS
    IFS=$NL
    for python in $candidates; do
        IFS=$old_ifs
        suitable "$python" && return 0
    done
    IFS=$old_ifs
    return 1
}

uv_pythons() {
    for minor in 3.12 3.13; do
        "$uv" python find --no-project --system --no-python-downloads "$minor" 2>/dev/null || true
    done
}

# find_uv: sets $uv to the uv on PATH or to our own, or fails.
find_uv() {
    [ "${INSTALLER:-uv}" = uv ] || return 1
    for uv in "$(command -v uv || true)" .uv/bin/uv; do
        [ -n "$uv" ] && "$uv" --version >/dev/null 2>&1 && return 0
    done
    return 1
}

# get_uv: find_uv, else uv from the package index into .uv, with whatever Python 3 runs; fails where that cannot be.
get_uv() {
    find_uv && return 0
    [ "${INSTALLER:-uv}" = uv ] || return 1
    for any in "${python:-}" $(on_path python3) $(on_path python); do
        version "$any" >/dev/null || continue
        say "== uv is not here: installing it into .uv with $any"
        rm -rf .uv
        if "$any" -m venv .uv >/dev/null 2>&1; then
            .uv/bin/python -m pip install --quiet --disable-pip-version-check uv >&2 || true
        else # Debian's python3 without python3-venv
            "$any" -m pip install --quiet --disable-pip-version-check --target .uv uv >&2 || true
        fi
        find_uv && return 0
    done
    return 1
}

no_python() {
    say "error: no Python $WANTED was found."
    say "Looked at PYTHON=, python3.12, python3.13, python3 and python on PATH, $PYENV/versions, and uv's own Pythons."
    [ -z "$unsuitable" ] || say "Found, but not suitable:$unsuitable"
    say "Fix: install one (Debian/Ubuntu: apt-get install python3.12-venv, macOS: brew install python@3.12, anywhere:"
    say "pyenv install 3.12 or uv python install 3.12) and run 'make setup' again, or name one: make setup PYTHON=/path/to/python3.12"
    exit 1
}

# LIBERO's simulator runs on Linux alone. It brings opencv-python, which needs a desktop's libGL and hides
# opencv-python-headless, being the same module: the headless one is installed once more, as the last wins.
default=dev
[ "$(uname -s)" != Linux ] || default=dev,libero
EXTRAS=${EXTRAS:-$default}
HEADLESS="--no-deps --constraint requirements.lock opencv-python-headless"

install_with_uv() {
    { [ -d .venv ] || "$uv" venv --quiet --python "$python" .venv; } &&
        "$uv" pip install --python .venv/bin/python --editable ".[$EXTRAS]" --constraint requirements.lock &&
        "$uv" pip install --python .venv/bin/python --quiet --reinstall $HEADLESS
}

install_with_pip() {
    say "== Installing with pip: a few minutes without much to see"
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$EXTRAS]" --constraint requirements.lock
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall $HEADLESS
}

# can_render: MuJoCo really draws without a screen, by EGL or OSMesa.
can_render() {
    for gl in egl osmesa; do
        MUJOCO_GL=$gl .venv/bin/python -c 'import mujoco; mujoco.GLContext(64, 64).make_current()' >/dev/null 2>&1 && return 0
    done
    return 1
}

# Rendering is no reason to fail a setup: the environment itself says what is missing when it has to draw.
offer_rendering() {
    [ "$(uname -s)" = Linux ] || return 0
    can_render && return 0
    packages="libegl1 libgl1-mesa-dri"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "== MuJoCo cannot draw here: installing $packages"
        apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >&2 || true
        can_render && return 0
    fi
    say "warning: MuJoCo cannot draw without a screen here. To mend it (Debian/Ubuntu): sudo apt-get update && sudo apt-get install $packages"
}

if [ "${1:-}" = find-python ]; then
    find_python || no_python
    printf '%s\n' "$python"
    exit 0
fi

if ! find_python; then
    python=""
    get_uv || no_python
    say "== No Python $WANTED here: asking uv for one"
    find_python || { "$uv" python install 3.12 >&2 && find_python; } || no_python
fi
say "== Python: $python ($found)"

if version .venv/bin/python >/dev/null && [ "$(version .venv/bin/python)" = "$found" ]; then
    say "== .venv is there: bringing it up to date"
else
    rm -rf .venv
fi
if get_uv && install_with_uv; then
    :
else # no uv, or one that cannot reach the index (a proxy's certificates and settings are often known to pip only)
    install_with_pip
fi
offer_rendering
# Many images set PYTHONDONTWRITEBYTECODE. Every process would compile what it imports: 30 s instead of 15.
say "== Compiling what every stage imports"
env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -c \
    'import hydra, mujoco, submitit, wandb, recap.pipeline.runner, recap.report, recap.stages.simulate, recap.stages.train'
say "== Ready: .venv/bin/python"
