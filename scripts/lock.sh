#!/usr/bin/env bash
# Write requirements.lock from what is installed in an environment: scripts/lock.sh [path/to/python]
# Install or upgrade there first, run scripts/test.sh, then lock what passed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${1:-${AIPO_VENV:-.venv}/bin/python}"

frozen="$("$python" -m pip freeze --all --exclude aipo --exclude pip)"
{
    echo "# Every package of the environment that the checks pass with, transitive ones too."
    echo "# Written by scripts/lock.sh from an installed environment; do not edit."
    echo "# torch has no local tag (+cpu, +cu130): the index that pip is given decides which build it is."
    grep -E '^[A-Za-z0-9._-]+==' <<<"$frozen" | sed -E 's/^(torch==[^+]*)\+.*/\1/' | LC_ALL=C sort -f
} >requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"
