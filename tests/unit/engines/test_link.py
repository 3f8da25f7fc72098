"""A busy server is asked again, for what changes nothing; who gave up says what the server said."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from aipo.engines import link
from aipo.engines.base import Completion, EngineError, GenerationRequest
from aipo.engines.link import HttpLink
from aipo.engines.vllm import VllmEngine
from support.policies import random_policy
from support.vllm_twin import Fault, Twin

REQUEST = GenerationRequest(session="s", prefix_ids=tuple(range(40, 60)), max_new_tokens=12, seed=1)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    with Twin(random_policy(tmp_path_factory, "qwen2.5")) as twin:
        yield twin


@pytest.fixture
def engine(twin: Twin) -> VllmEngine:
    engine = VllmEngine(HttpLink(twin.url, timeout_s=20, concurrency=200), twin.model, twin.tokenizer)

    async def ready() -> None:
        await engine.connect()
        await engine.load_weights(twin.model.save_pretrained, 0)

    run(ready())
    twin.requests.clear()
    return engine


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def busy_at_first(twin: Twin, times: int) -> Callable[[dict[str, Any]], Fault | None]:
    return lambda body: Fault.ERROR if len(twin.completions()) <= times else None


def test_a_busy_server_is_asked_again_and_gives_the_same_completion(twin: Twin, engine: VllmEngine) -> None:
    clean: Completion = run(engine.generate(REQUEST))
    twin.requests.clear()
    twin.fault = busy_at_first(twin, 2)
    assert run(engine.generate(REQUEST)).ids == clean.ids and len(twin.completions()) == 3


def test_a_server_that_stays_busy_is_given_up(twin: Twin, engine: VllmEngine) -> None:
    twin.fault = lambda body: Fault.ERROR
    with pytest.raises(EngineError, match="answered 500: EngineCore encountered an issue"):
        run(engine.generate(REQUEST))
    assert len(twin.completions()) == link.ATTEMPTS


def test_a_change_of_weights_is_never_asked_for_twice(twin: Twin, engine: VllmEngine) -> None:
    twin.refuse_weights = True
    with pytest.raises(EngineError, match="answered 500"):
        run(engine.load_weights(twin.model.save_pretrained, 1))
    assert [path for path, _ in twin.requests].count("/collective_rpc") == 1


def test_more_requests_than_one_client_takes_go_through_several(twin: Twin, engine: VllmEngine) -> None:
    async def many() -> list[Completion]:
        return await asyncio.gather(*(engine.generate(REQUEST) for _ in range(150)))

    assert len({completion.ids for completion in run(many())}) == 1
    assert len(twin.completions()) == 150
