"""The same saved completions, graded by lighteval and by us: equal Avg@n, or a reason for each row.

`scripts/lighteval_peer.sh` makes lighteval's environment (build/peer-venv, or AIPO_PEER_VENV); without it, or
without ../shared/data, only the committed record is looked at.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "evaluation" / "peer.json"
DATA = ROOT.parent / "shared" / "data"
PEER = Path(os.environ.get("AIPO_PEER_VENV", ROOT / "build" / "peer-venv")) / "bin" / "python"


def check(report: Path, questions: dict[str, int]) -> None:
    found = json.loads(report.read_text())
    assert {each["benchmark"]: each["questions"] for each in found["benchmarks"]} == questions
    for each in found["benchmarks"]:
        assert each["comparable_avg_ours"] == each["comparable_avg_lighteval"]
        assert each["unexplained"] == 0 and all(row["why"] for row in each["differences"])
        assert 0.2 < each["avg_at_n_ours"] < 0.8, "right and wrong answers must be among the completions"
        assert each["comparable_completions"] > each["completions"] / 2


def test_the_committed_record_has_equal_averages_and_a_reason_for_each_row_that_differs() -> None:
    check(RECORD, {"aime25": 30, "math500": 500})


@pytest.mark.parity
@pytest.mark.skipif(not PEER.exists(), reason=f"{PEER} is not there: scripts/lighteval_peer.sh makes it")
@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is not there")
def test_lighteval_and_we_agree_on_completions_made_now(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }

    def step(python: str | Path, *arguments: str | Path) -> None:
        command = [str(python), "scripts/lighteval_peer.py", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr

    step(sys.executable, "ours", tmp_path / "work", "--data", DATA, "--problems", "12")
    step(PEER, "theirs", tmp_path / "work")
    step(sys.executable, "report", tmp_path / "work", "--output", tmp_path / "peer.json")
    check(tmp_path / "peer.json", {"aime25": 12, "math500": 12})
