"""What a read may be answered from, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controlplane import limits
from controlplane.errors import ControlPlaneError, Fatal, Invalid, Refused, Unavailable
from controlplane.kernel import keys, machine
from controlplane.kernel.store import MemoryStore, Row
from controlplane.v1 import api_pb2 as api
from controlplane.v1.state_pb2 import Entry, Txn
from tests.node.harness import PATIENCE_S, Region, message, reply_of, settle, until, within

LINEARIZABLE, AT_LEAST, LOCAL = api.LINEARIZABLE, api.AT_LEAST, api.LOCAL


def reading(region: Region, deadline_s: float = 5.0, **header: object) -> asyncio.Future[bytes]:
    return region.submit("GetWorkflow", api.GetWorkflowRequest(id="w", header=header), deadline_s=deadline_s)


async def version(future: asyncio.Future[bytes]) -> int:
    return int(reply_of("GetWorkflow", await within(future)).workflow.version)


async def failure(future: asyncio.Future[bytes]) -> ControlPlaneError:
    with pytest.raises(ControlPlaneError) as caught:
        await within(future)
    return caught.value


def refusal(region: Region) -> bytes:
    """An entry that takes one revision and changes no record."""
    return machine.pack(Entry(base=region.node.revision, salt=region.entropy(16), txns=[Txn()]))


async def test_reads_that_arrive_together_share_a_barrier_and_later_ones_wait_for_their_own() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        early = [reading(region) for _ in range(5)]
        first = await within(region.log.barriers.get())
        late = reading(region)
        second = await within(region.log.barriers.get())
        assert region.log.barriers.empty()
        first.answer()
        assert [await version(future) for future in early] == [1] * 5
        await settle()
        assert not late.done()
        second.answer()
        assert await version(late) == 1


async def test_a_read_sees_what_was_committed_before_it_even_if_its_barrier_ends_first() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        early = reading(region)
        barrier = await within(region.log.barriers.get())
        write = region.submit(
            "CompareAndSwapWorkflow", api.CompareAndSwapWorkflowRequest(id="w", version=1, state=b"x")
        )
        (await within(region.log.appends.get())).commit()
        await within(write)
        after = reading(region)
        barrier.answer()
        assert await version(early) == 2
        assert not after.done()
        (await within(region.log.barriers.get())).answer()
        assert await version(after) == 2


async def test_a_barrier_that_fails_fails_its_reads_and_no_others() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        one = reading(region)
        first = await within(region.log.barriers.get())
        other = reading(region)
        second = await within(region.log.barriers.get())
        first.discard()
        assert isinstance(await failure(one), Unavailable)
        second.answer()
        assert await version(other) == 1


async def test_readers_of_one_round_each_wait_until_their_own_deadline() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        hasty, patient = reading(region, deadline_s=0.05), reading(region, deadline_s=60.0)
        barrier = await within(region.log.barriers.get())
        assert region.log.barriers.empty()
        assert (await failure(hasty)).reason == "NO_MAJORITY"
        assert not patient.done()
        barrier.answer()
        assert await version(patient) == 1
        assert isinstance(await failure(reading(region, deadline_s=-1.0)), Unavailable)


async def test_a_linearizable_read_says_how_long_its_proof_took() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        read = reading(region, deadline_s=60.0)
        barrier = await within(region.log.barriers.get())
        region.now_s += 1.2345
        barrier.answer()
        assert api.GetWorkflowReply.FromString(await within(read)).header.age_ms == 1235


async def test_losing_leadership_fails_no_read() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        reads = [reading(region), reading(region, consistency=AT_LEAST, revision=2)]
        barrier = await within(region.log.barriers.get())
        region.submit("CreateWorkflow", api.CreateWorkflowRequest(id="v"))
        (await within(region.log.appends.get())).unknown()
        region.submit("CreateWorkflow", api.CreateWorkflowRequest(id="u"))
        region.log.lose()
        await settle()
        assert not any(read.done() for read in reads)
        barrier.answer()
        region.log.commit(refusal(region))
        assert [await version(read) for read in reads] == [1, 1]


async def test_local_reads_are_immediate_and_say_how_old_they_may_be() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        region.log.lose()
        region.log.fresh_s = 1.5
        read = reading(region, consistency=LOCAL, revision=99)
        assert read.done()
        header = reply_of("GetWorkflow", read.result()).header
        assert (header.revision, header.age_ms) == (1, 1500)
        # An upper bound is rounded up.
        region.log.fresh_s = 0.0001
        assert reply_of("GetWorkflow", reading(region, consistency=LOCAL).result()).header.age_ms == 1
        region.log.fresh_s = float("inf")
        assert reply_of("GetWorkflow", reading(region, consistency=LOCAL).result()).header.age_ms == (1 << 32) - 1
        region.log.fresh_s = 1e30
        assert reply_of("GetWorkflow", reading(region, consistency=LOCAL).result()).header.age_ms == (1 << 32) - 1


async def test_at_least_waits_for_its_revision_even_if_that_changed_nothing() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        assert reading(region, consistency=AT_LEAST, revision=1).done()
        waiting = [reading(region, consistency=AT_LEAST, revision=revision) for revision in (3, 2, 4)]
        await settle()
        for revision in (2, 3):
            region.log.commit(refusal(region))
            await settle()
            expected = [wanted <= revision for wanted in (3, 2, 4)]
            assert [read.done() for read in waiting] == expected
        region.log.commit(refusal(region))
        assert [reply_of("GetWorkflow", await within(read)).header.revision for read in waiting] == [3, 2, 4]


async def test_at_least_gives_up_at_its_deadline_and_leaves_nothing_behind() -> None:
    async with Region() as region:
        await region.create("w")
        for _ in range(20):
            read = reading(region, deadline_s=0.002, consistency=AT_LEAST, revision=(1 << 64) - 1)
            error = await failure(read)
            assert (type(error), error.reason) == (Unavailable, "REVISION_NOT_REACHED")
        assert region.node._watches._waiting == []
        await until(lambda: not region.node._readers)


async def test_many_who_give_up_waiting_for_a_revision_cost_no_more_each_than_one() -> None:
    looked_at = 0

    class Counted(asyncio.Future[None]):
        def done(self) -> bool:
            nonlocal looked_at
            looked_at += 1
            return super().done()

    async with Region() as region:
        watches = region.node._watches
        stays = [watches.reached(revision) for revision in (7, 6, 5)]
        leaves = [Counted() for _ in range(300)]
        for n, each in enumerate(leaves):
            watches._waiting.append((100, 100 + n, each))
        for each in leaves:
            watches.give_up(each)
        assert looked_at < 5 * 300
        assert len(watches._waiting) <= 2 * len(stays)
        watches._reach(6)
        assert [each.done() for each in stays] == [False, True, True]


@pytest.mark.parametrize("ahead", [False, True])
async def test_reads_that_fail_together_are_told_over_several_turns(
    monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    monkeypatch.setattr(limits, "TURN_CALLS_MAX", 4)
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        header = {"consistency": AT_LEAST, "revision": 9} if ahead else {}
        reads = [reading(region, deadline_s=-1.0 if ahead else 60.0, **header) for _ in range(20)]
        if not ahead:
            (await within(region.log.barriers.get())).discard()
        assert await answered_in_turns(reads) == [4] * 5
        reasons = {error.reason for read in reads if isinstance(error := read.exception(), Unavailable)}
        assert reasons == {"REVISION_NOT_REACHED" if ahead else "NO_LEADER"}
        await settle()
        assert region.node._watches._waiting == []


async def test_reads_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait for a revision take no room from the others."""
    monkeypatch.setattr(limits, "QUEUE_CALLS_MAX", 2)
    monkeypatch.setattr(limits, "READS_AHEAD_MAX", 3)
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        for _ in range(3):
            reading(region, consistency=AT_LEAST, revision=9)
        waiting = [reading(region), reading(region)]
        for header in ({}, {"consistency": AT_LEAST, "revision": 9}):
            assert (await failure(reading(region, **header))).reason == "OVERLOADED"
        assert reading(region, consistency=LOCAL).done()
        while not waiting[0].done():
            (await within(region.log.barriers.get())).answer()
            await settle()
        assert await version(waiting[0]) == 1


