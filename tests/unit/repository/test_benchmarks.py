"""The benchmarks run and record what they say; what they measure is for a quiet machine, not for a test."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize(
    "name", ["overlap", "crossing", "prefill", "decode", "rollout_loop", "step", "update", "costs"]
)
def test_a_quick_run_records_each_figure_beside_its_bound_or_peer(name: str, tmp_path: Path) -> None:
    importlib.import_module(name).main(["--quick", "--output", str(tmp_path)])
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["quick"] and record["figures"]
    for figure in record["figures"]:
        assert figure["ours"] > 0 and figure["theirs"] > 0 and figure["ratio"] > 0 and figure["beside"]
    with pytest.raises(ValueError, match="without --quick"):
        importlib.import_module("page").page(tmp_path)


@pytest.mark.timeout(300)
def test_a_quick_load_on_failing_servers_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    importlib.import_module("load").main(["--quick", "--output", str(tmp_path)])
    record = json.loads((tmp_path / "load.json").read_text())
    none_of = [figure for figure in record["figures"] if figure["asked"] == "0"]
    assert len(none_of) == 3 and all(figure["ours"] == 0 and figure["passed"] for figure in none_of)
    waves = {wave["name"]: wave for wave in record["details"]["waves"]}
    assert waves["policy restarted"]["reasons"]["has weights"] > 0, "it served what it has from its disk"
    assert waves["plain"]["ungraded"] < waves["policy restarted"]["ungraded"]
    assert waves["plain"]["consultations"]["answered"] > 0


@pytest.mark.timeout(900)
def test_the_gpu_benchmark_runs_on_a_cpu_at_a_tiny_size(tmp_path: Path) -> None:
    own = {"AIPO_PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(BENCHMARKS / "gpu" / "run.sh"), "--device", "cpu", "--quick"]
    subprocess.run(command, env=os.environ | own, check=True, timeout=800)
    (record,) = tmp_path.glob("*.json")
    rows = {row["what"]: row for row in json.loads(record.read_text())["rows"]}
    for what in ("AIPO, 2 steps", "decode", "update, 8 rows of 48 + 16 tokens, prefixes shared"):
        assert rows[what]["value"] > 0
    assert "estimated" in rows["update, 8 rows of 48 + 16 tokens, padded: peak memory"]["detail"]


def test_a_quick_run_is_not_recorded_among_the_results() -> None:
    assert importlib.import_module("measure").options("any", ["--quick"]).output is None


def test_the_page_is_the_one_of_the_committed_records() -> None:
    page = importlib.import_module("page")
    assert (BENCHMARKS / "README.md").read_text() == page.page(page.RECORDS)


def test_waiting_on_a_free_core_takes_its_time_on_that_clock_and_none_on_the_wall() -> None:
    measure, asyncio = importlib.import_module("measure"), importlib.import_module("asyncio")

    async def both() -> None:
        await asyncio.gather(asyncio.sleep(500.0), asyncio.sleep(300.0))

    _, taken = measure.on_a_free_core(both())
    assert 500 <= taken.wall_s < 510
