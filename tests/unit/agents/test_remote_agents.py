"""Remote agents: what is sent, keys, costs, retries within the deadline, one limit an endpoint, the cache."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aipo.agents.base import AgentError, AgentFailure, AgentQuery, AgentReply, Usage
from aipo.agents.cache import CachedAgent, CacheError, ReplyStore
from aipo.agents.named import AGENTS
from aipo.agents.prompting import Context
from aipo.agents.remote import ChatSampling, Endpoint, Prices, RemoteAgent
from aipo.agents.retry import RetryPolicy
from aipo.core.types import PAPER_AGENTS
from support.servers import RETRY_AFTER_S, ChatServer, Fault, chat_server

V, K, R = PAPER_AGENTS
QUERY = AgentQuery(problem="two dogs", rollout="so", request="legs of a spider", seed=2**62 + 5)


@pytest.fixture(scope="module")
def running() -> Iterator[ChatServer]:
    with chat_server() as server:
        yield server


@pytest.fixture
def server(running: ChatServer) -> ChatServer:
    running.forget()
    running.most_at_once, running.latency_s = 0, 0.0
    return running


def agent_at(endpoint: Endpoint, name: str = K, retries: int = 3, deadline_s: float = 5.0) -> RemoteAgent:
    how = ChatSampling(temperature=0.7, top_p=0.8, max_tokens=64)
    policy = RetryPolicy(retries, first_wait_s=0.01)
    return RemoteAgent(
        spec=AGENTS[name],
        endpoint=endpoint,
        model="m",
        sampling=how,
        retry=policy,
        deadline_s=deadline_s,
        prices=Prices(1.0, 2.0),
    )


def ask(agent: RemoteAgent | CachedAgent, query: AgentQuery = QUERY) -> AgentReply:
    return asyncio.run(agent.answer(query))


class TestRequests:
    def test_model_sampling_and_seed_are_sent_and_the_reply_is_read_and_priced(
        self, server: ChatServer
    ) -> None:
        for name in PAPER_AGENTS:
            reply = ask(agent_at(Endpoint(base_url=server.url()), name))
            assert "spider 8" in reply.text
            assert reply.usage == Usage(prompt_tokens=70, completion_tokens=30, cost=pytest.approx(130 / 1e6))
            assert reply.approves is (False if name is V else None)
        body = server.asked[-1].body
        assert {k: v for k, v in body.items() if k != "messages"} == {
            "model": "m",
            "temperature": 0.7,
            "top_p": 0.8,
            "max_tokens": 64,
            "seed": QUERY.seed % 2**31,
        }
        assert [m["role"] for m in body["messages"]] == ["system", "user"]

    def test_at_temperature_0_no_seed_is_sent(self, server: ChatServer) -> None:
        ask(
            replace(
                agent_at(Endpoint(base_url=server.url())),
                sampling=ChatSampling(temperature=0.0, top_p=1.0, max_tokens=8),
            )
        )
        assert "seed" not in server.asked[-1].body

    def test_more_fields_and_another_name_of_the_limit_are_sent_as_they_are(self, server: ChatServer) -> None:
        more = '{"chat_template_kwargs": {"enable_thinking": false}}'
        how = ChatSampling(
            temperature=0.0, top_p=1.0, max_tokens=8, limit_field="max_completion_tokens", extra_body=more
        )
        ask(replace(agent_at(Endpoint(base_url=server.url())), sampling=how))
        body = server.asked[-1].body
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert body["max_completion_tokens"] == 8 and "max_tokens" not in body

    def test_without_a_key_the_key_of_another_service_is_not_sent(
        self, server: ChatServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-for-somebody-else")
        monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
        ask(agent_at(Endpoint(base_url=server.url())))
        assert "sk-for" not in str(server.asked[-1].headers) and "org-secret" not in str(
            server.asked[-1].headers
        )

    @pytest.mark.parametrize(("value", "said"), [("", "is not set"), ("two words", "white space")])
    def test_a_key_that_cannot_be_one_is_an_error_that_does_not_repeat_it(
        self, server: ChatServer, monkeypatch: pytest.MonkeyPatch, value: str, said: str
    ) -> None:
        monkeypatch.setenv("KEY_OF_THE_TEST", value)
        with pytest.raises(AgentError, match=f"KEY_OF_THE_TEST .*{said}") as caught:
            ask(agent_at(Endpoint(base_url=server.url(), api_key_env="KEY_OF_THE_TEST")))
        assert caught.value.failure is AgentFailure.REFUSED and "two words" not in str(caught.value)

    def test_agents_that_share_an_endpoint_share_its_limit_in_every_event_loop(
        self, server: ChatServer
    ) -> None:
        server.latency_s = 0.02
        endpoint = Endpoint(base_url=server.url(), concurrency=3)
        agents = [agent_at(endpoint, name) for name in PAPER_AGENTS]

        async def many() -> None:
            queries = [replace(QUERY, seed=seed) for seed in range(4)]
            await asyncio.gather(*(agent.answer(query) for agent in agents for query in queries))

        for _ in range(2):
            asyncio.run(many())
        assert server.most_at_once == 3 and len(server.asked) == 2 * 12


class TestRetries:
    def test_a_stated_wait_is_kept(self, server: ChatServer) -> None:
        begun = time.monotonic()
        ask(agent_at(Endpoint(base_url=server.url(Fault.RATE_LIMITED))))
        assert time.monotonic() - begun >= RETRY_AFTER_S and len(server.asked) == 2

    def test_a_wait_past_the_deadline_is_not_begun(self, server: ChatServer) -> None:
        begun = time.monotonic()
        with pytest.raises(AgentError, match="asked again in 86400 s") as caught:
            ask(agent_at(Endpoint(base_url=server.url(Fault.RATE_LIMITED_FOR_LONG))))
        assert time.monotonic() - begun < 2 and len(server.asked) == 1
        assert caught.value.failure is AgentFailure.UNREACHABLE

    @pytest.mark.parametrize(("retries", "answers"), [(2, False), (3, True)])
    def test_there_are_so_many_attempts_and_no_more(
        self, server: ChatServer, retries: int, answers: bool
    ) -> None:
        agent = agent_at(Endpoint(base_url=server.url(Fault.THREE_ERRORS)), retries=retries)
        if answers:
            assert ask(agent).text == "spider 8"
        else:
            with pytest.raises(AgentError, match=r"status 500 \(3 attempts\): overloaded"):
                ask(agent)
        assert len(server.asked) == retries + 1

    def test_what_is_wrong_with_the_request_is_not_tried_again(self, server: ChatServer) -> None:
        with pytest.raises(AgentError, match="status 401") as caught:
            ask(agent_at(Endpoint(base_url=server.url(Fault.BAD_KEY))))
        assert caught.value.failure is AgentFailure.REFUSED and len(server.asked) == 1

    @pytest.mark.parametrize("fault", [Fault.NEVER, Fault.DRIP])
    def test_a_deadline_ends_every_wait(self, server: ChatServer, fault: Fault) -> None:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            ask(agent_at(Endpoint(base_url=server.url(fault)), deadline_s=0.2))
        assert 0.15 < time.monotonic() - begun < 2

    def test_waiting_for_a_free_place_counts_towards_the_deadline(self, server: ChatServer) -> None:
        agent = agent_at(Endpoint(base_url=server.url(Fault.NEVER), concurrency=1), deadline_s=0.2)

        async def both() -> list[object]:
            return await asyncio.gather(agent.answer(QUERY), agent.answer(QUERY), return_exceptions=True)

        begun = time.monotonic()
        assert [type(found) for found in asyncio.run(both())] == [TimeoutError] * 2
        assert time.monotonic() - begun < 2


class TestCache:
    @pytest.fixture
    def store(self, tmp_path: Path) -> ReplyStore:
        return ReplyStore(tmp_path / "cache", 10)

    def cached(self, server: ChatServer, store: ReplyStore, **more: object) -> CachedAgent:
        agent = agent_at(Endpoint(base_url=server.url(more.pop("fault", Fault.NONE))), retries=0)
        values = {"identity": "m 1", "context": Context.ALL, "seeded": True} | more
        return CachedAgent(agent=agent, store=store, **values)  # type: ignore[arg-type]

    def test_what_was_answered_is_not_asked_again_and_says_so(
        self, server: ChatServer, store: ReplyStore, tmp_path: Path
    ) -> None:
        first = ask(self.cached(server, store))
        other_process = ReplyStore(tmp_path / "cache", 10)
        second = ask(self.cached(server, other_process))
        assert len(server.asked) == 1
        assert (first.usage.cached, second.usage.cached) == (False, True)
        assert replace(second, usage=first.usage) == first and second.usage.cost == first.usage.cost

    @pytest.mark.parametrize(
        ("more", "query", "calls"),
        [
            ({}, QUERY, 1),
            ({}, replace(QUERY, seed=6), 2),
            ({"seeded": False}, replace(QUERY, seed=6), 1),
            ({}, replace(QUERY, rollout="so what"), 2),
            ({"context": Context.PROBLEM}, replace(QUERY, rollout="so what"), 1),
            ({"context": Context.PROBLEM}, replace(QUERY, problem="two cats"), 2),
            ({"context": Context.REQUEST}, replace(QUERY, problem="two cats"), 1),
            ({"context": Context.REQUEST}, replace(QUERY, request="legs of a dog"), 2),
        ],
    )
    def test_the_key_is_what_the_reply_depends_on(
        self, server: ChatServer, store: ReplyStore, more: dict[str, object], query: AgentQuery, calls: int
    ) -> None:
        ask(self.cached(server, store, **more))
        ask(self.cached(server, store, **more), query)
        assert len(server.asked) == calls

    def test_another_model_prompt_or_sampling_is_another_key(
        self, server: ChatServer, store: ReplyStore
    ) -> None:
        for identity in ("m 1", "m 2"):
            ask(self.cached(server, store, identity=identity))
        assert len(server.asked) == 2

    @pytest.mark.parametrize("fault", [Fault.BAD_KEY, Fault.EMPTY, Fault.UNFORMATTED, Fault.CLOSES])
    def test_failures_and_empty_replies_are_not_kept(
        self, server: ChatServer, store: ReplyStore, fault: Fault
    ) -> None:
        for _ in range(2):
            try:
                assert ask(self.cached(server, store, fault=fault)).text == ""
            except AgentError:
                continue
        assert len(server.asked) == 2 and len(store) == 0

    def test_a_cache_that_is_spoilt_while_it_runs_costs_a_call_and_no_consultation(
        self, server: ChatServer, store: ReplyStore, tmp_path: Path
    ) -> None:
        ask(self.cached(server, store))
        with sqlite3.connect(tmp_path / "cache" / "cache.db") as database:
            database.execute("update Cache set value = 'not json'")
        assert ask(self.cached(server, store)).text == "spider 8"
        with sqlite3.connect(tmp_path / "cache" / "cache.db") as database:
            database.execute("drop table Cache")
        assert ask(self.cached(server, store)).text == "spider 8" and len(server.asked) == 3

    def test_what_somebody_else_pickled_is_not_unpickled(
        self, server: ChatServer, store: ReplyStore, tmp_path: Path
    ) -> None:
        ask(self.cached(server, store))
        ran = tmp_path / "ran"
        attack = f"cposix\nsystem\n(S'touch {ran}'\ntR.".encode()
        with sqlite3.connect(tmp_path / "cache" / "cache.db") as database:
            database.execute("update Cache set value = ?, mode = 4, filename = null", (attack,))
        assert ask(self.cached(server, store)).text == "spider 8" and len(server.asked) == 2
        assert not ran.exists()

    def test_the_size_limit_holds(self, tmp_path: Path) -> None:
        store = ReplyStore(tmp_path / "cache", 1)
        for number in range(300):
            store.put(str(number), AgentReply(text=f"{number}" * 5_000))
        used = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.db"))
        assert 20 < len(store) < 150 and used < 1_500_000
        assert store.get("299") is not None and store.get("0") is None  # the oldest go first

    def test_a_folder_that_cannot_be_used_is_refused_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(CacheError, match=r"agents\.cache_folder = .*agents\.cache = false"):
            ReplyStore(tmp_path / "file", 1)
        (tmp_path / "spoilt").mkdir()
        (tmp_path / "spoilt" / "cache.db").write_bytes(b"torn" * 2000)
        with pytest.raises(CacheError, match=r"agents\.cache_folder"):
            ReplyStore(tmp_path / "spoilt", 1)
