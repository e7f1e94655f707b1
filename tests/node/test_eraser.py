"""When the leader sweeps, and what a node still tells of what was erased."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controlplane import geography
from controlplane.eraser import Eraser
from controlplane.errors import Unavailable
from controlplane.features import erasure, federation
from controlplane.features.partitions import system
from controlplane.kernel import keys
from controlplane.kernel.store import View
from controlplane.kernel.transaction import scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.federation_pb2 import Shared, SharedPage
from controlplane.v1.records_pb2 import Cursor, Erasure, Partition, Reach
from controlplane.v1.state_pb2 import Origin
from tests.kernel.material import rows
from tests.node.harness import STATE, Region, message, settle, until, within

ABROAD = Partition(id="us.prod.state", home="us", epoch=1, reach=Reach.GLOBAL, environment="prod")
KEY = keys.within(scope_of(ABROAD), "workflow", "person")


@asynccontextmanager
async def erasing(**more: object) -> AsyncIterator[tuple[Region, Eraser]]:
    async with Region(**more) as region:  # type: ignore[arg-type]
        eraser = Eraser(region.node)
        eraser.start()
        try:
            yield region, eraser
        finally:
            await eraser.stop()


async def erase(region: Region, name: str) -> int:
    header = api.RequestHeader(partition=STATE.id, reason="asked to")
    request = api.EraseRecordRequest(header=header, kind="workflow", name=name)
    reply = await region.call("EraseRecord", request)
    revision: int = reply.revision
    return revision


async def test_a_watcher_from_before_hears_that_it_is_gone_and_not_what_it_was() -> None:
    async with erasing() as (region, eraser):
        await region.create("other", b"stays")
        await region.create("person", b"secret")
        await region.swap("person", 1, b"secret")
        await erase(region, "person")
        await until(lambda: not eraser.report().pending)
        report = eraser.report()
        assert 0 < report.due == report.scrubbed
        request = api.WatchRequest(header=api.RequestHeader(partition=STATE.id), kinds=["workflow"], after_revision=0)
        heard = []
        watch = region.watch(request)
        while not any(change.name == "person" for reply in heard for change in reply.changes):
            heard.append(await message(watch))
        await watch.aclose()
        [gone] = [change for reply in heard for change in reply.changes if change.name == "person"]
        assert not gone.HasField("workflow")
        assert any(change.workflow.state == b"stays" for reply in heard for change in reply.changes)


async def test_that_it_happened_can_still_be_asked() -> None:
    async with erasing() as (region, eraser):
        nonce = b"n" * 16
        request = api.CreateWorkflowRequest(header=api.RequestHeader(request_id=nonce), id="person", state=b"secret")
        await region.call("CreateWorkflow", request)
        await erase(region, "person")
        await until(lambda: not eraser.report().pending)
        asked = api.GetOutcomeRequest(header=api.RequestHeader(request_id=nonce))
        reply = await region.call("GetOutcome", asked)
        assert reply.known == api.GetOutcomeReply.FORGOTTEN


async def test_many_are_swept_in_a_few_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    goes: list[int] = []
    traces = erasure.traces

    def watched(view: View, wanted: Sequence[erasure.Wanted], pause: Callable[[], None]) -> list[erasure.Traces]:
        goes.append(len(wanted))
        return traces(view, wanted, pause)

    monkeypatch.setattr(erasure, "traces", watched)
    async with Region() as region:
        names = [f"person {n}" for n in range(130)]
        for name in names:
            await region.create(name, b"secret")
        for name in names:
            await erase(region, name)
        eraser = Eraser(region.node)
        eraser.start()
        try:
            await until(lambda: not eraser.report().pending)
        finally:
            await eraser.stop()
        assert goes == [64, 64, 2]
        assert not any(b"secret" in value for _, value in rows(region.store))


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_it_stops_while_its_sweep_fails(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Region() as region:
        for name in ("a", "b"):
            await region.create(name, b"secret")
            await erase(region, name)
        asked: list[asyncio.Future[bytes]] = []

        def transact(_: object, __: object, feature: Any, **___: object) -> asyncio.Future[bytes]:
            asked.append(asyncio.get_running_loop().create_future())
            if len(asked) == 1:
                # The rows go, and what is said of them fails.
                asked[0].set_result(b"")
            return asked[-1]

        monkeypatch.setattr(region.node, "transact", transact)
        eraser = Eraser(region.node)
        eraser.start()
        await until(lambda: len(asked) == 3)
        for each in asked[1:]:
            each.set_exception(Unavailable("another one leads", reason="NOT_LEADER"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await within(asyncio.ensure_future(eraser.stop()))


async def test_a_sweep_that_fails_is_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.eraser.RETRY_S", 0.01)
    async with Region() as region:
        await region.create("person", b"secret")
        await erase(region, "person")
        transact, failures = region.node.transact, 6

        def unlucky(*given: Any, **more: Any) -> asyncio.Future[bytes]:
            nonlocal failures
            if failures:
                failures -= 1
                done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
                done.set_exception(Unavailable("another one leads", reason="NOT_LEADER"))
                return done
            return transact(*given, **more)

        monkeypatch.setattr(region.node, "transact", unlucky)
        eraser = Eraser(region.node)
        eraser.start()
        try:
            await until(lambda: not eraser.report().pending)
        finally:
            await eraser.stop()
        assert not failures
        assert not any(b"secret" in value for _, value in rows(region.store))


async def test_what_is_erased_during_the_first_look_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, gate = threading.Event(), threading.Event()
    look = erasure.Unswept.__init__

    def slow(self: erasure.Unswept, *given: Any) -> None:
        look(self, *given)
        looking.set()
        assert gate.wait(10)

    async with Region() as region:
        await region.create("before", b"secret")
        await region.create("meanwhile", b"secret")
        await erase(region, "before")
        monkeypatch.setattr(erasure.Unswept, "__init__", slow)
        eraser = Eraser(region.node)
        eraser.start()
        try:
            await until(looking.is_set)
            # Nobody may take what was not looked at for done.
            assert eraser.report().pending == 1
            await erase(region, "meanwhile")
            gate.set()
            await until(lambda: not eraser.report().pending)
            assert not any(b"secret" in value for _, value in rows(region.store))
            # The same if the store was replaced while somebody looked at the old one.
            looking.clear()
            gate.clear()
            await region.create("later", b"secret")
            region.node.reloaded()
            await until(looking.is_set)
            region.node.reloaded()
            looking.clear()
            await erase(region, "later")
            gate.set()
            await until(looking.is_set)
            await until(lambda: not eraser.report().pending)
            assert not any(b"secret" in value for _, value in rows(region.store))
        finally:
            gate.set()
            await eraser.stop()


async def test_whoever_leads_next_goes_on() -> None:
    async with erasing() as (region, eraser):
        await region.create("person", b"secret")
        region.log.automatic = False
        erasing_it = asyncio.ensure_future(erase(region, "person"))
        (await within(region.log.appends.get())).commit()
        await within(erasing_it)
        (await within(region.log.appends.get())).discard()
        region.log.lose()
        await settle()
        assert eraser.report().pending == 1
        region.log.automatic = True
        region.log.lead()
        await until(lambda: not eraser.report().pending)
        assert not any(b"secret" in value for _, value in rows(region.store))


def shared(key: bytes, value: bytes, revision: int) -> Shared:
    origin = Origin(home="us", epoch=1, revision=revision, created=revision, version=1)
    return Shared(key=key, value=value, origin=origin)


async def test_a_copy_is_swept_when_nothing_older_can_come() -> None:
    atlas = geography.Atlas("fleet", "eu", {"eu": "eu", "us": "us"}, {"us": frozenset({Reach.GLOBAL})})
    async with erasing(atlas=atlas) as (region, eraser):

        async def take(partition: Partition, feature: Any) -> None:
            await within(region.node.transact(partition, "Take", feature, timeout_s=5))

        await take(system("eu"), lambda tx: federation.learn(tx, "us", Reach.GLOBAL, [ABROAD]))
        carrier = federation.carrier("us", Reach.GLOBAL)
        fresh = Cursor(peer="us", reach=Reach.GLOBAL, epoch=1)
        await take(carrier, lambda tx: federation.begin_listing(tx, "eu", fresh, 5))
        # The record is listed as it was, and erased at home before the listing came to the erasure.
        erased = keys.within(scope_of(ABROAD), "erasure", keys.erasure_name(KEY))
        page = SharedPage(partition=ABROAD.id, upto=KEY, records=[shared(KEY, b"\n\6person\x12\6secret", 4)])
        await take(ABROAD, lambda tx: federation.take_page(tx, "eu", page))
        told = Erasure(kind="workflow", version=2).SerializeToString()
        last = SharedPage(partition=ABROAD.id, after=KEY, upto=b"\xff", last=True)
        await take(ABROAD, lambda tx: federation.take_page(tx, "eu", last))
        copied = [shared(erased, told, 7)]
        await take(ABROAD, lambda tx: federation.take_transaction(tx, "eu", 6, copied))
        await settle()
        assert eraser.report().pending == 1
        assert any(b"secret" in value for _, value in rows(region.store))
        gone = Shared(key=KEY, origin=Origin(home="us", epoch=1, revision=7, created=4, version=2))
        await take(ABROAD, lambda tx: federation.take_transaction(tx, "eu", 7, [gone]))
        await until(lambda: not eraser.report().pending)
        assert not any(b"secret" in value for _, value in rows(region.store))
