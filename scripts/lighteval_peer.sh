#!/usr/bin/env bash
# Grade the same saved completions with lighteval and with aipo: scripts/lighteval_peer.sh DATA [argument ...]
# Further arguments go to the first step of scripts/lighteval_peer.py (--problems 10). DATA holds math500.jsonl and aime25.jsonl. Makes an environment of scripts/lighteval_peer.txt on top of the
# package's; it is kept, and rebuilt when that file or what it stands on has changed. Writes
# results/evaluation/peer.json; the exit code is 1 when a difference has no reason.
#
#   AIPO_PEER_OUTPUT where the record goes (default: results/evaluation/peer.json)
#   AIPO_PEER_VENV   where the environment is (default: build/peer-venv)
#   AIPO_PEER_BASE   an environment with the package's dependencies (default: the one of scripts/env.sh)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${AIPO_PEER_VENV:-$PWD/build/peer-venv}"
if [[ -z "${AIPO_PEER_BASE:-}" ]]; then
    source scripts/env.sh
    AIPO_PEER_BASE="$AIPO_VENV"
fi

if [[ -e "$venv" && ! -f "$venv/pyvenv.cfg" ]]; then
    echo "lighteval_peer.sh: AIPO_PEER_VENV=$venv exists and is no environment; name a new folder" >&2
    exit 1
fi
stamp="$(sha256sum <scripts/lighteval_peer.txt) $(sha256sum <requirements.lock) $AIPO_PEER_BASE"
if [[ "$(cat "$venv/peer.stamp" 2>/dev/null)" != "$stamp" ]]; then
    rm -rf "$venv"
    "$AIPO_PEER_BASE/bin/python" -m venv "$venv"
    site='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$AIPO_PEER_BASE/bin/python" -c "$site" >"$("$venv/bin/python" -c "$site")/base.pth"
    "$venv/bin/python" -m pip --disable-pip-version-check install -qq --no-deps --requirement scripts/lighteval_peer.txt
    echo "$stamp" >"$venv/peer.stamp"
fi

export PYTHONPATH="$PWD/src" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
data="${1:?name the folder with math500.jsonl and aime25.jsonl}"
shift
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$AIPO_PEER_BASE/bin/python" scripts/lighteval_peer.py ours "$work" --data "$data" "$@"
"$venv/bin/python" scripts/lighteval_peer.py theirs "$work"
"$AIPO_PEER_BASE/bin/python" scripts/lighteval_peer.py report "$work" \
    --output "${AIPO_PEER_OUTPUT:-results/evaluation/peer.json}"
