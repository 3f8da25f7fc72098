"""Pages of results are what their words and the committed records give: nobody typed a number."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]


def page_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "scripts" / "results_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_results_is_generated_from_the_records(tmp_path: Path) -> None:
    script = page_script()
    assert "results" in script.pages()
    for page in script.pages():
        assert script.render(page, tmp_path / "figures") == (ROOT / "docs" / f"{page}.md").read_text(), page
