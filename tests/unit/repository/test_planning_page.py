"""docs/planning.md is what its script writes now."""

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("planning_page", ROOT / "scripts" / "planning_page.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: ModuleType) -> None:
    written = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    assert written == script.page(), "run python scripts/planning_page.py"


def test_the_page_holds_no_name_that_was_not_filled_in(script: ModuleType) -> None:
    assert "{{" not in (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    assert "{{ measured }}" in (ROOT / "docs" / "planning.in.md").read_text(encoding="utf-8")


def test_figures_of_the_measured_table_are_the_record_s(script: ModuleType) -> None:
    record = json.loads(script.RECORD.read_text(encoding="utf-8"))
    text = script.measured_table()
    assert len(record["figures"]) >= 6
    for figure in record["figures"]:
        assert f"| {figure['what']} | {figure['ours']:.2f} | {figure['theirs']:.2f} |" in text


def test_a_quick_check_predicts_a_run_with_agents_and_is_refused_as_a_record(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    importlib.import_module("planning").main(["--quick", "--output", str(tmp_path)])
    record = json.loads((tmp_path / "planning.json").read_text())
    (figure,) = record["figures"]
    assert figure["ours"] > 0 and figure["theirs"] > 0 and figure["beside"] == "measured"
    monkeypatch.setattr(script, "RECORD", tmp_path / "planning.json")
    with pytest.raises(ValueError, match="without --quick"):
        script.measured_table()