class Slow(MemoryStore):
    """Looking a record up takes more than half of what reads may take of one turn."""

    region: Region

    def get(self, key: bytes) -> bytes | None:
        if key.startswith(keys.RECORD):
            self.region.now_s += 0.6 * limits.TURN_S
        return super().get(key)


async def slow_region() -> Region:
    store = Slow()
    store.region = Region(store=store)
    return store.region


async def answered_in_turns(reads: list[asyncio.Future[bytes]]) -> list[int]:
    """How many of `reads` each turn of the loop answered, of those turns that answered any."""
    counts = []
    async with asyncio.timeout(PATIENCE_S):
        while not all(read.done() for read in reads):
            before = sum(read.done() for read in reads)
            await asyncio.sleep(0)
            counts.append(sum(read.done() for read in reads) - before)
    return [count for count in counts if count]


@pytest.mark.parametrize("consistency", [LINEARIZABLE, AT_LEAST, LOCAL])
async def test_reads_that_could_be_answered_together_leave_turns_to_others(consistency: int) -> None:
    async with await slow_region() as region:
        await region.create("w")
        region.log.automatic = False
        reads = [reading(region, deadline_s=60.0, consistency=consistency, revision=2) for _ in range(10)]
        if consistency == LINEARIZABLE:
            (await within(region.log.barriers.get())).answer()
        region.log.commit(refusal(region))
        done = sum(read.done() for read in reads)
        assert done == (2 if consistency == LOCAL else 0)
        assert await answered_in_turns(reads) == [2] * ((10 - done) // 2)


async def test_after_a_turn_full_of_reads_others_have_as_much_of_the_loop() -> None:
    async with await slow_region() as region:
        await region.create("w")
        loop, turns = asyncio.get_running_loop(), 0
        began = loop.time()
        reads = [reading(region, deadline_s=60.0, consistency=LOCAL) for _ in range(4)]
        while not reads[-1].done():
            turns += 1
            await asyncio.sleep(0)
        assert loop.time() - began >= 1.1 * limits.TURN_S
        assert turns > 2


async def test_answers_are_bounded_by_number_too_and_each_is_of_the_state_of_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "TURN_CALLS_MAX", 4)
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        reads = [reading(region) for _ in range(10)]
        barrier = await within(region.log.barriers.get())
        barrier.answer()
        reads[0].add_done_callback(lambda _: region.log.commit(refusal(region)))
        assert await answered_in_turns(reads) == [4, 4, 2]
        revisions = [reply_of("GetWorkflow", read.result()).header.revision for read in reads]
        assert (revisions[0], revisions[-1]) == (1, 2)
        assert revisions == sorted(revisions)


