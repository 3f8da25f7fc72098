"""One install command, and one range of verl's versions in extras, refusal, environments and docs."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from aipo.integrations.verl.nodes import BELOW, LEAST

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: Requirement(PROJECT["optional-dependencies"][name][0]) for name in ("verl", "verl-core")}


def pinned(path: str, package: str) -> Version:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert found is not None, f"{path} pins no {package}"
    return Version(found[1])


def test_the_extras_take_the_versions_that_the_plugin_does_not_refuse() -> None:
    assert [EXTRAS[name].name for name in EXTRAS] == ["verl", "verl"]
    for requirement in EXTRAS.values():
        assert str(requirement.specifier) == str(Requirement(f"verl>={LEAST},<{BELOW}").specifier)
    assert EXTRAS["verl"].extras == {"vllm"}  # a GPU machine has its servers by one command
    assert EXTRAS["verl-core"].extras == {"verl-core"}


def test_what_the_tests_run_on_is_within_that_range() -> None:
    for path in ("scripts/verl.txt", "scripts/parity.txt"):
        assert LEAST <= pinned(path, "verl") < BELOW, path


def test_the_page_installs_with_that_command_alone() -> None:
    page = (ROOT / "docs" / "verl.md").read_text()
    assert re.findall(r"^    pip install (.+?)(?:  +#.*)?$", page, re.MULTILINE) == ["'aipo[verl]'"]
