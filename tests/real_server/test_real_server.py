"""The policy behind a real vLLM server: what it samples is what the trainer computes, updates included."""

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from aipo.agents.base import AgentError, AgentFailure, AgentQuery
from aipo.agents.named import AGENTS
from aipo.agents.remote import ChatSampling, Endpoint, Prices, RemoteAgent
from aipo.agents.retry import RetryPolicy
from aipo.agents.scripted import ScriptedAgent
from aipo.assembly.parts import Parts, assemble
from aipo.config.loader import load_settings
from aipo.core.tokens import TokenStream
from aipo.core.types import KNOWLEDGE, PAPER_AGENTS, Condition, ConsultOutcome, Source, StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest, Sampling
from aipo.engines.vllm import VllmEngine
from aipo.engines.vllm_server import VllmServer
from aipo.rollout.group import GroupShape
from aipo.tasks.base import Split
from aipo.training.log_probs import token_log_probs
from support.policies import run_cli, succeed

KNOWN = "a spider has eight legs"
OWN = {KNOWLEDGE: ScriptedAgent(name=KNOWLEDGE, oracle=lambda *_: KNOWN)}


@pytest.fixture
def overrides(server: VllmServer) -> list[str]:
    return ["engine.start=false", f"engine.urls={server.url}"]


@pytest.fixture
def parts(recipe: Path, overrides: list[str]) -> Iterator[Parts]:
    parts = assemble(load_settings(recipe, overrides), OWN)
    yield parts
    parts.close()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def engine_of(parts: Parts) -> VllmEngine:
    engine = parts.sampler.engine
    assert isinstance(engine, VllmEngine)
    return engine


def ask(session: int, new: int = 48, **more: Any) -> GenerationRequest:
    return GenerationRequest(
        session=f"s{session}",
        prefix_ids=tuple(range(40, 70 + session)),
        max_new_tokens=new,
        seed=session,
        **more,
    )


def sample(parts: Parts, *requests: GenerationRequest) -> list[Completion]:
    async def all_of() -> list[Completion]:
        return list(await asyncio.gather(*map(engine_of(parts).generate, requests)))

    return list(run(all_of()))


@torch.no_grad()
def trainers(parts: Parts, ids: list[int], temperature: float = 1.0) -> list[float]:
    log_p, _ = token_log_probs(parts.model, torch.tensor([ids]), temperature)
    return list(log_p[0].tolist())


def error_of_stream(parts: Parts, stream: TokenStream) -> float:
    pairs = zip(trainers(parts, list(stream.ids)), stream.log_probs, stream.sources, strict=True)
    return max(abs(a - b) for a, b, source in pairs if source is Source.POLICY)


