#!/usr/bin/env bash
# AIPO on the real verl, on the CPU: scripts/verl.sh [pytest argument ...]
# Makes an environment of scripts/verl.txt on top of scripts/vllm.sh's and the package's own, installs this package
# there so that verl discovers it, and runs the tests marked `verl`: agent loop, Ray and transfer queue, and verl's
# own trainer end to end (fsdp2, vLLM's CPU build). Six minutes on two busy cores; a job of its own.
# The environment (0.5 GB, and 2.5 GB of scripts/vllm.sh) is kept, and rebuilt when one of these has changed.
#
#   AIPO_VERL_VENV   where the environment is (default: build/verl-venv)
#   AIPO_VERL_BASE   an environment with the package's dependencies (default: the one of scripts/env.sh)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${AIPO_VERL_VENV:-$PWD/build/verl-venv}"
if [[ -z "${AIPO_VERL_BASE:-}" ]]; then
    source scripts/env.sh
    AIPO_VERL_BASE="$AIPO_VENV"
fi
vllm="$(AIPO_VLLM_BASE="$AIPO_VERL_BASE" scripts/vllm.sh --install | tail -1)"

if [[ -e "$venv" && ! -f "$venv/pyvenv.cfg" ]]; then
    echo "verl.sh: AIPO_VERL_VENV=$venv exists and is no environment; name a new folder" >&2
    exit 1
fi
stamp="$(sha256sum <scripts/verl.txt) $(sha256sum <requirements.lock) $(sha256sum <pyproject.toml) $vllm $AIPO_VERL_BASE"
if [[ "$(cat "$venv/verl.stamp" 2>/dev/null)" != "$stamp" ]]; then
    started=$SECONDS
    rm -rf "$venv"
    "$AIPO_VERL_BASE/bin/python" -m venv "$venv"
    site='import sysconfig; print(sysconfig.get_path("purelib"))'
    own="$("$venv/bin/python" -c "$site")"
    "$(dirname "$vllm")/python" -c "$site" >"$own/a_vllm.pth" # its torch and transformers come first
    "$AIPO_VERL_BASE/bin/python" -c "$site" >"$own/b_base.pth"
    install=("$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps)
    "${install[@]}" --requirement scripts/verl.txt
    "${install[@]}" --editable . # its entry point is how verl finds the plugin
    echo "$stamp" >"$venv/verl.stamp"
    echo "verl.sh: installed in $((SECONDS - started)) s" >&2
fi
if [[ "${1:-}" == "--install" ]]; then
    echo "$venv/bin/aipo"
    exit 0
fi

export PATH="$venv/bin:$PATH" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unset CUDA_VISIBLE_DEVICES # Ray is told of a GPU, which it looks for in there
aipo verl check # the tests skip without the plugin; here that is a failure
python -m pytest -q -p no:cacheprovider -p no:xdist -m verl --durations=5 tests/on_verl "$@"
