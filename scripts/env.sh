#!/usr/bin/env bash
# Make the environment that every other script uses: scripts/env.sh, or `source scripts/env.sh`.
# Installs requirements.lock and this package into AIPO_VENV (default: .venv). Does nothing when that is up to
# date; rebuilds it when requirements.lock has changed.
#
#   AIPO_VENV     where the environment is
#   AIPO_PYTHON   the Python >= 3.11 that it is made with (default: python3)
#
# On Linux, PyPI's torch is the large CUDA build. For a machine without a GPU:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu scripts/env.sh

aipo_env() (
    set -euo pipefail
    cd "$1"
    venv="$2" python="${AIPO_PYTHON:-python3}" stamp="$2/aipo.stamp"
    fail() { echo "env.sh: $*" >&2; exit 1; }

    wanted="$(sha256sum requirements.lock | cut -d' ' -f1) $PWD"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then exit 0; fi

    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "$python is not Python >= 3.11; set AIPO_PYTHON, as in AIPO_PYTHON=python3.11 scripts/env.sh"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make environments; run: sudo apt-get update && sudo apt-get install -y python3-venv"
    if [[ -e "$venv" && ! -f "$venv/pyvenv.cfg" ]]; then
        fail "AIPO_VENV=$venv exists and is no environment; name a new folder"
    fi

    echo "env.sh: installing requirements.lock into $venv" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
    pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
    pip install -qq --requirement requirements.lock
    pip install -qq --no-deps --no-build-isolation --editable .
    pip check >&2
    echo "$wanted" >"$stamp"
)

AIPO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export AIPO_VENV="${AIPO_VENV:-$AIPO_ROOT/.venv}"
aipo_env "$AIPO_ROOT" "$AIPO_VENV"