def test_log_probabilities_equal_the_trainers_to_1e_4(parts: Parts) -> None:
    requests = [ask(i) for i in range(48)]
    worst = 0.0
    for request, completion in zip(requests, sample(parts, *requests), strict=True):
        found = trainers(parts, [*request.prefix_ids, *completion.ids])[len(request.prefix_ids) :]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, completion.log_probs, strict=True)))
    print(f"largest difference {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(top_k=5), Sampling(top_p=0.5)])
def test_truncation_changes_draws_and_not_log_probabilities(parts: Parts, sampling: Sampling) -> None:
    request = ask(3, sampling=sampling)
    [completion] = sample(parts, request)
    found = trainers(parts, [*request.prefix_ids, *completion.ids])[len(request.prefix_ids) :]
    assert completion.log_probs == pytest.approx(found, abs=1e-4)
    assert completion.ids != sample(parts, ask(3))[0].ids


def test_draws_are_the_same_alone_and_beside_others(parts: Parts) -> None:
    together = sample(parts, *(ask(i) for i in range(16)))
    for i in (0, 7, 15):
        assert sample(parts, ask(i))[0].ids == together[i].ids


def test_stop_strings_across_token_boundaries(parts: Parts) -> None:
    tokenizer, stopped_early = parts.tokenizer, 0
    for i in range(8):
        [free] = sample(parts, ask(i))
        text = [tokenizer.decode(free.ids[: n + 1]) for n in range(len(free.ids))]
        for stop in (text[-1][9:12], text[-1][20:22]):  # cut out of the text: seldom whole tokens
            if "\ufffd" in stop:
                continue
            expected = next(n for n, words in enumerate(text) if stop in words) + 1
            [stopped] = sample(parts, ask(i, stop=(stop, "never said")))
            assert stopped.ids == free.ids[:expected], (stop, text[-1])
            assert stopped.stop is StopReason.STOP_STRING
            stopped_early += 1
    assert stopped_early > 4


def test_a_tag_that_is_one_special_token_stops_too(parts: Parts) -> None:
    end = parts.tokenizer.convert_tokens_to_ids("</knowledge>")
    everything_else = tuple((i,) for i in range(len(parts.tokenizer)) if i not in (end, 300, 301, 302))
    [stopped] = sample(parts, ask(1, stop=("</knowledge>",), banned_sequences=everything_else))
    assert stopped.stop is StopReason.STOP_STRING and stopped.ids[-1] == end and end not in stopped.ids[:-1]


def test_an_end_of_turn_id_is_kept(parts: Parts) -> None:
    end = parts.tokenizer.eos_token_id
    others = tuple((i,) for i in range(len(parts.tokenizer)) if i not in (end, 300, 301, 302))
    [ended] = sample(parts, ask(1, banned_sequences=others))
    assert ended.stop is StopReason.END and ended.ids[-1] == end and end not in ended.ids[:-1]
    assert set(ended.ids) <= {end, 300, 301, 302}


def test_longer_sequences_are_banned_where_the_server_can_do_it(parts: Parts) -> None:
    """A pair that was sampled is banned: its first id may stand, its second never behind it."""
    banned_ones = 0
    for i in range(12):
        [free] = sample(parts, ask(i))
        for pair in zip(free.ids, free.ids[1:], strict=False):
            word = parts.tokenizer.decode(pair)
            if word == word.lstrip() and parts.tokenizer.encode(word, add_special_tokens=False) == list(pair):
                [kept] = sample(parts, ask(i, banned_sequences=(pair,)))
                assert pair not in set(zip(kept.ids, kept.ids[1:], strict=False))
                banned_ones += 1
                break
    assert banned_ones > 2


def test_an_update_changes_output_version_and_what_the_prefix_cache_holds(parts: Parts) -> None:
    """The policy is taught to consult and does so through `rollout()`; its prompts were cached before."""
    problems = parts.task.problems(Split.TRAIN)[:2]
    shape = GroupShape(consulting=2, solo=1)
    groups = run(parts.sampler.groups(problems, shape, ("before",)))
    before = [m.rollout for g in groups for m in g.members if m.rollout]
    assert len(before) == 6 and {r.weights_version for r in before} == {0}
    assert max(error_of_stream(parts, r.stream) for r in before) < 1e-4
    assert min(r.stream.prompt_length for r in before) > 128  # at least one block of the cache
    teach(parts, [parts.sampler.prompts.ids(p, Condition.CONSULTING) for p in problems])
    run(engine_of(parts).load_weights(parts.model.save_pretrained, 7))
    groups = run(parts.sampler.groups(problems, shape, ("before",)))
    after = [m.rollout for g in groups for m in g.members if m.rollout]
    assert {r.weights_version for r in after} == {7}
    assert [r.stream.ids for r in after] != [r.stream.ids for r in before]
    assert max(error_of_stream(parts, r.stream) for r in after) < 1e-4
    answered = [c for r in after for c in r.consultations if c.outcome is ConsultOutcome.ANSWERED]
    assert answered and {(c.agent, c.request, c.reply) for c in answered} == {
        (KNOWLEDGE, "legs of a spider", KNOWN)
    }
    sources = {source for r in after for source in r.stream.sources}
    assert sources >= {Source.PROMPT, Source.POLICY, Source.FEEDBACK}


def teach(parts: Parts, prompts: list[tuple[int, ...]]) -> None:
    """Supervise one request and what follows the reply, until it is all but certain."""
    codec = parts.sampler.consult.codec
    request = parts.tokenizer.encode("<knowledge> legs of a spider </knowledge>", add_special_tokens=False)
    rest = [*parts.tokenizer.encode(" so it is 8", add_special_tokens=False), parts.tokenizer.eos_token_id]
    reply = [*codec.feedback(KNOWN, 32).ids, *rest]
    rows = [torch.tensor([[*prompt, *request, *reply]]) for prompt in prompts]
    optimiser = torch.optim.Adam(parts.model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = torch.tensor(0.0)
        for row, prompt in zip(rows, prompts, strict=True):
            log_p, _ = token_log_probs(parts.model, row, 1.0)
            loss = loss - log_p[0, len(prompt) :].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    parts.model.requires_grad_(False)


def test_weights_of_another_shape_are_an_error_and_nothing_is_sampled_then(
    parts: Parts, tmp_path: Path
) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"nonsense")

    engine = engine_of(parts)
    with pytest.raises(EngineError, match="collective_rpc"):
        run(engine.load_weights(write, 9))
    with pytest.raises(EngineError, match="was given no weights"):
        run(engine.generate(ask(0)))
    run(engine.load_weights(parts.model.save_pretrained, 10))
    [completion] = sample(parts, ask(0))
    assert completion.weights_version == 10


def test_a_prompt_that_does_not_fit_is_refused(parts: Parts) -> None:
    with pytest.raises(EngineError, match="larger --max-model-len"):
        sample(
            parts, GenerationRequest(session="s", prefix_ids=tuple(range(40, 90)) * 40, max_new_tokens=100)
        )


def test_the_same_server_answers_an_openai_style_chat_request(server: VllmServer, policy: Path) -> None:
    body = {
        "model": str(policy),
        "messages": [{"role": "system", "content": "Reply."}, {"role": "user", "content": "2 + 2?"}],
        "temperature": 0.7,
        "top_p": 0.8,
        "max_tokens": 12,
        "seed": 3,
    }
    answers = [
        httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json() for _ in range(2)
    ]
    [first, second] = [answer["choices"][0]["message"] for answer in answers]
    assert first["role"] == "assistant" and first["content"] and first["content"] == second["content"]
    assert answers[0]["usage"]["completion_tokens"] <= 12


@pytest.mark.parametrize("agent", PAPER_AGENTS)
def test_the_same_server_answers_our_remote_agent_and_what_it_says_is_paid_for(
    server: VllmServer, policy: Path, agent: str
) -> None:
    """A random policy keeps to no reply format: a failure of the agent, with its tokens and its cost."""
    remote = RemoteAgent(
        spec=AGENTS[agent],
        endpoint=Endpoint(base_url=f"{server.url}/v1"),
        model=str(policy),
        sampling=ChatSampling(temperature=0.7, top_p=0.8, max_tokens=12),
        retry=RetryPolicy(retries=0, first_wait_s=0.1),
        deadline_s=60,
        prices=Prices(prompt=1.0, completion=2.0),
    )
    query = AgentQuery(
        problem="How many legs have 2 dogs?", rollout="a dog has", request="legs of a dog", seed=3
    )
    with pytest.raises(AgentError) as caught:
        asyncio.run(remote.answer(query))
    assert caught.value.failure is AgentFailure.UNREADABLE
    usage = caught.value.usage
    assert usage.prompt_tokens > 20 and 0 < usage.completion_tokens <= 12
    assert usage.cost == pytest.approx((usage.prompt_tokens + 2 * usage.completion_tokens) / 1e6)


def test_a_server_of_another_model_is_refused_before_training(
    recipe: Path, overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    from support.policies import random_policy

    other = random_policy(tmp_path_factory, "qwen2.5")
    result = run_cli("train", recipe, *overrides, f"policy.model={other}", "agents.enabled=[]")
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert "serve the folder or hub id of policy.model" in said and "error:" in said
    assert not (recipe.parent / "run").exists()


def test_temperature_other_than_1_needs_processed_log_probabilities(
    recipe: Path, overrides: list[str]
) -> None:
    result = run_cli("train", recipe, *overrides, "rollout.temperature=0.8", "agents.enabled=[]")
    assert result.exit_code == 2
    assert "--logprobs-mode processed_logprobs" in " ".join(result.output.split())


def test_evaluation_in_both_solo_modes_at_another_temperature(recipe: Path, overrides: list[str]) -> None:
    result = succeed("evaluate", recipe, *overrides, "evaluate.temperature=0.6", "agents.enabled=[]")
    assert "unanswered" in result.output and "banned" in result.output


def test_the_doctor_finds_the_server_and_says_which_agent_behind_it_keeps_to_no_format(
    recipe: Path, overrides: list[str], server: VllmServer, policy: Path
) -> None:
    output = " ".join(succeed("doctor", recipe, *overrides, "agents.enabled=[]").output.split())
    assert "vllm, float32" in output and "sampler agrees" in output and "failed" not in output
    remote = ["agents.backend=remote", f"agents.base_url={server.url}/v1", f"agents.model={policy}"]
    result = run_cli("doctor", recipe, *overrides, *remote, "agents.max_reply_tokens=12")
    said = " ".join(result.output.split())
    assert result.exit_code == 1 and "agent knowledge" in said, result.output
    assert "FACT" in said and "cannot be reached" not in said
