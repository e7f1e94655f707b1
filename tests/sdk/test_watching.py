"""Watches whose stream breaks, lags, repeats itself or is compacted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from controlplane import sdk
from controlplane.errors import Compacted, Denied, Invalid
from controlplane.sdk import MirrorStale, Stopped
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records

from .scripted import Answer, Script, ScriptedNode, connected, eventually, scripted

W = api.WatchReply


def accept(_: api.Operation) -> Answer:
    return None


def flags(revision: int, *values: str) -> list[api.Change]:
    return [
        api.Change(kind="flag", name=name, meta=api.Meta(revision=revision), flag=records.Flag(name=name))
        for name in values
    ]


def changes(revision: int, *names: str) -> W:
    return W(kind=W.CHANGES, revision=revision, changes=flags(revision, *names))


def asked(node: ScriptedNode, kind: str = "") -> list[api.WatchRequest]:
    """The watches that were asked for; of a kind, if one is named."""
    requests = [api.WatchRequest.FromString(each.request) for each in node.seen if each.method == "Watch"]
    return [request for request in requests if not kind or kind in request.kinds]


@asynccontextmanager
async def watching(
    *scripts: Script, mirror: bool = False
) -> AsyncIterator[tuple[sdk.ControlPlane, list[ScriptedNode]]]:
    async with scripted(*scripts) as nodes:
        addresses = [node.address for node in nodes]
        cp = sdk.ControlPlane.connect(addresses, insecure=True, mirror=mirror)
        if mirror:
            async with asyncio.TaskGroup() as group:
                group.create_task(cp.__aenter__())
                await eventually(lambda: any(len(node.streams) == 2 for node in nodes))
                await listing((await connected(*nodes))[0], 10)
        else:
            await cp.__aenter__()
        try:
            yield cp, await connected(*nodes)
        finally:
            await cp.close()


async def listing(node: ScriptedNode, revision: int, *listed: api.Change) -> None:
    node.revision = revision
    await node.push(W(kind=W.STARTED, revision=revision))
    await node.push(W(kind=W.SNAPSHOT, revision=revision, changes=listed))
    await node.push(W(kind=W.SYNCED, revision=revision))


async def test_goes_on_where_it_broke() -> None:
    async with watching(accept, accept) as (cp, [first, second]):
        watch = cp.watch(after_revision=5)
        reading = asyncio.create_task(anext(watch))
        await eventually(lambda: bool(first.streams))
        await first.push(W(kind=W.STARTED, revision=5))
        await first.push(changes(7, "a", "b"))
        assert (await reading).name == "a"
        await first.stop()
        await eventually(lambda: bool(second.streams))
        assert asked(first)[0].after_revision == 5
        assert asked(second)[0].after_revision == 7
        # What comes again is skipped; what is new is not.
        await second.push(changes(6, "old"))
        await second.push(changes(7, "a", "b"))
        await second.push(changes(9, "c"))
        assert [(await anext(watch)).name for _ in range(2)] == ["b", "c"]


async def test_progress_moves_the_place_to_go_on_from() -> None:
    async with watching(accept, accept) as (cp, [first, second]):
        reading = asyncio.create_task(anext(cp.watch(after_revision=5)))
        await eventually(lambda: bool(first.streams))
        await first.push(W(kind=W.STARTED, revision=5))
        await first.push(W(kind=W.PROGRESS, revision=50))
        await cp.get_region()
        await first.stop()
        await eventually(lambda: bool(second.streams))
        assert asked(second)[0].after_revision == 50
        reading.cancel()


async def test_a_listing_that_broke_off_begins_again() -> None:
    async with watching(accept, accept) as (cp, [first, second]):
        watch = cp.watch(snapshot=True)
        reading = asyncio.create_task(anext(watch))
        await eventually(lambda: bool(first.streams))
        await first.push(W(kind=W.SNAPSHOT, revision=5, changes=flags(3, "half")))
        await first.stop()
        await eventually(lambda: bool(second.streams))
        assert asked(second)[0].snapshot
        await listing(second, 6, *flags(4, "whole"))
        assert (await reading).name == "whole"
        await second.push(changes(7, "next"))
        assert (await anext(watch)).name == "next"


@pytest.mark.parametrize("error", [Compacted("gone", reason="EVENTS_COMPACTED"), Denied("no", reason="ROLE_DENIED")])
async def test_what_cannot_be_had_is_raised(error: Compacted | Denied) -> None:
    async with watching(lambda _: error) as (cp, _):
        with pytest.raises(type(error)):
            await anext(cp.watch(after_revision=1))


async def test_leaving_a_watch_tells_the_server() -> None:
    async with watching(accept) as (cp, [node]):
        watch = cp.watch()
        reading = asyncio.create_task(anext(watch))
        await eventually(lambda: bool(node.streams))
        await node.push(changes(2, "a"))
        await reading
        await watch.aclose()
        await eventually(lambda: not node.streams)


async def test_a_slow_reader_stops_the_stream_and_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.sdk.watching.READY_MAX", 3)
    async with watching(accept) as (cp, [node]):
        watch = cp.watch(after_revision=1)
        reading = asyncio.create_task(anext(watch))
        await eventually(lambda: bool(node.streams))
        await node.push(changes(2, "2"))
        names = [(await reading).name]
        for revision in range(3, 8):
            await node.push(changes(revision, str(revision)))
        await eventually(lambda: any(each.cancel for each in node.seen))
        names += [(await anext(watch)).name for _ in range(3)]
        reading = asyncio.create_task(anext(watch))
        await eventually(lambda: len(asked(node)) == 2)
        assert asked(node)[1].after_revision == 5
        for revision in range(4, 8):
            await node.push(changes(revision, str(revision)))
        names += [(await reading).name, (await anext(watch)).name]
        assert names == ["2", "3", "4", "5", "6", "7"]


async def test_the_mirror_goes_on_where_it_broke() -> None:
    async with watching(accept, accept, mirror=True) as (cp, [first, second]):
        second.revision = 12
        await first.push(changes(12, "agent_model"))
        await eventually(lambda: cp.mirror.revision == 12)
        await first.stop()
        await eventually(lambda: bool(second.streams))
        request = asked(second)[0]
        assert (request.after_revision, request.snapshot) == (12, False)
        cp.ensure_alive()


async def test_a_compacted_mirror_lists_again_and_keeps_what_it_has_meanwhile() -> None:
    scope = records.Scope(kind=records.SCOPE_TOOL, name="t")
    engaged = api.Change(kind="switch", name="tool:t", switch=records.Switch(scope=scope, engaged=True))
    async with watching(accept, accept, mirror=True) as (cp, [first, second]):
        await first.push(W(kind=W.CHANGES, revision=11, changes=[engaged]))
        await eventually(lambda: bool(cp.mirror.engaged()))
        gone: list[Answer] = [Compacted("gone", reason="EVENTS_COMPACTED")]
        second.script = lambda each: gone.pop() if gone and b"flag" in each.request else None
        second.revision = 99
        await first.stop()
        await eventually(lambda: len(asked(second, "flag")) == 2)
        assert asked(second, "flag")[1].snapshot
        with pytest.raises(Stopped):
            cp.ensure_alive(tools=("t",))
        await listing(second, 99)
        await eventually(lambda: cp.mirror.revision == 99)
        await cp.mirror_synced(99)
        cp.ensure_alive(tools=("t",))


async def test_a_mirror_of_a_silent_node_grows_old() -> None:
    """The node sends progress, but answers nothing: its messages prove nothing about now."""
    async with watching(accept, mirror=True) as (cp, [node]):
        cp.mirror.age_max_s = 0.3
        cp.ensure_alive()
        node.silent = True
        await asyncio.sleep(0.35)
        await node.push(W(kind=W.PROGRESS, revision=20))
        with pytest.raises(MirrorStale):
            cp.ensure_alive()


async def test_a_node_that_is_cut_off_makes_no_mirror_fresh() -> None:
    async with watching(accept, mirror=True) as (cp, [node]):
        node.age_ms = 60_000
        cp.mirror.age_max_s = 0.2
        await asyncio.sleep(0.25)
        await cp.get_region()
        with pytest.raises(MirrorStale):
            cp.ensure_alive()
        node.age_ms = 0
        await cp.get_region()
        cp.ensure_alive()


async def test_flags_and_switches_may_lie_in_two_partitions() -> None:
    apart = Invalid("several partitions", reason="PARTITION_AMBIGUOUS")

    def script(operation: api.Operation) -> Answer:
        return apart if {"flag", "switch"} <= {*api.WatchRequest.FromString(operation.request).kinds} else None

    async with scripted(script) as [node]:
        cp = sdk.ControlPlane.connect(node.address, insecure=True)
        entering = asyncio.create_task(cp.__aenter__())
        await eventually(lambda: len(node.streams) == 3)
        await listing(node, 10)
        await entering
        cp.ensure_alive()
        assert [[*request.kinds] for request in asked(node)[1:]] == [["stop"], ["flag"], ["switch", "exception"]]
        await cp.close()


async def test_a_mirror_that_cannot_be_had_says_why() -> None:
    missing = Invalid("no default partition for flag", reason="PARTITION_MISSING")
    async with scripted(lambda _: missing) as [node]:
        with pytest.raises(Invalid) as caught:
            async with sdk.ControlPlane.connect(node.address, insecure=True):
                pytest.fail("entered")
        assert caught.value.reason == "PARTITION_MISSING"
