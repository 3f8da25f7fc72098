"""The vLLM client against a twin over real HTTP: what is asked, what is believed, what is refused.

tests/real_server asks the same of a real server (scripts/vllm.sh); this runs everywhere.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aipo.core.types import StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest, Sampling, WeightSink
from aipo.engines.link import HttpLink
from aipo.engines.transformers import TransformersEngine
from aipo.engines.vllm import VllmEngine, VllmSettings
from aipo.engines.vllm_facts import refuse_other_policy
from support.policies import random_policy
from support.vllm_twin import Twin


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_policy(tmp_path_factory, "qwen2.5")


@pytest.fixture(scope="module")
def tokenizer(policy: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(policy)


@pytest.fixture
def model(policy: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()


@pytest.fixture
def twin(policy: Path) -> Iterator[Twin]:
    with Twin(policy) as twin:
        yield twin


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def engine_of(twin: Twin, model: PreTrainedModel, **more: Any) -> VllmEngine:
    link = HttpLink(twin.url, timeout_s=20, concurrency=more.pop("concurrency", 64))
    return VllmEngine(link, model, twin.tokenizer, VllmSettings(**more))


async def ready(engine: VllmEngine, model: PreTrainedModel, version: int = 0) -> VllmEngine:
    await engine.connect()
    await engine.load_weights(model.save_pretrained, version)
    return engine


def ask(session: int = 0, new: int = 12, **more: Any) -> GenerationRequest:
    ids = tuple(range(40, 60 + session))
    return GenerationRequest(session=f"s{session}", prefix_ids=ids, max_new_tokens=new, seed=session, **more)


def sample(twin: Twin, model: PreTrainedModel, *requests: GenerationRequest) -> list[Completion]:
    async def all_of() -> list[Completion]:
        engine = await ready(engine_of(twin, model), model)
        return list(await asyncio.gather(*(engine.generate(request) for request in requests)))

    return list(run(all_of()))


def true_log_probs(
    model: PreTrainedModel, request: GenerationRequest, completion: Completion, temperature: float = 1.0
) -> list[float]:
    ids = [*request.prefix_ids, *completion.ids]
    with torch.no_grad():
        log_p = (model(torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)
    start = len(request.prefix_ids)
    return [float(log_p[start + i - 1, token]) for i, token in enumerate(completion.ids)]


def error_of(coroutine: Coroutine[Any, Any, Any]) -> str:
    with pytest.raises(EngineError) as caught:
        run(coroutine)
    return str(caught.value)


# completions


def test_ids_and_log_probabilities_are_the_policys(twin: Twin, model: PreTrainedModel) -> None:
    requests = [ask(i) for i in range(8)]
    for request, completion in zip(requests, sample(twin, model, *requests), strict=True):
        assert completion.log_probs == pytest.approx(true_log_probs(model, request, completion), abs=1e-4)
        assert completion.weights_version == 0


def test_a_stop_string_ends_with_the_token_that_completes_it(twin: Twin, model: PreTrainedModel) -> None:
    [free] = sample(twin, model, ask(new=30))
    text = [twin.tokenizer.decode(free.ids[: n + 1]) for n in range(len(free.ids))]
    stop = text[-1][-6:-3]  # across token boundaries, as the tokens are short
    expected = next(n for n, words in enumerate(text) if stop in words) + 1
    [stopped] = sample(twin, model, ask(new=30, stop=(stop,)))
    assert stopped.ids == free.ids[:expected] and stopped.stop is StopReason.STOP_STRING
    assert len(stopped.log_probs) == expected


def test_what_a_server_wrote_past_a_stop_string_is_cut(
    twin: Twin, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    [free] = sample(twin, model, ask(new=30))
    stop = twin.tokenizer.decode(free.ids[3:5])
    original = TransformersEngine.generate

    async def deaf(engine: TransformersEngine, request: GenerationRequest) -> Completion:
        return await original(engine, replace(request, stop=()))

    monkeypatch.setattr(TransformersEngine, "generate", deaf)
    [cut] = sample(twin, model, ask(new=30, stop=(stop,)))
    assert cut.stop is StopReason.STOP_STRING and len(cut.ids) == len(cut.log_probs) <= 5
    assert stop in twin.tokenizer.decode(cut.ids) and stop not in twin.tokenizer.decode(cut.ids[:-1])


def test_an_end_of_turn_id_ends_the_turn_and_is_kept(twin: Twin, model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight[twin.tokenizer.eos_token_id] *= 12
    completions = sample(twin, model, *(ask(i, new=200) for i in range(4)))
    assert StopReason.END in {completion.stop for completion in completions}
    for completion in completions:
        ended = completion.stop is StopReason.END
        assert (completion.ids[-1] == twin.tokenizer.eos_token_id) == ended
        assert twin.tokenizer.eos_token_id not in completion.ids[:-1]


def test_draws_depend_on_seed_and_prefix_not_on_concurrency(twin: Twin, model: PreTrainedModel) -> None:
    together = sample(twin, model, *(ask(i) for i in range(6)))
    alone = [sample(twin, model, ask(i))[0] for i in range(6)]
    assert [c.ids for c in together] == [c.ids for c in alone]
    assert len({c.ids for c in together}) == 6
    seeds = [body["seed"] for body in twin.completions()]
    assert len(set(seeds)) == 6 and all(0 <= seed < 2**63 for seed in seeds)


def test_nothing_is_left_to_a_servers_defaults(twin: Twin, model: PreTrainedModel) -> None:
    sample(twin, model, ask())
    [body] = twin.completions()
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert {name: body[name] for name in neutral} == neutral
    assert body["stop_token_ids"] == [twin.tokenizer.eos_token_id] and body["ignore_eos"] is True
    assert body["skip_special_tokens"] is False and body["include_stop_str_in_output"] is True
    assert body["return_token_ids"] is True and body["prompt"] == list(range(40, 60))


def test_no_more_requests_at_once_than_allowed(twin: Twin, model: PreTrainedModel) -> None:
    async def most() -> int:
        engine = await ready(engine_of(twin, model, concurrency=3), model)
        at_once = [0, 0]

        def counted(body: dict[str, Any]) -> None:
            at_once[0] += 1
            at_once[1] = max(at_once)

        twin.fault = counted  # type: ignore[assignment]
        original = twin._sent

        async def sent(*arguments: Any) -> bool:
            at_once[0] -= 1
            return await original(*arguments)

        twin._sent = sent  # type: ignore[method-assign]
        await asyncio.gather(*(engine.generate(ask(i)) for i in range(9)))
        return at_once[1]

    assert run(most()) == 3


# bans


def test_banned_ids_are_never_sampled(twin: Twin, model: PreTrainedModel) -> None:
    [free] = sample(twin, model, ask(new=20))
    banned = tuple((i,) for i in sorted(set(free.ids))[:5])
    [kept] = sample(twin, model, ask(new=20, banned_sequences=banned))
    assert not {i for (i,) in banned} & set(kept.ids)
    assert twin.completions()[-1]["logit_bias"] == {str(i): -100.0 for (i,) in banned}


def test_longer_sequences_are_banned_as_words(twin: Twin, model: PreTrainedModel) -> None:
    sequence = tuple(twin.tokenizer.encode("hello", add_special_tokens=False))
    assert len(sequence) > 1
    sample(twin, model, ask(banned_sequences=(sequence,)))
    assert twin.completions()[-1]["bad_words"] == ["hello"]


@pytest.mark.parametrize("spelling", ["other ids than the tokenizer's own", "leading space", "begun already"])
def test_what_a_server_cannot_ban_is_refused(twin: Twin, model: PreTrainedModel, spelling: str) -> None:
    # A word that the tokenizer has whole, letter by letter.
    words = (token for token in twin.tokenizer.get_vocab() if token.isascii() and token.isalpha())
    whole = max(words, key=len)
    letters = tuple(twin.tokenizer.convert_tokens_to_ids(letter) for letter in whole)
    encoded = tuple(twin.tokenizer.encode("hello", add_special_tokens=False))
    spaced = tuple(twin.tokenizer.encode(" hello", add_special_tokens=False))
    if spelling == "begun already":
        request = GenerationRequest(
            session="s", prefix_ids=(40, 41, *encoded[:-1]), max_new_tokens=5, banned_sequences=(encoded,)
        )
        assert "the prefix ends inside 'hello'" in error_of(_one(twin, model, request))
    else:
        banned = spaced if spelling == "leading space" else letters
        message = error_of(_one(twin, model, ask(banned_sequences=(banned,))))
        assert "cannot be banned on a vLLM server" in message


def test_a_ban_that_a_server_ignored_is_seen(twin: Twin, model: PreTrainedModel) -> None:
    [free] = sample(twin, model, ask())
    request = ask(banned_sequences=((free.ids[2],),))

    async def ignoring() -> Completion:
        engine = await ready(engine_of(twin, model), model)
        engine._bans = lambda request: {}  # type: ignore[method-assign]
        return await engine.generate(request)

    assert f"holds banned ids [{free.ids[2]}]" in error_of(ignoring())


async def _one(twin: Twin, model: PreTrainedModel, request: GenerationRequest) -> Completion:
    engine = await ready(engine_of(twin, model), model)
    return await engine.generate(request)


# log-probabilities


@pytest.mark.parametrize(
    ("mode", "sampling", "banned", "fix"),
    [
        ("raw_logprobs", Sampling(temperature=0.7), (), "--logprobs-mode processed_logprobs"),
        ("raw_logprobs", Sampling(), ((40,),), "rollout.banned_fraction = 0"),
        ("processed_logprobs", Sampling(top_p=0.9), (), "--logprobs-mode raw_logprobs"),
        ("processed_logprobs", Sampling(temperature=0.7, top_k=5), (), "--logprobs-mode raw_logprobs"),
        ("processed_logprobs", Sampling(), ((40, 41),), "bans of several tokens"),
        ("raw_logprobs", Sampling(temperature=0.001), (), "below vLLM's lowest"),
    ],
)
def test_log_probabilities_of_another_distribution_are_refused(
    twin: Twin, model: PreTrainedModel, mode: str, sampling: Sampling, banned: Any, fix: str
) -> None:
    twin.mode = mode
    assert fix in error_of(_one(twin, model, ask(sampling=sampling, banned_sequences=banned)))


@pytest.mark.parametrize(
    ("mode", "sampling"),
    [
        ("raw_logprobs", Sampling(temperature=0.7, exact_log_probs=False)),
        ("raw_logprobs", Sampling(top_p=0.5, top_k=9)),
        ("processed_logprobs", Sampling(temperature=0.7)),
    ],
)
def test_log_probabilities_that_are_right_or_not_read_are_taken(
    twin: Twin, model: PreTrainedModel, mode: str, sampling: Sampling
) -> None:
    twin.mode = mode
    assert run(_one(twin, model, ask(sampling=sampling))).ids


# weights


def test_new_weights_change_output_and_version(twin: Twin, model: PreTrainedModel) -> None:
    async def before_and_after() -> list[Completion]:
        engine = await ready(engine_of(twin, model), model, version=3)
        assert isinstance(engine, WeightSink)
        before = await engine.generate(ask())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        await engine.load_weights(model.save_pretrained, 4)
        return [before, await engine.generate(ask())]

    before, after = run(before_and_after())
    assert (before.weights_version, after.weights_version) == (3, 4)
    assert after.log_probs == pytest.approx(true_log_probs(model, ask(), after), abs=1e-4)
    assert after.log_probs != pytest.approx(before.log_probs, abs=1e-3)
    paths = [path for path, _ in twin.requests]
    update = paths[len(paths) - 1 - paths[::-1].index("/collective_rpc") - 1 :]
    assert update[:4] == [
        "/update_weight_version",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
    ]


def test_no_weights_are_left_lying_about(twin: Twin, model: PreTrainedModel, tmp_path: Path) -> None:
    async def twice(engine: VllmEngine) -> None:
        await ready(engine, model)
        twin.refuse_weights = True
        await engine.load_weights(model.save_pretrained, 1)

    message = error_of(twice(engine_of(twin, model, weights_folder=tmp_path)))
    assert "/collective_rpc answered 500: Call to collective_rpc method failed" in message
    assert not list(tmp_path.iterdir())


def test_after_a_failed_change_of_weights_nothing_is_sampled(twin: Twin, model: PreTrainedModel) -> None:
    async def broken() -> Completion:
        engine = await ready(engine_of(twin, model), model)
        twin.refuse_weights = True
        with pytest.raises(EngineError):
            await engine.load_weights(model.save_pretrained, 1)
        assert "loading" in twin.version
        return await engine.generate(ask())

    assert "was given no weights" in error_of(broken())


def test_another_runs_weights_are_noticed(twin: Twin, model: PreTrainedModel) -> None:
    async def two_runs() -> Completion:
        first = await ready(engine_of(twin, model), model)
        await ready(engine_of(twin, model), model)
        return await first.generate(ask())

    assert "give each run a server of its own" in error_of(two_runs())


def test_one_question_confirms_many_completions(twin: Twin, model: PreTrainedModel) -> None:
    sample(twin, model, *(ask(i) for i in range(24)))
    asked = sum(path == "/weight_info" for path, _ in twin.requests)
    assert 1 <= asked < 24


def test_a_link_serves_one_event_loop_after_another(twin: Twin, model: PreTrainedModel) -> None:
    engine = engine_of(twin, model)
    run(ready(engine, model))
    assert run(engine.generate(ask())).ids == run(engine.generate(ask())).ids


# which server


@pytest.mark.parametrize(
    ("url", "words"),
    [("nonsense", "is not a URL"), ("ftp://x", "is not a URL"), ("http://127.0.0.1:1", "cannot be reached")],
)
def test_an_address_without_a_server_is_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, url: str, words: str
) -> None:
    async def connected() -> None:
        await VllmEngine(HttpLink(url, timeout_s=5, concurrency=1), model, tokenizer).connect()

    message = error_of(connected())
    assert words in message and url in message


def test_a_server_of_another_tokenizer_is_refused(
    twin: Twin, model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = AutoTokenizer.from_pretrained(random_policy(tmp_path_factory, "qwen2.5"))
    other.add_tokens(["13"])

    async def compared() -> None:
        facts = await engine_of(twin, model).connect()
        await refuse_other_policy(
            HttpLink(twin.url, timeout_s=5, concurrency=1), facts, model.config, other, []
        )

    assert "whose tokenizer is not policy.model's" in error_of(compared())


def test_a_server_of_another_size_is_refused(twin: Twin, model: PreTrainedModel) -> None:
    async def compared() -> None:
        facts = await engine_of(twin, model).connect()
        link = HttpLink(twin.url, timeout_s=5, concurrency=1)
        await refuse_other_policy(link, facts, model.config, twin.tokenizer, ["<verify>"])
        model.config.hidden_size = 64
        await refuse_other_policy(link, facts, model.config, twin.tokenizer, ["<verify>"])

    assert "with hidden_size = 48, policy.model has 64" in error_of(compared())


def test_the_key_is_sent_and_never_said(
    twin: Twin, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    async def connected() -> None:
        link = HttpLink("http://127.0.0.1:1", timeout_s=5, concurrency=1, key="secret-key")
        await VllmEngine(link, model, tokenizer).connect()

    assert "secret-key" not in error_of(connected())


def test_a_cpu_server_that_a_long_prompt_would_kill_is_refused(twin: Twin, model: PreTrainedModel) -> None:
    twin.more = {"device_config": {"device": "cpu"}, "scheduler_config": {"enable_chunked_prefill": True}}
    assert "--no-enable-chunked-prefill" in error_of(engine_of(twin, model).connect())
    twin.more["scheduler_config"]["enable_chunked_prefill"] = False
    assert run(engine_of(twin, model).connect()).dtype == "float32"