async def test_local_reads_that_wait_for_their_turn_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TURN_CALLS_MAX", 1)
    monkeypatch.setattr(limits, "QUEUE_CALLS_MAX", 3)
    async with Region() as region:
        await region.create("w")
        reads = [reading(region, consistency=LOCAL) for _ in range(5)]
        assert [read.done() for read in reads] == [True, False, False, False, True]
        assert (await failure(reads[4])).reason == "OVERLOADED"
        assert [await version(read) for read in reads[:4]] == [1] * 4
        assert not region.node._readers


class Damaged(MemoryStore):
    """Cannot be read once it is `bad`."""

    bad: Exception | None = None

    def get(self, key: bytes) -> bytes | None:
        self._check()
        return super().get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        self._check()
        return super().scan(start, end, reverse=reverse)

    def snapshot(self) -> Damaged:
        return self

    def _check(self) -> None:
        if self.bad is not None:
            raise self.bad


@asynccontextmanager
async def damaged(error: Exception) -> AsyncIterator[Region]:
    """A node that was well until its store was found damaged, and which that has to stop."""
    store = Damaged()
    region = Region(store=store)
    await region.node.start()
    region.log.commit(refusal(region))
    store.bad = error
    yield region
    with pytest.raises(type(error)):
        await within(region.node.failed)
    await region.node.stop()


