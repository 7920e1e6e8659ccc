#!/usr/bin/env bash
# Set-up and first use in one command; see README.md.
#
#   bash setup.sh demo [ARGUMENT ...]   install, then `lk-triton run ARGUMENT ...` (default: --sample)
#   bash setup.sh test [ARGUMENT ...]   install with the test tools, then `pytest ARGUMENT ...`
#
# LK_TRITON_VENV=DIR  use, or make, the virtual environment DIR instead of .venv
# PYTHON=COMMAND      the Python (3.10 or newer) that a new environment is made with; default python3
set -euo pipefail
caller=$PWD
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$(realpath -m "${LK_TRITON_VENV:-$root/.venv}")
cd "$root"

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

make_venv() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || fail "$python not found: install Python 3.10 or newer (apt install python3 python3-venv)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version 2>&1) is too old: lk_triton needs Python 3.10 or newer; name another with PYTHON=python3.12"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python cannot make virtual environments: apt install python3-venv"
    "$python" -m venv "$venv"
}

# Install the package, editable, with the extra $1; skipped while pyproject.toml has not changed since.
install_extra() {
    local stamp="$venv/.lk-triton-$1"
    [ "$stamp" -nt pyproject.toml ] && return
    echo "setup.sh: installing lk-triton[$1] into $venv (the first time this downloads PyTorch)" >&2
    "$venv/bin/python" -m pip install --quiet --editable ".[$1]" >&2
    touch "$stamp"
}

command=${1:-}
case $command in
demo | test) shift ;;
*) fail "expected 'demo' or 'test', got '${command}': bash setup.sh demo [ARGUMENT ...] | bash setup.sh test [ARGUMENT ...]" ;;
esac

[ -x "$venv/bin/pip" ] || make_venv
install_extra "$command"

if [ "$command" = demo ]; then
    [ $# -gt 0 ] || set -- --sample
    cd "$caller" # so that image names mean what the caller meant
    exec "$venv/bin/lk-triton" run "$@"
fi
exec "$venv/bin/python" -m pytest "$@"
