"""`aipo warmstart` on traces that an expert's server writes, or that the policy's elicited rollouts are.

Proves: what grading does not call correct is not learnt; a request that an expert wrote is answered by the
agent, and a reply that it made up is left out; a server that dies loses nothing that was paid for; the tags
that the system opened are learnt as the policy's own.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aipo.assembly.trace_sources import requests_in
from aipo.assembly.traces import Kept
from aipo.config.layers import load_layers
from aipo.config.toml import toml_text
from aipo.config.warmstart import TraceSettings
from aipo.core.types import Source
from aipo.tasks.base import Ask
from aipo.tasks.words.elements import element_in
from support.policies import random_policy, run_cli, succeed
from support.servers import Asked, ChatServer, Fault, chat_server

CONSULTING, SOLO = "Ask for help.", "Answer alone."
WRONG_ADDENDS = {3, 4, 5, 6}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        running.says = expert
        yield running


def expert(asked: Asked) -> str:
    """Write a solution as it is told to; some addends are too much for it."""
    element = element_in(asked.user.rpartition(" of ")[2])
    if element is None:
        return "7"
    addend = int(re.findall(r"Add (\d+)", asked.user)[0])
    total = element.number + addend + (addend in WRONG_ADDENDS)
    if CONSULTING not in asked.user:
        assert SOLO in asked.user
        return f"<think>easy</think>{element.fact} {element.number} + {addend} = {total}."
    request = f"<knowledge>atomic number of {element.name}</knowledge>"
    return f"I ask. {request} <feedback>It is 999.</feedback> {element.number} + {addend} = {total}."


def recipe(
    folder: Path, factory: pytest.TempPathFactory, name: str, **tables: dict[str, object]
) -> tuple[Path, TraceSettings]:
    table: dict[str, dict[str, object]] = {
        "run": {"output": str(folder / name), "threads": 1},
        "policy": {"model": str(folder / name / "policy")},
        "task": {"name": "elements", "options": {"measured": "smollm2"}},
        "agents": {"enabled": ["knowledge"], "backend": "oracle", "cache": False, "retries": 0},
        "consult": {
            "max_consultations": 1,
            "max_feedback_tokens": 40,
            "consulting_prompt": CONSULTING,
            "solo_prompt": SOLO,
        },
        "rollout": {"max_prompt_tokens": 400, "max_response_tokens": 200},
        "warmstart": {
            "model": str(random_policy(factory, "qwen2.5")),
            "source": "expert",
            "examples": 24,
            "held_out": 4,
            "check_problems": 0,
        },
    }
    for section, values in tables.items():
        table[section] = {**table.get(section, {}), **values}
    path = folder / f"{name}.toml"
    path.write_text(toml_text(table))
    return path, load_layers(TraceSettings, path)


def at(server: ChatServer, fault: Fault = Fault.NONE) -> dict[str, object]:
    return {"expert": {"base_url": server.url(fault), "model": "m", "concurrency": 4}}


def kept(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "warmstart-traces.jsonl").read_text().splitlines()[1:]]


def test_an_expert_writes_what_is_learnt_where_it_is_right(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: ChatServer
) -> None:
    path, settings = recipe(tmp_path, tmp_path_factory, "start", warmstart=at(server))
    output = succeed("warmstart", path).output
    assert "24 traces to learn from" in output and "x incorrect" in output and "held-out loss" in output
    assert (tmp_path / "start/policy/config.json").exists()
    found = kept(tmp_path / "start")
    assert {record["lost"] for record in found} == {"", "incorrect"}
    for record in found:
        wrong = int(re.findall(r"\+(\d+)#", str(record["trace"]))[0]) in WRONG_ADDENDS
        assert bool(record["lost"]) == wrong, record
    attempts = Kept(tmp_path / "start/warmstart-traces.jsonl", settings)
    streams = [a.stream for r in found if (a := attempts.get(str(r["trace"]))) and a.stream is not None]
    told = [stream for stream in streams if stream.count(Source.FEEDBACK)]
    assert len(told) >= 14 and len(streams) - len(told) >= 14
    sources = [[segment.source for segment in stream.segments] for stream in told]
    assert all(s == [Source.PROMPT, Source.POLICY, Source.FEEDBACK, Source.POLICY] for s in sources)


def test_a_server_that_dies_in_the_night_loses_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: ChatServer
) -> None:
    whole, _ = recipe(tmp_path, tmp_path_factory, "whole", warmstart=at(server))
    succeed("warmstart", whole)
    needed = len(server.asked)
    server.forget()

    def dies(asked: Asked) -> str:
        if len(server.asked) > 20:
            raise ConnectionError
        return expert(asked)

    server.says = dies
    path, _ = recipe(tmp_path, tmp_path_factory, "start", warmstart=at(server))
    result = run_cli("warmstart", path)
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "of before are kept, and the same command goes on" in said, said
    assert "cannot be reached" in said and not (tmp_path / "start/policy").exists()
    answered = len(kept(tmp_path / "start"))
    assert answered >= 15
    server.says = expert
    server.forget()
    succeed("warmstart", path)
    assert len(server.asked) == needed - answered  # the canary is asked again
    one, other = (tmp_path / name / "policy/model.safetensors" for name in ("whole", "start"))
    assert one.read_bytes() == other.read_bytes()


def test_an_expert_that_is_not_there_is_one_error_before_anything_is_loaded(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: ChatServer
) -> None:
    path, _ = recipe(tmp_path, tmp_path_factory, "dead", warmstart=at(server, Fault.REFUSED))
    result = run_cli("warmstart", path, "warmstart.model=no/such/model")
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "warmstart.expert does not answer" in said, said
    nobody = run_cli("warmstart", recipe(tmp_path, tmp_path_factory, "nobody")[0])
    said = " ".join(nobody.output.split())
    assert nobody.exit_code == 2 and "warmstart.expert: backend = 'remote' needs a model" in said, said
    assert "warmstart.expert.model" in said


def test_an_expert_that_is_always_wrong_is_one_error_with_the_ways_out(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, server: ChatServer
) -> None:
    server.says = lambda asked: "I do not know."
    path, _ = recipe(tmp_path, tmp_path_factory, "wrong", warmstart=at(server))
    result = run_cli("warmstart", path, "warmstart.tries=2")
    said = " ".join(result.output.split())
    assert result.exit_code == 2 and "not one solo trace could be made (24 x incorrect)" in said, said
    assert "name a stronger model in warmstart.expert" in said


def test_elicited_rollouts_that_ended_correct_are_learnt_with_tags_and_all(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, settings = recipe(
        tmp_path,
        tmp_path_factory,
        "start",
        task={"name": "support.coin_task:Coin", "options": {}},
        agents={"enabled": ["verify", "reasoning"], "backend": "support.critic:LastWords"},
        consult={"max_feedback_tokens": 8, "elicit": {"max_request_tokens": 4}},
        rollout={"max_response_tokens": 120, "slots": 64},
        warmstart={"source": "elicited", "examples": 6, "held_out": 2, "tries": 200},
    )
    output = succeed("warmstart", path).output
    assert "6 traces to learn from, 2 held out" in output and "x incorrect" in output
    found = kept(tmp_path / "start")
    attempts = Kept(tmp_path / "start/warmstart-traces.jsonl", settings)
    right = [r for r in found if not r["lost"]]
    assert {r["verdict"] for r in right} == {"correct"}
    for record in right:
        attempt = attempts.get(str(record["trace"]))
        assert attempt is not None and attempt.stream is not None
        sources = {segment.source for segment in attempt.stream.segments}
        consulting = str(record["trace"]).startswith("consulting")
        assert sources == {Source.PROMPT, Source.POLICY, *([Source.FEEDBACK] if consulting else [])}
    lost = {str(r["lost"]) for r in found}
    assert "longer than rollout.max_response_tokens" in lost
    assert "there already" in succeed("warmstart", path).output


def test_requests_are_read_from_what_an_expert_wrote() -> None:
    from aipo.agents.named import AGENTS
    from aipo.assembly.agents import protocol_of

    protocol = protocol_of([AGENTS["knowledge"]])
    text = "So <knowledge> pi </knowledge>\n<feedback>3</feedback> then 6 <knowledge>e</knowledge>."
    assert requests_in(text, protocol) == [
        "So ",
        Ask("knowledge", "pi"),
        " then 6 ",
        Ask("knowledge", "e"),
        ".",
    ]
    assert requests_in("no </knowledge> help", protocol) == ["no </knowledge> help"]