@pytest.mark.parametrize(
    "header", [{"consistency": LOCAL}, {"consistency": AT_LEAST, "revision": 2}, {"consistency": AT_LEAST}, {}]
)
@pytest.mark.parametrize("error", [Fatal("block checksum mismatch"), KeyError("a defect")])
async def test_what_a_read_finds_broken_stops_the_node_and_is_answered(
    error: Exception, header: dict[str, int]
) -> None:
    async with damaged(error) as region:
        read = reading(region, deadline_s=60.0, **header)
        if header.get("revision"):
            region.log.lose()
            region.node._watches._reach(2)
        with pytest.raises((Unavailable, KeyError)) as caught:
            await within(read)
        assert isinstance(caught.value, Unavailable) == isinstance(error, Fatal)
        assert getattr(caught.value, "reason", "NODE_FAILED") == "NODE_FAILED"


@pytest.mark.parametrize("where", ["start", "listing", "behind"])
async def test_what_a_watch_finds_broken_stops_the_node_and_is_told(where: str) -> None:
    async with damaged(Fatal("block checksum mismatch")) as region:
        store: Any = region.store
        following = region.watch(api.WatchRequest(kinds=["workflow"], snapshot=where == "listing"))
        if where == "behind":
            store.bad, error = None, store.bad
            await message(following)
            await region.create("w")
            region.node.forget_past()
            store.bad = error
        with pytest.raises(Unavailable) as caught:
            await message(following)
        assert caught.value.reason == "NODE_FAILED"


@pytest.mark.parametrize("consistency", [3, -1, 1 << 30])
async def test_an_unknown_consistency_is_not_taken_for_a_weak_one(consistency: int) -> None:
    async with Region() as region:
        await region.create("w")
        error = await failure(reading(region, consistency=consistency))
        assert (type(error), error.reason) == (Invalid, "CONSISTENCY_UNKNOWN")


async def test_an_error_of_one_read_is_its_own() -> None:
    async with Region() as region:
        await region.create("w")
        bad = region.submit("GetWorkflow", api.GetWorkflowRequest(id="nobody"))
        good = reading(region)
        assert (await failure(bad)).reason == "WORKFLOW_NOT_FOUND"
        assert await version(good) == 1


async def test_a_reader_that_went_away_is_in_nobody_s_way() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        gone, stays = reading(region), reading(region)
        gone.cancel()
        (await within(region.log.barriers.get())).answer()
        assert await version(stays) == 1


async def test_a_revision_that_is_not_there_yet_is_not_answered_with_the_present() -> None:
    async with Region() as region:
        await region.create("w")
        request = api.GetWorkflowRequest(id="w", at_revision=2, header={"consistency": LOCAL})
        error = await failure(region.submit("GetWorkflow", request))
        assert (type(error), error.reason) == (Refused, "REVISION_IN_FUTURE")
        request.at_revision = 1
        assert (await within(region.submit("GetWorkflow", request))) is not None


@pytest.mark.parametrize("method", ["Nothing", "", "Watch", "x" * 5000])
async def test_an_unknown_method_is_invalid(method: str) -> None:
    async with Region() as region:
        error = await failure(region.submit(method, api.GetWorkflowRequest(id="w")))
        assert (type(error), error.reason) == (Invalid, "METHOD_UNKNOWN")
        assert len(str(error)) < 200
