"""What CONTRIBUTING.md shows of extending the package is the very code that tests run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SHOWN = {
    "Add a task": "outside_task",
    "Add a benchmark": "outside_benchmark",
    "Add an engine": "outside_engine",
}


@pytest.mark.parametrize(("heading", "module"), SHOWN.items())
def test_the_code_of_a_section_is_that_of_the_tests_module(heading: str, module: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.search(rf"^#+ {heading}\n(.*?)(?=^#+ |\Z)", text.replace("\n# ", "\n\0 "), re.M | re.S)
    assert section, heading
    code = re.search(r"```python\n(.*?)```", section[1], re.S)
    assert code and code[1].replace("\0", "#") == (ROOT / "tests/support" / f"{module}.py").read_text()
