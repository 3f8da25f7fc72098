"""What a run is put together from, where the settings leave it to what was registered."""

from dataclasses import replace

import pytest

import aipo
from aipo.agents.scripted import ScriptedAgent
from aipo.assembly.engines import EngineSpec
from aipo.assembly.parts import build_prompts
from aipo.config.loader import load_settings
from support import outside_engine
from support.critic import CRITIC
from support.outside_engine import CountingEngine
from support.tokenizers import byte_level_bpe

CHECKING = replace(CRITIC, approves=True)
"""An agent from outside the package that may approve of a rollout."""


@pytest.mark.parametrize(
    ("enabled", "checks"),
    [
        (["knowledge", "verify"], "verify"),
        (["knowledge"], None),
        (["knowledge", f"{__name__}:CHECKING"], "critic"),
        (["support.critic:CRITIC"], None),
    ],
)
def test_copies_are_shown_to_whoever_may_approve_of_them(enabled: list[str], checks: str | None) -> None:
    settings = load_settings(None, ["task.name=gsm8k", f"agents.enabled={enabled}"])
    agents = {
        spec.name: ScriptedAgent(name=spec.name, oracle=lambda *_: "") for spec in settings.agents.specs()
    }
    consult = build_prompts(settings, byte_level_bpe(), agents).consult
    assert consult.checker is (agents[checks] if checks else None)


def test_an_engine_that_several_ranks_cannot_share_is_refused_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lone = EngineSpec(make=lambda request: CountingEngine(request))
    monkeypatch.setattr(outside_engine, "LONE", lone, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    own = "engine.name=support.outside_engine:LONE"
    settings = load_settings(None, ["task.name=gsm8k", "policy.model=nowhere", own])
    with pytest.raises(ValueError, match="LONE' cannot be sampled from by several ranks"):
        aipo.train(settings)
