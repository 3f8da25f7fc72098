"""What a process of verl rolls out with: the prompts, limits and agents of `aipo train`, or a user's own."""

from contextlib import closing
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from aipo.assembly.parts import assemble
from aipo.config.loader import load_settings
from aipo.core.registry import RegistryError
from aipo.core.types import Condition
from aipo.integrations.verl.parts import build, parts_of
from aipo.tasks.base import Split
from support.policies import random_policy

OWN = SimpleNamespace(task=None)


def own(table: object, tokenizer: object, processes: int) -> object:
    return OWN


def test_a_process_of_verl_has_what_aipo_train_has(tmp_path_factory: pytest.TempPathFactory) -> None:
    policy = random_policy(tmp_path_factory, "qwen2.5")
    settings = load_settings(
        None,
        [
            f"policy.model={policy}",
            "task.name=leg_counting",
            "agents.backend=oracle",
            "consult.max_feedback_tokens=16",
        ],
    )
    tokenizer = AutoTokenizer.from_pretrained(policy)
    there = build({"recipe": settings.model_dump(mode="json", exclude_none=True)}, tokenizer, processes=1)
    with closing(assemble(settings)) as here:
        problem = here.task.problems(Split.TRAIN)[0]
        for condition in (Condition.CONSULTING, Condition.SOLO):
            assert there.prompts.ids(problem, condition) == here.sampler.prompts.ids(problem, condition)
        ours, theirs = here.sampler.consult, there.consult
        for field in ("limits", "agent_timeout_s", "leak_policy"):
            assert getattr(ours, field) == getattr(theirs, field)
        assert ours.protocol.control_strings == theirs.protocol.control_strings
        assert list(ours.agents) == list(theirs.agents)
    assert tokenizer.eos_token_id in there.end_ids


def test_a_function_of_ones_own_builds_them_once_for_a_tokenizer() -> None:
    table, tokenizer = {"parts": f"{__name__}:own"}, object()
    assert parts_of(table, tokenizer, 2) is OWN
    assert parts_of({"parts": "not asked"}, tokenizer, 2) is OWN


def test_a_name_that_leads_nowhere_is_refused_with_the_nearest() -> None:
    with pytest.raises(RegistryError, match=r"aipo.parts = 'recpie' is not known; did you mean 'recipe'\?"):
        parts_of({"parts": "recpie"}, object(), 1)
