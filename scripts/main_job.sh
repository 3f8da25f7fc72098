#!/usr/bin/env bash
# The main job: train and evaluate every method of the comparison and write its tables and figures.
# scripts/main_job.sh [override ...], as in scripts/main_job.sh compare.seeds=[0] train.steps=10
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
exec "$AIPO_VENV/bin/aipo" compare recipes/main.toml "$@"
