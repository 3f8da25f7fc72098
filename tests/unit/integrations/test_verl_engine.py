"""verl's servers behind our engine's interface: what is asked, what an answer means, what is an error."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from aipo.core.types import StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest, Sampling
from aipo.integrations.verl.engine import BAN_BIAS, VerlEngine

END = 9


class Client:
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self, ids: list[int], **more: Any) -> None:
        log_probs = [-0.5] * len(ids)
        given = {"token_ids": ids, "log_probs": log_probs, "stop_reason": "completed", "extra_fields": {}}
        self.answer = SimpleNamespace(**given | more)
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> Any:
        self.asked.append((request_id, prompt_ids, sampling_params))
        return self.answer


def text(ids: Any) -> str:
    return "".join(chr(ord("a") + i) for i in ids)


def engine_of(client: Any, timeout_s: float = 5.0) -> VerlEngine:
    return VerlEngine(client, text, frozenset({END}), timeout_s)


def generate(client: Any, **more: Any) -> Completion:
    values: dict[str, Any] = {"session": "s", "prefix_ids": (1, 2), "max_new_tokens": 3} | more
    return asyncio.run(engine_of(client).generate(GenerationRequest(**values)))


@pytest.mark.parametrize(
    ("ids", "stop", "reason"),
    [
        ([3, END], (), StopReason.END),
        ([3, 4], ("de",), StopReason.STOP_STRING),
        ([3, 4, 5], (), StopReason.LENGTH),
        ([3, 4, END], ("de",), StopReason.END),
    ],
)
def test_why_it_ended_is_read_off_the_ids(ids: list[int], stop: tuple[str, ...], reason: StopReason) -> None:
    completion = generate(Client(ids), stop=stop)
    assert completion.stop is reason and completion.ids == tuple(ids)
    assert completion.log_probs == (-0.5,) * len(ids)


@pytest.mark.parametrize(
    "client",
    [
        Client([3]),  # neither an end nor the limit
        Client([]),
        Client([3, END], stop_reason="aborted"),
        Client([3, END], log_probs=None),
        Client([3, END], log_probs=[-0.5]),
    ],
)
def test_an_answer_that_cannot_be_trained_on_is_an_error(client: Client) -> None:
    with pytest.raises(EngineError):
        generate(client)


def test_a_server_that_never_answers_is_an_error_within_the_deadline() -> None:
    class Silent:
        async def generate(self, *_: Any, **__: Any) -> Any:
            await asyncio.Event().wait()

    request = GenerationRequest(session="s", prefix_ids=(1,), max_new_tokens=3)
    with pytest.raises(EngineError, match="generate_timeout_s"):
        asyncio.run(engine_of(Silent(), timeout_s=0.05).generate(request))


def test_what_is_asked_is_exact_and_the_servers_own_defaults_do_not_count() -> None:
    client = Client([3, END])
    generate(client, stop=("x",), sampling=Sampling(temperature=0.7, top_p=1.0, top_k=0))
    _, prompt, parameters = client.asked[0]
    assert prompt == [1, 2]
    assert parameters == {
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "max_tokens": 3,
        "stop_token_ids": [END],
        "ignore_eos": True,
        "stop": ["x"],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


def test_single_tokens_can_be_banned_and_longer_sequences_are_an_error() -> None:
    client = Client([3, END])
    generate(client, banned_sequences=((4,), (5,)))
    assert client.asked[0][2]["logit_bias"] == {4: BAN_BIAS, 5: BAN_BIAS}
    with pytest.raises(EngineError, match="banned_fraction"):
        generate(client, banned_sequences=((4, 5),))


def test_the_weights_behind_an_answer_are_the_oldest() -> None:
    extra = {"min_global_steps": 4, "max_global_steps": 6}
    assert generate(Client([3, END], extra_fields=extra)).weights_version == 4
    assert generate(Client([3, END])).weights_version is None
