"""verl's agent loop `aipo`: a real server answers, every token has its source, and no failure leaves it.

verl's client is scripted; its base class, configuration and outputs, the agents' HTTP and grading are real.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aipo.core.tokens import TokenStream, stripped_copy
from aipo.core.types import KNOWLEDGE, PAPER_AGENTS, Condition, ConsultOutcome, Source, Verdict
from support.episodes import Answering
from support.servers import ChatServer, Fault, chat_server
from support.tokenizers import NOTICE_WORDS, WORDS, word_level

pytest.importorskip("verl", reason="verl is not installed: scripts/verl.sh makes its environment")
pytest.importorskip(
    "transfer_queue", reason="verl's transfer queue is not installed: scripts/verl.sh makes its environment"
)
pytestmark = pytest.mark.verl

from aipo.integrations.verl.about import member_of  # noqa: E402
from aipo.integrations.verl.agent_loop import AipoAgentsLoop, AipoSoloLoop  # noqa: E402
from aipo.integrations.verl.groups import stream_of  # noqa: E402
from support.verl import (  # noqa: E402
    ROW,
    SAMPLING,
    ScriptedClient,
    forget_parts,
    loop_of,
    verls_configuration,
    with_agents,
)

ASKS = "dogs 2 <knowledge> spider </knowledge> 8 <end>"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _fresh_parts() -> Iterator[None]:
    forget_parts()
    yield
    forget_parts()


class Setting:
    """A tokenizer saved as a policy's, verl's configuration, and loops over scripted words."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.tokenizer = word_level(words=(*WORDS, *NOTICE_WORDS, "total"))
        self.policy = folder / "policy"
        self.tokenizer.save_pretrained(self.policy)
        self.config = verls_configuration(folder, self.policy, *overrides)
        if not any(change.startswith("agents.") for change in overrides):
            with_agents(self.config, dict.fromkeys(PAPER_AGENTS, Answering()))

    def client(self, text: str) -> ScriptedClient:
        return ScriptedClient(self.tokenizer, self.tokenizer.encode(text, add_special_tokens=False))

    def run(self, client: Any, kind: Any = None, **row: Any) -> Any:
        loop = loop_of(self.config, self.tokenizer, client, *([kind] if kind else []))
        return asyncio.run(loop.run(dict(SAMPLING), **ROW | row))


def remote(url: str, timeout_s: float = 5.0) -> list[str]:
    return [
        "agents.backend=remote",
        f"agents.base_url={url}",
        "agents.model=m",
        "agents.retries=0",
        f"agents.timeout_s={timeout_s}",
        "agents.cache=false",
    ]


def stream(output: Any) -> TokenStream:
    return stream_of(output.prompt_ids, output.response_ids, output.token_sources, output.response_logprobs)


def about(output: Any) -> SimpleNamespace:
    """Return what the trainer reads of a rollout."""
    member = member_of(output.extra_fields["aipo"], "id", stream(output))
    asked = member.rollout.consultations if member.rollout else ()
    return SimpleNamespace(
        member=member,
        verdict=member.grade.verdict,
        reason=member.grade.reason,
        condition=member.condition,
        outcomes=tuple(consultation.outcome for consultation in asked),
    )


def test_a_real_server_is_consulted_and_every_token_has_its_source(
    tmp_path: Path, server: ChatServer
) -> None:
    setting = Setting(tmp_path, *remote(server.url()))
    client = setting.client(ASKS)
    output = setting.run(client)
    assert about(output).outcomes == (ConsultOutcome.ANSWERED,) and len(server.asked) == 1
    sources = output.token_sources
    fields = (output.response_ids, output.response_logprobs, output.response_mask)
    assert [len(each) for each in fields] == [len(sources)] * 3
    inserted = [i for i, s in enumerate(sources) if s == Source.FEEDBACK]
    words = setting.tokenizer.decode([output.response_ids[i] for i in inserted])
    assert words == "<feedback> spider 8 </feedback>"
    assert output.response_mask == [int(s == Source.POLICY) for s in sources]
    assert all(output.response_logprobs[i] == 0.0 for i in inserted)
    assert all(output.response_logprobs[i] < 0 for i, s in enumerate(sources) if s == Source.POLICY)


