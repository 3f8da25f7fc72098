"""From settings to agents: own tables over common values, what is shared and recorded; local, hostile ones.

The local model is a real, tiny, random one with a chat template.
"""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aipo.agents.base import AgentError, AgentFailure, AgentQuery
from aipo.agents.cache import CachedAgent
from aipo.agents.local import LocalAgent, LocalModel, LocalModelError
from aipo.agents.misbehaving import HOSTILE_REPLIES, MisbehavingAgent, Misbehaviour
from aipo.agents.named import AGENTS
from aipo.agents.remote import ChatSampling, Prices, RemoteAgent
from aipo.agents.replies import Reading
from aipo.assembly.agents import build_agents, protocol_of
from aipo.config.loader import SettingsError, dump_settings, load_settings
from aipo.consult.codec import TagCodec
from aipo.core.types import PAPER_AGENTS, ConsultOutcome
from aipo.rollout.asking import ask
from aipo.training import journal
from aipo.training.journal import record_agents
from support.policies import random_policy
from support.tokenizers import byte_fallback_bpe, byte_level_bpe, word_level

V, K, R = PAPER_AGENTS
QUERY = AgentQuery(problem="two dogs", rollout="so", request="legs of a spider", seed=3)
REMOTE = ["agents.backend=remote", "agents.base_url=http://a:1/v1", "agents.model=common"]
PROTOCOL = protocol_of([AGENTS[name] for name in PAPER_AGENTS])


