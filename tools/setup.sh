#!/bin/sh
# Make a virtual environment with the package and its development tools in it.
# torch comes first and pinned (constraints.txt), so that pip does not replace it by a larger build.
# Set SEMIEVOL_TORCH to another requirement (for example "torch>=2.5") to use another build, such as one for a GPU.
set -eu
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "semievol needs Python 3.10 or newer; $PYTHON is $("$PYTHON" --version 2>&1). Set PYTHON=..." >&2
    exit 1
}
echo "== environment in $VENV"
if ! "$PYTHON" -m venv "$VENV" 2>/dev/null; then
    # Debian's python3 may come without ensurepip; virtualenv brings its own pip.
    rm -rf "$VENV"
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        echo "== installing python3-venv"
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        "$PYTHON" -m venv "$VENV"
    else
        echo "python3 cannot make virtual environments here: install the package python3-venv (sudo apt-get install python3-venv)" >&2
        exit 1
    fi
fi
PIP="$VENV/bin/python -m pip --disable-pip-version-check"
echo "== torch"
if [ -n "${SEMIEVOL_TORCH:-}" ]; then
    $PIP install --quiet "$SEMIEVOL_TORCH"
    echo "== semievol and its tools"
    $PIP install --quiet -e ".[dev]"
else
    $PIP install --quiet -c constraints.txt torch
    echo "== semievol and its tools (about 2 minutes)"
    $PIP install --quiet -c constraints.txt -e ".[dev]"
fi
"$VENV/bin/python" -c "import torch, semievol; print('== semievol', semievol.__version__, 'with torch', torch.__version__)"