def test_ids_are_appended_and_never_encoded_again(tmp_path: Path, server: ChatServer) -> None:
    setting = Setting(tmp_path, *remote(server.url()))
    client = setting.client(ASKS)
    output = setting.run(client)
    (first, before, _), (second, after, parameters) = client.requests
    assert first == second  # one server and its prefix cache
    assert after[: len(before)] == before
    assert [*output.prompt_ids, *output.response_ids][: len(after)] == after
    assert parameters["stop"] == ["</verify>", "</knowledge>", "</reasoning>"]
    assert parameters["include_stop_str_in_output"] and parameters["logprobs"] is True
    assert parameters["skip_special_tokens"] is False  # or a tag that is a special token stops nothing
    assert parameters["stop_token_ids"] == [setting.tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault.NEVER, ConsultOutcome.TIMEOUT),
        (Fault.DRIP, ConsultOutcome.TIMEOUT),
        (Fault.REFUSED, ConsultOutcome.AGENT_ERROR),
        (Fault.CLOSES, ConsultOutcome.AGENT_ERROR),
        (Fault.INVALID_JSON, ConsultOutcome.AGENT_ERROR),
        (Fault.LONG_ERROR, ConsultOutcome.AGENT_ERROR),
        (Fault.EMPTY, ConsultOutcome.EMPTY),
        (Fault.OUR_TAGS, ConsultOutcome.ANSWERED),
    ],
)
def test_no_agent_failure_leaves_the_loop(
    tmp_path: Path, server: ChatServer, fault: Fault, outcome: ConsultOutcome
) -> None:
    setting = Setting(tmp_path, *remote(server.url(fault), timeout_s=1.0))
    output = setting.run(setting.client(ASKS))
    assert about(output).outcomes == (outcome,)
    assert about(output).verdict is not Verdict.UNGRADED
    if outcome is not ConsultOutcome.ANSWERED:
        assert Source.FEEDBACK not in output.token_sources and Source.SCAFFOLD in output.token_sources
    if fault is Fault.OUR_TAGS:  # a forged tag in a reply changes no source
        both = zip(output.response_ids, output.token_sources, strict=True)
        ids = [i for i, s in both if s == Source.FEEDBACK]
        assert setting.tokenizer.decode(ids[1:-1]).count("<") == 0


def test_an_agent_of_your_own_that_raises_anything_is_an_outcome(tmp_path: Path) -> None:
    class Broken:
        name = KNOWLEDGE

        async def answer(self, query: Any) -> Any:
            raise SystemError("bug")

    setting = Setting(tmp_path)
    with_agents(setting.config, dict.fromkeys(PAPER_AGENTS, Broken()))
    assert about(setting.run(setting.client(ASKS))).outcomes == (ConsultOutcome.AGENT_ERROR,)


