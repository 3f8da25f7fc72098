#!/usr/bin/env bash
# The shortened main job: fails unless AIPO beats GRPO alone on hard problems by more than chance can give.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
output="$(mktemp -d)"
trap 'rm -rf "$output"' EXIT
"$AIPO_VENV/bin/aipo" compare recipes/ci.toml "compare.output=$output/ci"
"$AIPO_VENV/bin/python" scripts/check_boundary.py "$output/ci/records"
