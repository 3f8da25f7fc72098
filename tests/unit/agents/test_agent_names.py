"""Agents have one list of names, the registry: no other file of the package spells them, but for a reason."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aipo.agents.backends import BACKENDS
from aipo.agents.named import AGENTS, in_order
from aipo.config.agents import AgentSettings
from aipo.config.loader import SettingsError, load_settings
from aipo.core.types import PAPER_AGENTS

SOURCE = Path(__file__).parents[3] / "src" / "aipo"
MAY_NAME = {
    "core/types.py": "spells the names, and the three that are enabled unless a recipe says otherwise",
    "agents/named.py": "the entries",
    "config/agents.py": "the default of agents.enabled is PAPER_AGENTS",
    "tasks/cpu": "oracles and worked examples have words of these three",
    "tasks/words": "the oracle of facts is Knowledge's",
    "planning/workload.py": "what the paper's three are assumed to be asked",
    "training/metrics.py": "every run's metrics have lines of the three, whoever is enabled",
}
"""Files, or folders, that name an agent, and why."""
CONSTANTS = {name.upper() for name in PAPER_AGENTS} | {"PAPER_AGENTS"}


def named_in(path: Path) -> Iterator[str]:
    """Yield each place of a file that names an agent: the very string, or its constant."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from re.findall(rf"\b(?:{'|'.join(AGENTS)})\b", text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and node.value in AGENTS:
            yield f"{node.lineno}: {node.value!r}"
        if isinstance(node, ast.Name) and node.id in CONSTANTS:
            yield f"{node.lineno}: {node.id}"


def test_there_is_no_second_list_of_agents() -> None:
    files = [path for suffix in ("py", "js", "css", "html") for path in SOURCE.rglob(f"*.{suffix}")]
    second = {
        name: found
        for path in files
        if not (name := str(path.relative_to(SOURCE))).startswith(tuple(MAY_NAME))
        and (found := list(named_in(path)))
    }
    assert second == {}, "take the names from aipo.agents.named.AGENTS, or from the records"


def test_every_file_that_may_name_an_agent_does() -> None:
    for name in MAY_NAME:
        path = SOURCE / name
        files = path.rglob("*.py") if path.is_dir() else [path]
        assert any(list(named_in(file)) for file in files), f"{name} names none: take it off the list"


def test_an_entry_stands_under_its_own_name() -> None:
    assert {name: spec.name for name, spec in AGENTS.items()} == {name: name for name in AGENTS}
    assert len({spec.tag for _, spec in AGENTS.items()}) == len(AGENTS)


def test_one_more_entry_changes_no_recipe() -> None:
    assert AgentSettings().enabled == PAPER_AGENTS  # and not whatever is registered


def test_names_come_in_the_order_of_the_registry_and_then_as_they_were_found() -> None:
    assert in_order(["critic", "reasoning", "verify", "critic"]) == ["verify", "reasoning", "critic"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('agents.enabled=["verfy"]', "did you mean 'verify'?"),
        ("agents.verfy.model=x", "`agents.verfy`: unknown key; did you mean `agents.verify`?"),
        ("agents.verify.modle=x", "did you mean `agents.verify.model`?"),
        ("agents.bakend=dead", "did you mean `agents.backend`?"),
        ("agents.backend=orcle", "did you mean 'oracle'?"),
        ("agents.verify.backend=orcle", "did you mean 'oracle'?"),
        ("consult.tags.verfy=x", "`consult.tags.verfy`: unknown key; did you mean `consult.tags.verify`?"),
    ],
)
def test_a_name_that_stands_for_nothing_is_an_error_with_the_nearest(override: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, [override])
    assert said in str(caught.value)


def test_back_ends_are_a_registry_too() -> None:
    assert list(BACKENDS) == ["remote", "local", "mcp", "oracle", "dead", "garbage", "hostile"]
    assert load_settings(None, ["agents.backend=my.module:Agent"]).agents.backend == "my.module:Agent"