class TestSettings:
    def test_an_agents_own_table_wins_over_the_common_values(self, tmp_path: Path) -> None:
        recipe = tmp_path / "r.toml"
        recipe.write_text(
            '[agents]\nbackend = "remote"\nmodel = "common"\nbase_url = "http://a:1/v1"\nretries = 1\n'
            '[agents.verify]\nmodel = "own"\ntemperature = 0.0\n'
        )
        agents = load_settings(recipe, ["agents.knowledge.retries=0"]).agents
        assert [agents.of(name).model for name in PAPER_AGENTS] == ["own", "common", "common"]
        assert [agents.of(name).temperature for name in PAPER_AGENTS] == [0.0, 0.7, 0.7]
        assert [agents.of(name).retries for name in PAPER_AGENTS] == [1, 0, 1]

    def test_the_common_key_goes_to_the_common_address_only(self) -> None:
        own = ["agents.api_key_env=COMMON", "agents.verify.base_url=http://b:2/v1"]
        agents = load_settings(None, [*REMOTE, *own]).agents
        assert [agents.of(name).api_key_env for name in PAPER_AGENTS] == ["", "COMMON", "COMMON"]
        named = load_settings(None, [*REMOTE, *own, "agents.verify.api_key_env=OWN"]).agents
        assert named.of(V).api_key_env == "OWN"

    def test_settings_with_own_tables_survive_the_round_trip(self, tmp_path: Path) -> None:
        settings = load_settings(None, [*REMOTE, "agents.verify.model=own", "agents.reasoning.temperature=0"])
        path = tmp_path / "s.toml"
        path.write_text(dump_settings(settings))
        assert load_settings(path) == settings

    def test_agents_of_one_endpoint_share_its_lowest_limit(self, tmp_path: Path) -> None:
        own = ["agents.verify.concurrency=3", "agents.reasoning.base_url=http://b:2/v1"]
        settings = load_settings(None, [*REMOTE, *own, f"agents.cache_folder={tmp_path / 'cache'}"])
        agents = build_agents(settings, None).uncached
        assert all(isinstance(agent, RemoteAgent) for agent in agents.values())
        ends = [agents[name].endpoint for name in PAPER_AGENTS]  # type: ignore[attr-defined]
        assert ends[0] is ends[1] and ends[0].concurrency == 3
        assert ends[2].base_url == "http://b:2/v1" and ends[2].concurrency == 16

    def test_remote_and_local_agents_are_cached_unless_it_is_turned_off(self, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        settings = load_settings(
            None, [*REMOTE, "agents.verify.backend=dead", f"agents.cache_folder={folder}"]
        )
        agent_set = build_agents(settings, None)
        kinds = [isinstance(agent_set.agents[name], CachedAgent) for name in PAPER_AGENTS]
        assert kinds == [False, True, True] and set(agent_set.uncached) == {K, R}
        off = build_agents(settings, None, use_cache=False)
        assert not any(isinstance(agent, CachedAgent) for agent in off.agents.values())
        identities = {name: agent_set.agents[name].identity for name in (K, R)}  # type: ignore[attr-defined]
        sampled = ("temperature=0.1", "top_p=0.3", "max_reply_tokens=9", "extra_body={ top_k = 5 }")
        for change in ("model=x", "context=request", *sampled):
            other = load_settings(None, [*REMOTE, f"agents.cache_folder={folder}", f"agents.{change}"])
            assert build_agents(other, None).agents[K].identity != identities[K]  # type: ignore[attr-defined]

    @pytest.mark.parametrize(("field", "said"), [("seed", "settings of their own"), ("stream", "the form")])
    def test_more_fields_of_a_request_may_not_be_those_that_are_set_or_that_change_its_form(
        self, field: str, said: str
    ) -> None:
        with pytest.raises(SettingsError, match=f"extra_body.*{field}.*{said}"):
            load_settings(None, [*REMOTE, f"agents.verify.extra_body={{ {field} = 1 }}"])

    def test_the_scripted_agents_of_before_need_no_cache_and_no_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        settings = load_settings(None, ["agents.backend=hostile"])
        assert set(build_agents(settings, None).agents) == set(PAPER_AGENTS)
        assert list(tmp_path.iterdir()) == []


class TestRecord:
    def test_each_set_of_agents_is_recorded_with_its_first_step(self, tmp_path: Path) -> None:
        first, second = {"verify": {"prompt_sha256": "a"}}, {"verify": {"prompt_sha256": "b"}}
        assert not record_agents(tmp_path, 0, first)
        assert not record_agents(tmp_path, 7, first)
        assert record_agents(tmp_path, 7, second)
        entries = [(e["from_step"], e["agents"]) for e in json.loads((tmp_path / journal.AGENTS).read_text())]
        assert entries == [(1, first), (8, second)]
        assert record_agents(tmp_path, 3, first)  # steps 4 to 7 are made again, by other agents
        assert [e["from_step"] for e in json.loads((tmp_path / journal.AGENTS).read_text())] == [1, 4]


class TestMisbehaving:
    @pytest.mark.parametrize("build", [word_level, byte_level_bpe, byte_fallback_bpe])
    def test_no_hostile_reply_becomes_control_or_takes_long(self, build) -> None:
        codec = TagCodec(build(), PROTOCOL)
        begun = time.monotonic()
        for reply in HOSTILE_REPLIES:
            block = codec.feedback(reply, 64)
            start, end = block.content
            text = codec.text(block.ids[start:end])
            assert end - start <= 64 and not any(string in text for string in codec.forbidden)
            assert not any(c < " " and c not in "\n\t" for c in text)
        assert time.monotonic() - begun < 3

    def test_what_is_said_depends_on_the_seed_only_and_covers_all(self) -> None:
        for kind in (Misbehaviour.GARBAGE, Misbehaviour.HOSTILE):
            agent = MisbehavingAgent(V, kind)
            said = [
                asyncio.run(agent.answer(AgentQuery(problem="", rollout="", request="", seed=seed))).text
                for seed in range(80)
            ]
            again = [
                asyncio.run(agent.answer(AgentQuery(problem="p", rollout="r", request="q", seed=seed))).text
                for seed in range(80)
            ]
            assert said == again and len(set(said)) >= len(HOSTILE_REPLIES)
            assert kind is Misbehaviour.GARBAGE or set(said) == set(HOSTILE_REPLIES)

    def test_a_dead_agent_runs_into_the_deadline(self) -> None:
        answer = asyncio.run(ask(MisbehavingAgent(V, Misbehaviour.DEAD), QUERY, 0.05))
        assert answer.outcome is ConsultOutcome.TIMEOUT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return LocalModel(str(random_policy(tmp_path_factory, "qwen2.5")), "cpu")


class TestLocal:
    def agent(self, model: LocalModel, temperature: float = 1.0, tokens: int = 12) -> LocalAgent:
        how = ChatSampling(temperature=temperature, top_p=0.9, max_tokens=tokens)
        return LocalAgent(spec=AGENTS[K], model=model, sampling=how, prices=Prices(1.0, 2.0))

    def written(
        self, model: LocalModel, monkeypatch: pytest.MonkeyPatch, seeds: list[int], **how: float
    ) -> list[str]:
        """Return what the model wrote, unread: a random one knows no format."""
        monkeypatch.setattr("aipo.agents.spec.read_reply", lambda reader, text: Reading(text))
        agent = self.agent(model, **how)

        async def all_of_them() -> list[str]:
            queries = [AgentQuery(problem="p", rollout="r", request="q", seed=seed) for seed in seeds]
            return [reply.text for reply in await asyncio.gather(*map(agent.answer, queries))]

        return asyncio.run(all_of_them())

    def test_a_reply_depends_on_its_seed_and_on_nothing_else(
        self, model: LocalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = self.written(model, monkeypatch, [1, 2, 3])
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert self.written(model, monkeypatch, [3, 1, 2]) == [first[2], first[0], first[1]]
        assert len(set(first)) == 3

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_what_waits_is_answered_in_one_pass_as_it_is_one_by_one(
        self, model: LocalModel, monkeypatch: pytest.MonkeyPatch, temperature: float
    ) -> None:
        how = ChatSampling(temperature=temperature, top_p=0.9, max_tokens=24)
        chats = [[{"role": "user", "content": "pens and more " * n}] for n in (1, 30, 4, 12, 7)]

        async def together() -> list[tuple[str, int, int]]:
            return await asyncio.gather(*(model.write(chat, how, i) for i, chat in enumerate(chats)))

        alone = [asyncio.run(model.write(chat, how, i)) for i, chat in enumerate(chats)]
        widths: list[int] = []
        generate = model._model.generate
        monkeypatch.setattr(
            model._model, "generate", lambda **k: widths.append(len(k["input_ids"])) or generate(**k)
        )
        assert asyncio.run(together()) == alone
        assert widths == [5] and len({prompt for _, prompt, _ in alone}) == 5
        if temperature:  # with the greedy ones some end early
            assert len({text for text, _, _ in alone}) == 5

    def test_one_that_is_given_up_or_fails_takes_nothing_from_the_others(
        self, model: LocalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        how = ChatSampling(temperature=1.0, top_p=0.9, max_tokens=12)
        chat = [{"role": "user", "content": "pens"}]
        alone = asyncio.run(model.write(chat, how, 1))
        generate = model._model.generate

        def fails(**given: Any) -> Any:
            if len(given["input_ids"][0]) > 300:
                raise IndexError("too long for the model")
            return generate(**given)

        monkeypatch.setattr(model._model, "generate", fails)

        async def together() -> list[Any]:
            long = [{"role": "user", "content": "pens and more " * 400}]
            late = asyncio.create_task(model.write(chat, how, 2))
            asked = asyncio.gather(
                model.write(chat, how, 1), model.write(long, how, 3), return_exceptions=True
            )
            await asyncio.sleep(0)
            late.cancel()
            return [*await asked, *await asyncio.gather(late, return_exceptions=True)]

        fine, failed, cancelled = asyncio.run(together())
        assert fine == alone and isinstance(cancelled, asyncio.CancelledError)
        assert isinstance(failed, AgentError) and "too long for the model" in str(failed)

    def test_at_temperature_0_the_seed_does_not_matter(
        self, model: LocalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert len(set(self.written(model, monkeypatch, [1, 2, 3], temperature=0.0))) == 1

    def test_a_reply_in_no_format_is_an_error_that_was_paid_for(self, model: LocalModel) -> None:
        with pytest.raises(AgentError) as caught:
            asyncio.run(self.agent(model).answer(QUERY))
        assert caught.value.failure is AgentFailure.UNREADABLE
        assert caught.value.usage.prompt_tokens > 100 and 0 < caught.value.usage.completion_tokens <= 12
        assert caught.value.usage.cost > 0

    def test_a_deadline_stops_the_model_and_frees_its_thread(
        self, model: LocalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun = time.monotonic()
        with monkeypatch.context() as endless:
            endless.setattr(model._model.generation_config, "eos_token_id", 10**6)
            answer = asyncio.run(ask(self.agent(model, tokens=100_000), QUERY, 0.5))
        assert answer.outcome is ConsultOutcome.TIMEOUT
        with pytest.raises(AgentError):
            asyncio.run(self.agent(model).answer(QUERY))
        assert time.monotonic() - begun < 20
        assert sum(thread.name.startswith("local-agent") for thread in threading.enumerate()) == 1

    def test_a_model_without_a_chat_template_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("no-template")
        source = random_policy(tmp_path_factory, "qwen2.5")
        for file in source.iterdir():
            if file.name != "chat_template.jinja":
                (folder / file.name).symlink_to(file)
        with pytest.raises(LocalModelError, match="without a chat template"):
            LocalModel(str(folder), "cpu")
