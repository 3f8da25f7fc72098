"""Several servers as one engine: groups stay together, load is dealt out, weights are all or not at all."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from aipo.core.types import StopReason
from aipo.engines.base import Completion, EngineError, GenerationRequest, SharedSink
from aipo.engines.pool import ServerPool


class Server:
    """A server at whose place any could stand; it remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.url, self.stamp = name, None
        self.dead = self.refuses = self.takes_adapters = False
        self.asked: list[GenerationRequest] = []
        self.read: list[str] = []

    async def generate(self, request: GenerationRequest) -> Completion:
        await asyncio.sleep(0)
        self.asked.append(request)
        if self.dead:
            raise EngineError(f"{self.url} is gone")
        return Completion(ids=(1,), log_probs=(-0.1,), stop=StopReason.END, weights_version=self.stamp)

    async def release(self, session: str) -> None:
        pass

    def follow(self, stamp: Any) -> None:
        self.stamp = stamp

    async def take_weights(self, folder: Path, version: int) -> None:
        self.read.append((folder / "weights").read_text())
        if self.refuses:
            raise EngineError(f"{self.url} takes none")
        self.stamp = version


def write(folder: Path) -> None:
    folder.mkdir()
    (folder / "weights").write_text("some")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def rolled_out(pool: ServerPool, groups: int, size: int = 4, name: str = "g") -> int:
    """Sample groups at the same time; each rollout asks twice. Return how many were lost."""

    async def one(group: str, index: int) -> int:
        request = GenerationRequest(
            session=f"{group}#{index}", prefix_ids=(1,), max_new_tokens=1, group=group
        )
        try:
            for _ in range(2):
                await pool.generate(request)
            return 0
        except EngineError:
            return 1
        finally:
            await pool.release(request.session)

    lost = await asyncio.gather(*(one(f"{name}{g}", i) for g in range(groups) for i in range(size)))
    return sum(lost)


@pytest.fixture
def servers() -> list[Server]:
    return [Server(name) for name in "abc"]


@pytest.fixture
def pool(servers: list[Server], tmp_path: Path) -> ServerPool:
    pool = ServerPool(servers, tmp_path)
    assert isinstance(pool, SharedSink)
    run(pool.load_weights(write, 0))
    return pool


def test_a_group_stays_on_one_server_and_groups_are_dealt_out(
    pool: ServerPool, servers: list[Server]
) -> None:
    assert run(rolled_out(pool, 12)) == 0
    at = [{request.group for request in server.asked} for server in servers]
    assert [len(groups) for groups in at] == [4, 4, 4]
    assert not at[0] & at[1] and not at[0] & at[2] and not at[1] & at[2]
    assert all(len(server.asked) == 4 * 4 * 2 for server in servers)


def test_ranks_that_have_one_group_each_do_not_all_take_the_first_server(servers: list[Server]) -> None:
    for rank in range(3):
        pool = ServerPool(servers, None, rank)
        pool.follow((5, 5, 5))
        run(rolled_out(pool, 1, name=f"rank{rank}-"))
    assert [len(server.asked) for server in servers] == [8, 8, 8]


def test_a_new_group_goes_where_the_fewest_rollouts_are(pool: ServerPool, servers: list[Server]) -> None:
    async def in_turn() -> None:
        for size in (8, 1, 1, 1, 1):  # the first is still under way while the others come
            for index in range(size):
                request = GenerationRequest(
                    session=f"{size}-{len(sizes)}#{index}",
                    prefix_ids=(1,),
                    max_new_tokens=1,
                    group=f"group of {size}, {len(sizes)}",
                )
                await pool.generate(request)
            sizes.append(size)

    sizes: list[int] = []
    run(in_turn())
    assert [len(server.asked) for server in servers] == [8, 2, 2]


def test_a_dead_server_loses_no_more_than_its_share(pool: ServerPool, servers: list[Server]) -> None:
    """It answers at once, so that by its open rollouts alone it would draw every group that comes later."""
    servers[1].dead = True

    async def one_after_another() -> int:
        return sum([await rolled_out(pool, 1, name=f"group{i}-") for i in range(30)])

    lost = run(one_after_another())
    assert lost == 4, "the first group that it was given, and none after that"
    run(pool.load_weights(write, 1))
    servers[1].dead = False
    assert run(rolled_out(pool, 6)) == 0 and len(servers[1].asked) > 4


def test_a_server_that_takes_no_weights_is_left_out_until_it_does(
    pool: ServerPool, servers: list[Server]
) -> None:
    servers[2].refuses = True
    run(pool.load_weights(write, 1))
    assert pool.stamp == (1, 1, None) and "c takes none" in pool.lost[0] and len(pool.lost) == 1
    assert run(rolled_out(pool, 6)) == 0 and not servers[2].asked
    servers[2].refuses = False
    run(pool.load_weights(write, 2))
    assert pool.stamp == (2, 2, 2) and not pool.lost
    run(rolled_out(pool, 6))
    assert servers[2].asked and Counter(servers[2].read) == {"some": 3}


def test_no_server_with_weights_is_an_error(pool: ServerPool, servers: list[Server], tmp_path: Path) -> None:
    for server in servers:
        server.refuses = True
    with pytest.raises(EngineError, match="a takes none; b takes none; c takes none"):
        run(pool.load_weights(write, 1))
    assert pool.stamp == (None, None, None) and not list(tmp_path.iterdir())


def test_weights_that_cannot_be_written_leave_no_server_with_the_old_ones(pool: ServerPool) -> None:
    def fails(folder: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(EngineError, match="disk full"):
        run(pool.load_weights(fails, 1))
    assert pool.stamp == (None, None, None)


def test_another_ranks_weights_are_followed(servers: list[Server]) -> None:
    pool = ServerPool(servers)
    pool.follow((3, None, 3))
    assert run(rolled_out(pool, 4)) == 0
    assert [bool(server.asked) for server in servers] == [True, False, True]
