#!/usr/bin/env bash
# Hostile replies, rows and responses for a time: `scripts/fuzz.sh [seconds, default 60] [pytest argument ...]`.
# Each round draws anew (a test measures its own CPU time, a busy machine is no failure); the first failure ends it, with the smallest example that Hypothesis finds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds="${1:-60}"
shift || true
python="${AIPO_VENV:-.venv}/bin/python"
[[ -x $python ]] || python=python
export AIPO_FUZZ_EXAMPLES="${AIPO_FUZZ_EXAMPLES:-300}" OMP_NUM_THREADS=1
end=$((SECONDS + seconds)) rounds=0
while ((SECONDS < end)); do
    "$python" -m pytest -q -p no:xdist -p no:cacheprovider --timeout 0 --hypothesis-seed="$((RANDOM * 32768 + RANDOM))" \
        tests/property/test_hostile_*.py "$@"
    rounds=$((rounds + 1))
done
echo "fuzzed $((SECONDS + seconds - end)) s in $rounds rounds of $AIPO_FUZZ_EXAMPLES examples for each property"