def test_a_groups_first_rollouts_consult_and_the_others_are_solo(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    conditions, prompts = [], []
    for session in range(4):
        client = setting.client(ASKS)
        output = setting.run(client, session_id=session)
        conditions.append(about(output).condition)
        prompts.append(setting.tokenizer.decode(output.prompt_ids))
        assert ("stop" in client.requests[0][2]) == (conditions[-1] is Condition.CONSULTING)
    assert conditions == [Condition.CONSULTING] * 2 + [Condition.SOLO] * 2
    assert len(set(prompts)) == 2 and prompts[0] == prompts[1] != prompts[2]


def test_a_copy_can_be_made_of_what_the_record_holds(tmp_path: Path) -> None:
    """Behind the solo prompt stands what was said, without the request and the tags."""
    setting = Setting(tmp_path)
    output, alone = setting.run(setting.client(ASKS)), setting.run(setting.client(ASKS), session_id=3)
    table, made = output.extra_fields["aipo"], about(output).member.rollout
    copy = stripped_copy(stream(output), made.consult_spans, table["solo_prompt_ids"])
    assert list(copy.ids[: copy.prompt_length]) == alone.prompt_ids
    assert setting.tokenizer.decode(copy.ids[copy.prompt_length :]) == "dogs 2 spider 8 8 <end>"
    assert alone.extra_fields["aipo"]["solo_prompt_ids"] == []


def test_the_solo_share_is_that_of_the_step(tmp_path: Path) -> None:
    setting = Setting(tmp_path, "rollout.solo_fraction_end=1.0", "train.steps=3")
    by_step = [
        [about(setting.run(setting.client(ASKS), session_id=n, global_steps=step)).condition for n in (0, 1)]
        for step in (1, 3)
    ]
    assert by_step == [[Condition.CONSULTING] * 2, [Condition.SOLO] * 2]


def test_the_session_behind_the_rollouts_is_the_expert(tmp_path: Path) -> None:
    setting = Setting(tmp_path, "rollout.experts_per_prompt=1")
    client = setting.client(ASKS)
    problem = ROW["extra_info"]["problem"] | {"more": json.dumps({"solution": "total 8"})}
    output = setting.run(client, session_id=4, extra_info={"problem": problem})
    assert client.requests == [] and output.extra_fields["aipo"]["expert"] is True
    assert setting.tokenizer.decode(output.response_ids) == "total 8 <end>"
    assert set(output.token_sources) == {int(Source.FEEDBACK)} and not any(output.response_mask)
    assert setting.config.actor_rollout_ref.rollout.n == 5
    with pytest.raises(ValueError, match="no solution"):
        setting.run(client, session_id=4)


def brief(response: str, row: Any, rollout: Any) -> float:
    """A reward of a user's own: it sees the row of the user's file."""
    return 0.25 if row["weight"] == 2 and rollout.verdict is Verdict.CORRECT else 0.0


def test_a_reward_of_ones_own_is_what_is_learnt_from(tmp_path: Path) -> None:
    setting = Setting(tmp_path, f"task.reward={__name__}:brief")
    problem = ROW["extra_info"]["problem"] | {"more": json.dumps({"row": {"weight": 2}})}
    right = setting.run(setting.client("total 8 0 0 <end>"), session_id=3, extra_info={"problem": problem})
    assert right.reward_score == 0.25 and about(right).verdict is Verdict.CORRECT
    assert about(right).member.grade.reward == 0.25


def test_the_solo_loop_reaches_no_agent_and_the_other_always_does(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    solo = setting.run(setting.client(ASKS), AipoSoloLoop, session_id=0)
    helped = setting.run(setting.client(ASKS), AipoAgentsLoop, session_id=3)
    assert about(solo).outcomes == () and about(solo).condition is Condition.SOLO
    assert about(helped).outcomes == (ConsultOutcome.ANSWERED,)


def test_the_verdict_is_the_tasks_own(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    right = setting.run(setting.client("total 8 0 0 <end>"), session_id=3)
    wrong = setting.run(setting.client("total 4 0 0 <end>"), session_id=3)
    assert (right.reward_score, wrong.reward_score) == (1.0, 0.0)
    assert right.extra_fields["reward_extra_info"] == {"acc": 1.0, "ungraded": 0.0}


def lost(message: str) -> Any:
    def change(answer: Any) -> Any:
        raise ValueError(message)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lost("no headroom"), "no headroom"),
        (lambda answer: answer.model_copy(update={"token_ids": [], "stop_reason": "aborted"}), "aborted"),
        (lambda answer: answer.model_copy(update={"log_probs": None}), "calculate_log_probs"),
        (lambda answer: answer.model_copy(update={"log_probs": answer.log_probs[:-1]}), "log-probabilities"),
    ],
)
def test_a_server_that_fails_makes_an_ungraded_row_that_trains_nothing(
    tmp_path: Path, change: Any, reason: str
) -> None:
    setting = Setting(tmp_path)
    client = setting.client(ASKS)
    client.change = change
    output = setting.run(client)
    assert about(output).verdict is Verdict.UNGRADED and reason in about(output).reason
    assert set(output.token_sources) == {int(Source.SCAFFOLD)} and not any(output.response_mask)
    assert "acc" not in output.extra_fields["reward_extra_info"]
    assert output.extra_fields["min_global_steps"] == ROW["global_steps"]


def test_what_goes_into_the_data_plane_is_a_tensor_for_each_response_token(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    output = setting.run(setting.client(ASKS))
    fields = output.as_dict()
    for name in ("token_sources", "rollout_log_probs", "response_mask", "rm_scores"):
        assert isinstance(fields[name], torch.Tensor) and fields[name].shape == fields["responses"].shape
    assert fields["extra_fields"]["aipo"]["condition"] == "consulting"
    assert (fields["extra_fields"]["min_global_steps"], fields["extra_fields"]["max_global_steps"]) == (2, 3)


def test_a_row_of_another_dataset_says_how_to_write_one(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    with pytest.raises(ValueError, match="aipo data export"):
        setting.run(setting.client(ASKS), extra_info={"index": 0})


def test_a_configuration_that_spoils_the_objective_is_refused_in_this_process_too(tmp_path: Path) -> None:
    from aipo.integrations.verl.refusals import RefusedError

    setting = Setting(tmp_path)
    setting.config.actor_rollout_ref.rollout.calculate_log_probs = False
    with pytest.raises(RefusedError, match="calculate_log_probs"):
        setting.run(setting.client(ASKS))


def test_thirty_two_rollouts_wait_for_their_agents_at_the_same_time(
    tmp_path: Path, server: ChatServer
) -> None:
    server.latency_s = 0.2
    setting = Setting(tmp_path, *remote(server.url()), "agents.concurrency=64")

    async def together() -> list[Any]:
        loops = [loop_of(setting.config, setting.tokenizer, setting.client(ASKS)) for _ in range(32)]
        return await asyncio.gather(*(loop.run(dict(SAMPLING), **ROW) for loop in loops))

    outputs = asyncio.run(together())
    assert all(about(output).outcomes == (ConsultOutcome.ANSWERED,) for output in outputs)
    assert server.most_at_once > 8
