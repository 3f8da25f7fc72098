#!/usr/bin/env bash
# AIPO on the real verl, on one GPU, in one command: tests/gpu/verl_gpu.sh [folder]
# NOT RUN: written without a GPU at hand. It needs `pip install 'aipo[verl]'`, a GPU of 24 GB
# and the network for Qwen/Qwen2.5-0.5B-Instruct (or AIPO_GPU_MODEL=/path/to/a/model with a chat template).
# It trains 3 steps on sums written here, with the agents dead (their failure must end nothing), then 3 with an
# OpenAI-compatible server in AIPO_GPU_AGENTS (base URL; model in AIPO_GPU_AGENT_MODEL) if there is one.
# Passes if the exit code is 0: each run ends well and its metrics show feedback, ratios near 1 and a gradient.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder="${1:-runs/verl-gpu}"
model="${AIPO_GPU_MODEL:-Qwen/Qwen2.5-0.5B-Instruct}"
mkdir -p "$folder"
python - "$folder/sums.jsonl" <<'PY'
import json, sys
rows = [{"problem": f"What is {a} + {b} * {c}?", "answer": str(a + b * c)} for a in range(11, 31) for b in (3, 7) for c in (4, 9)]
open(sys.argv[1], "w").write("\n".join(map(json.dumps, rows)))
PY

train() { # name, agents' overrides
    local name="$1" out="$folder/$1"
    shift
    aipo verl config recipes/own.toml "policy.model=$model" "task.train_file=$folder/sums.jsonl" "run.output=$out" \
        train.steps=3 train.prompts_per_step=8 train.minibatches_per_step=2 rollout.max_response_tokens=1024 \
        'agents.enabled=["verify", "knowledge", "reasoning"]' algorithm.coefficient=floored \
        train.max_failed_consultations_share=1.0 evaluate.curve_samples_per_problem=2 "$@" \
        --on gpus_per_node=1 --on tokens_per_gpu=4096 --on agent_processes=2 --on server_memory_share=0.4 \
        --on "data_folder=$out/data" --on validate_every_steps=3 --output "$out"
    VERL_FILE_LOGGER_PATH="$PWD/$out/metrics.jsonl" bash "$out/run.sh" 'trainer.logger=[console,file]' \
        trainer.save_freq=-1 trainer.resume_mode=disable
    python - "$out/metrics.jsonl" <<'PY'
import json, sys
steps = [json.loads(line)["data"] for line in open(sys.argv[1])][1:]
assert len(steps) == 3, len(steps)
for step in steps:
    assert step["aipo/ungraded_share"] < 0.05 and 0.8 < step["aipo/ratio_mean"] < 1.2, step
    assert step["training/rollout_probs_diff_mean"] < 0.05, "vLLM and the trainer disagree on the policy"
assert any(step["actor/grad_norm"] > 0 for step in steps), "nothing was learnt"
print(sys.argv[1], "is fine; answered:", sum(step["aipo/outcomes/answered"] for step in steps))
PY
}

train dead agents.backend=dead
if [[ -n "${AIPO_GPU_AGENTS:-}" ]]; then
    train remote agents.backend=remote "agents.base_url=$AIPO_GPU_AGENTS" "agents.model=$AIPO_GPU_AGENT_MODEL"
fi
