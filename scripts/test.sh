#!/usr/bin/env bash
# Every check of the repository, the quick ones first; ends with pytest's line.
# scripts/test.sh [pytest argument ...]; AIPO_TEST_WORKERS (default 2) tests run at the same time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/env.sh
export PATH="$AIPO_VENV/bin:$PATH"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false # the workers share the cores
export NO_MKDOCS_2_WARNING=1
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1         # tests download nothing

check() {
    echo "--- $*"
    "$@"
}

check ruff check .
check ruff format --check .
check mypy
check lint-imports
check python scripts/size_caps.py
check mkdocs build --strict # the documentation as a site, in build/site; --quiet would silence strictness too
check python -m pytest -q -n "${AIPO_TEST_WORKERS:-2}" --dist worksteal "$@" # src (doctests) and tests: unit, property, e2e
