"""What servers answer in the place of a plain reply: read where it is one, else an error with the reason."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from aipo.agents.base import AgentError, AgentFailure, AgentQuery, AgentReply
from aipo.agents.named import AGENTS
from aipo.agents.remote import ChatSampling, Endpoint, Prices, RemoteAgent
from aipo.agents.retry import RetryPolicy
from aipo.config.agents import AgentSettings

GOOD = "HINT: add the two numbers."
QUERY = AgentQuery(problem="3 + 4?", rollout="so", request="what next", seed=5)
HOW = ChatSampling(temperature=0.7, top_p=0.8, max_tokens=64)


@dataclass
class Canned:
    """Answers in turn, the last one for ever; what was asked is kept."""

    url: str = ""
    answers: list[tuple[int, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Canned]:
    canned = Canned()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            canned.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = canned.answers[min(len(canned.asked), len(canned.answers)) - 1]
            sent = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, daemon=True).start()
    canned.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield canned
    http.shutdown()
    http.server_close()


def agent_at(server: Canned, how: ChatSampling = HOW, retries: int = 2) -> RemoteAgent:
    return RemoteAgent(
        spec=AGENTS["reasoning"],
        endpoint=Endpoint(base_url=server.url),
        model="m",
        sampling=how,
        retry=RetryPolicy(retries, first_wait_s=0.01),
        deadline_s=5.0,
        prices=Prices(1.0, 2.0),
    )


def answer(message: Any, finish: Any = "stop", usage: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish, **more}
    return {"choices": [choice], "usage": usage or {"prompt_tokens": 5, "completion_tokens": 7}}


def ask(server: Canned, *bodies: Any, **how: Any) -> AgentReply:
    server.answers = [body if isinstance(body, tuple) else (200, body) for body in bodies]
    server.asked.clear()
    return asyncio.run(agent_at(server, **how).answer(QUERY))


def refused(server: Canned, *bodies: Any, **how: Any) -> AgentError:
    with pytest.raises(AgentError) as caught:
        ask(server, *bodies, **how)
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        [{"type": "text", "text": GOOD}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": GOOD}],
        [{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": GOOD}, {"type": "image_url"}],
        [{"type": "text", "text": GOOD[:6]}, {"type": "text", "text": GOOD[6:]}, None, 3],
        [GOOD],
        [{"text": {"value": GOOD}}],
    ],
)
def test_the_text_parts_of_a_content_are_its_words(server: Canned, content: Any) -> None:
    assert ask(server, answer({"content": content})).text == "add the two numbers."


@pytest.mark.parametrize(
    ("message", "finish", "words"),
    [
        (
            {"content": None, "reasoning_content": "First I"},
            "length",
            "thinking; raise agents.max_reply",
        ),
        (
            {"content": None, "reasoning": "First I"},
            "length",
            "went into thinking; raise agents.max",
        ),
        ({"content": ""}, "length", "ran out before a word; raise agents.max_reply_tokens"),
        ({"content": [{"type": "thinking", "thinking": "hm"}]}, "length", "raise agents.max_reply_tokens"),
        ({"content": "", "reasoning_content": "First I"}, "stop", "nothing but thinking"),
        ({"content": ""}, "content_filter", "content filter"),
        ({"content": None, "refusal": "I cannot help with that."}, "stop", "refuses: I cannot help"),
        ({"content": None, "tool_calls": [{"id": "c1"}]}, "tool_calls", "calls a tool"),
        ({"content": None, "function_call": {"name": "f"}}, "stop", "calls a tool"),
        ({"content": ""}, "error", "finish_reason 'error'"),
        ({"content": 5}, "stop", "choices.0.message.content: '5' is no text"),
        (None, "stop", "choices.0.message: there is none"),
    ],
)
def test_what_stands_in_the_place_of_words_is_an_error_with_its_reason(
    server: Canned, message: Any, finish: str, words: str
) -> None:
    error = refused(server, answer(message, finish))
    assert words in str(error) and error.failure is AgentFailure.UNREADABLE
    assert error.usage.cost > 0  # it was paid all the same


def test_a_model_that_says_nothing_by_itself_has_nothing_to_say(server: Canned) -> None:
    assert ask(server, answer({"content": ""})).text == ""
    assert ask(server, answer({"content": None}, None)).text == ""


@pytest.mark.parametrize(
    "usage",
    [
        *({"prompt_tokens": 5, "completion_tokens": odd} for odd in (None, 2.25, -1, "7", True, 2**41, [])),
        "none",
        [],
        {},
    ],
)
def test_a_readable_reply_is_used_whatever_its_usage_says(server: Canned, usage: Any) -> None:
    body = answer({"content": GOOD})
    reply = ask(server, body | {"usage": usage})
    assert reply.text == "add the two numbers." and reply.usage.completion_tokens == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"message": "overloaded", "code": 502}, "user_id": "u"}, 502),
        ({"id": None, "choices": None, "error": {"message": "overloaded", "code": 429}}, 429),
        (answer({"content": ""}, "error", error={"code": "502", "message": "overloaded"}), 502),
        ({"error": {"message": "overloaded", "type": "rate_limit_error"}}, 429),
        ({"error": "overloaded"}, 500),
        ({"choices": [], "error": {"message": "overloaded", "status": 503}}, 503),
        ({"object": "error", "message": "overloaded", "code": 503}, 503),
        ({"detail": "overloaded"}, 500),
    ],
)
def test_an_error_in_a_body_of_status_200_is_that_status(server: Canned, body: Any, status: int) -> None:
    assert ask(server, body, body, answer({"content": GOOD})).text == "add the two numbers."
    assert len(server.asked) == 3  # passing, so asked again
    error = refused(server, body)
    assert f"status {status} (3 attempts): overloaded" in str(error)
    assert error.failure is AgentFailure.UNREACHABLE


def test_a_lasting_error_in_a_body_is_not_asked_again_and_shows_no_key(
    server: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_OF_THE_TEST", "sk-secret")
    server.answers = [(200, {"error": {"message": "bad key sk-secret", "code": 401}})]
    agent = agent_at(server)
    endpoint = Endpoint(base_url=server.url, api_key_env="KEY_OF_THE_TEST")
    with pytest.raises(AgentError, match=r"status 401: bad key \[key\]") as caught:
        asyncio.run(replace(agent, endpoint=endpoint).answer(QUERY))
    assert (caught.value.failure, len(server.asked)) == (AgentFailure.REFUSED, 1)


@pytest.mark.parametrize(
    ("status", "body", "way_out"),
    [
        (
            400,
            {"error": {"message": "temperature is not supported"}},
            "agents.omit = ['temperature']",
        ),
        (
            400,
            {"error": {"message": "temperature and top_p not both"}},
            "['temperature', 'top_p']",
        ),
        (422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}, "agents.omit = ['seed']"),
        (
            400,
            {"error": {"message": "no max_tokens: use max_completion_tokens"}},
            "token_limit_field",
        ),
        (400, {"error": {"message": "System role not supported"}}, "agents.system_role = false"),
        (400, {"error": {"message": "Conversation roles must alternate user/assistant"}}, "system_role"),
        (401, {"error": {"message": "no such key"}}, "no such key"),
    ],
)
def test_a_refusal_names_the_setting_that_leaves_a_field_out(
    server: Canned, status: int, body: Any, way_out: str
) -> None:
    assert way_out in str(refused(server, (status, body)))


@pytest.mark.parametrize("omitted", ["temperature", "top_p", "seed", "max_tokens"])
def test_each_field_can_be_left_out(server: Canned, omitted: str) -> None:
    ask(server, answer({"content": GOOD}), how=replace(HOW, omit=(omitted,)))
    sent = {"temperature", "top_p", "seed", "max_tokens"} & set(server.asked[-1])
    assert sent == {"temperature", "top_p", "seed", "max_tokens"} - {omitted}


def test_the_limit_is_left_out_under_its_other_name_too(server: Canned) -> None:
    how = replace(HOW, limit_field="max_completion_tokens", omit=("max_tokens",))
    ask(server, answer({"content": GOOD}), how=how)
    assert "max_completion_tokens" not in server.asked[-1]


def test_a_server_without_a_system_role_gets_the_text_in_the_users_message(server: Canned) -> None:
    server.answers = [(200, answer({"content": GOOD}))]
    asyncio.run(replace(agent_at(server), system_role=False).answer(QUERY))
    (message,) = server.asked[-1]["messages"]
    system = AGENTS["reasoning"].prompt.system
    assert message["role"] == "user" and message["content"].startswith(system)
    assert message["content"].endswith(AGENTS["reasoning"].prompt.messages(QUERY)[1]["content"])


def test_settings_say_what_is_left_out_for_one_agent_alone() -> None:
    settings = AgentSettings.model_validate({"omit": ["seed"], "verify": {"omit": [], "system_role": False}})
    assert settings.of("knowledge").omit == ("seed",) and settings.of("knowledge").system_role
    assert settings.of("verify").omit == () and not settings.of("verify").system_role


def test_keys_of_kept_replies_do_not_change_while_nothing_is_left_out() -> None:
    assert "omit" not in repr(HOW)
