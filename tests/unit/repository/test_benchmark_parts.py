"""A long benchmark that was cut short goes on, and takes nothing that other scripts or settings measured."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def parts(folder: Path, source: Path, setting: str = "") -> Any:
    return importlib.import_module("parts").Parts(folder, [source], setting)


def test_what_was_measured_before_the_cut_is_not_measured_again(tmp_path: Path) -> None:
    source, folder = tmp_path / "script.py", tmp_path / "parts"
    source.write_text("one")
    first = parts(folder, source)
    assert first.get("a", lambda: [1.5]) == [1.5]

    def cut() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.get("b", cut)
    again = parts(folder, source)
    assert again.get("a", lambda: [2.5]) == [1.5]
    assert again.get("b", lambda: [3.5]) == [3.5]
    assert len(again.dates()) == 2
    again.remove()
    assert not folder.exists()


def test_parts_of_other_code_or_another_setting_are_refused(tmp_path: Path) -> None:
    source, folder = tmp_path / "script.py", tmp_path / "parts"
    source.write_text("one")
    parts(folder, source, "policy a")
    with pytest.raises(SystemExit, match="another setting"):
        parts(folder, source, "policy b")
    source.write_text("two")
    with pytest.raises(SystemExit, match="other code"):
        parts(folder, source, "policy a")
    with pytest.raises(SystemExit, match="no folder of parts"):
        parts(tmp_path, source)


def test_rollouts_that_were_observed_come_back_from_their_part_as_they_were() -> None:
    planning = importlib.import_module("planning")
    observed = planning.observe((4, 2, 0.05), quick=True)
    assert any(turn.consultation for each in observed.trajectories for turn in each.turns)
    assert planning.Observed.from_table(json.loads(json.dumps(asdict(observed)))) == observed
