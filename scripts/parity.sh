#!/usr/bin/env bash
# Compare losses, gradients and advantages with TRL's and verl's own: scripts/parity.sh [pytest argument ...]
# Makes an environment of scripts/parity.txt on top of the package's, and runs the tests marked `parity` there.
# The environment is kept, and rebuilt when scripts/parity.txt or what it stands on has changed.
#
#   AIPO_PARITY_VENV   where the environment is (default: build/parity-venv)
#   AIPO_PARITY_BASE   an environment with the package's dependencies (default: the one of scripts/env.sh)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${AIPO_PARITY_VENV:-$PWD/build/parity-venv}"
if [[ -z "${AIPO_PARITY_BASE:-}" ]]; then
    source scripts/env.sh
    AIPO_PARITY_BASE="$AIPO_VENV"
fi

if [[ -e "$venv" && ! -f "$venv/pyvenv.cfg" ]]; then
    echo "parity.sh: AIPO_PARITY_VENV=$venv exists and is no environment; name a new folder" >&2
    exit 1
fi
stamp="$(sha256sum <scripts/parity.txt) $(sha256sum <requirements.lock) $AIPO_PARITY_BASE"
if [[ "$(cat "$venv/parity.stamp" 2>/dev/null)" != "$stamp" ]]; then
    started=$SECONDS
    rm -rf "$venv"
    "$AIPO_PARITY_BASE/bin/python" -m venv "$venv"
    site='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$AIPO_PARITY_BASE/bin/python" -c "$site" >"$("$venv/bin/python" -c "$site")/base.pth"
    "$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps --requirement scripts/parity.txt
    echo "$stamp" >"$venv/parity.stamp"
    echo "parity.sh: installed in $((SECONDS - started)) s" >&2
fi

export VERL_USE_EXTERNAL_PLUGINS=none # what verl's trainer needs is not there; scripts/verl.sh tests the plugin
export PYTHONPATH="$PWD/src" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# The tests skip where these cannot be imported; here that is a failure.
"$venv/bin/python" -c 'import aipo, bitsandbytes, trl, verl.trainer.ppo.core_algos; from trl import GRPOTrainer'
"$venv/bin/python" -m pytest -q -p no:cacheprovider -m parity tests/parity "$@"
