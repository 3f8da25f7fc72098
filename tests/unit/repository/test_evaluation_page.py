"""docs/evaluation.md is what the committed evaluations say, and nothing typed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluation_page", ROOT / "scripts" / "evaluation_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8") == script.page(), (
        "run python scripts/evaluation_page.py"
    )


def test_a_part_that_no_record_has_is_an_error(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="no heading 'Nothing'"):
        script.part("aipo/results.md", "Nothing")
