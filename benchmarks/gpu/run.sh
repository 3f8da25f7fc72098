#!/usr/bin/env bash
# The GPU benchmark, at most nine minutes: bash benchmarks/gpu/run.sh [bench.py option ...]
# Needs a Python with a CUDA build of torch and this package's requirements (transformers, accelerate, tokenizers);
# the package itself is taken from src/. AIPO_PYTHON names that Python (default: python3).
# Without a GPU it says so and ends with 1. The record is results/gpu/DEVICE.json, or stands in $OUT where that is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD/src" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec timeout 540 "${AIPO_PYTHON:-python3}" benchmarks/gpu/bench.py ${OUT:+--output "$OUT"} "$@"
