"""What a region survives: crashes, absences past compaction, lost disks, and disks that are not the member's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.credentials import Pem
from controlplane.datadir import DataFolder, Standing, Start, open_folder
from controlplane.errors import Fatal, OutcomeUnknown, Unavailable
from controlplane.replication import Role, raft
from controlplane.replication.guard import Bounds, Timing
from controlplane.replication.journal import Journal
from controlplane.replication.raft import RaftConfig, RaftLog
from controlplane.replication.snapshot_files import Incoming
from controlplane.replication.tail import Add, Op, Trim
from controlplane.replication.transport import LinkBounds
from controlplane.storage import RocksStore
from tests.replication.livenodes import FLEET, REGION, Region, running, until

SMALL = {"keep_entries": 50, "keep_bytes": 1 << 16}


async def fill(region: Region, prefix: str, count: int) -> None:
    """Append so many entries, each once. On a machine that is busy with other things, leaders come and go."""
    missing = [f"{prefix}{n:05d}".encode() for n in range(count)]
    async with asyncio.timeout(40):
        while missing:
            leader = await region.leader()
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                outcomes = await asyncio.gather(
                    *(leader.log.append(entry, timeout_s=10) for entry in missing), return_exceptions=True
                )
                for outcome in outcomes:
                    if isinstance(outcome, BaseException) and not isinstance(outcome, Unavailable | OutcomeUnknown):
                        raise outcome
                # Whatever an earlier leader left in doubt is applied by now, or never will be.
                await leader.log.barrier(timeout_s=10)
                there = {*leader.machine.entries()}
                missing = [entry for entry in missing if entry not in there]


async def level(region: Region) -> list[bytes]:
    """Wait until every node applied the same; return it."""
    leader = await region.leader()

    def equal() -> bool:
        return len({node.machine.applied for node in region.nodes.values()}) == 1

    await leader.log.barrier(timeout_s=10)
    await until(equal)
    entries = leader.machine.entries()
    assert all(node.machine.entries() == entries for node in region.nodes.values())
    return entries


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.replication.livenodes import *

async def main():
    async with running(Path(sys.argv[2]), 1, how=Start[sys.argv[3]]) as region:
        leader = await region.leader()
        for n in range(100_000):
            await leader.log.append(b"%06d" % n, timeout_s=5)
            print(n, flush=True)

asyncio.run(main())
"""


def test_sigkill_loses_nothing_acknowledged(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    for how in ("BOOTSTRAP", "NORMAL"):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(Path(__file__).parents[2]), str(tmp_path), how],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for line in child.stdout:
            acknowledged.append(int(line))
            if len(acknowledged) % 300 == 0:
                break
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout]
        child.wait()

    async def entries() -> list[bytes]:
        async with running(tmp_path, 1, how=Start.NORMAL) as region:
            return (await region.leader()).machine.entries()

    kept = asyncio.run(entries())
    half = kept.index(b"000000", 1)
    for part in (kept[:half], kept[half:]):
        assert part == [b"%06d" % n for n in range(len(part))]
    assert len(kept) >= len(acknowledged) >= 600
    assert len(kept) <= len(acknowledged) + 2


async def test_a_node_that_was_away_catches_up_from_the_log(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials) as region:
        await fill(region, "a", 20)
        away = region.followers()[0].name
        await region.stop(away)
        await fill(region, "b", 30)
        await region.start(away)
        assert len(await level(region)) == 50
        assert region.nodes[away].machine.reloads == 0


async def test_a_node_that_was_away_gets_large_entries_no_faster_than_its_link_holds(tmp_path: Path) -> None:
    async with running(tmp_path, 3, keep_bytes=64 << 20) as region:
        leader, (away, *_) = await region.leader(), region.followers()
        await region.stop(away.name)
        for _ in range(20):
            await leader.log.append(os.urandom(1_100_000), timeout_s=10)
        counters = leader.log.counters
        broken, dropped = counters.links_broken, counters.messages_dropped
        await region.start(away.name)
        assert len(await level(region)) == 20
        assert counters.links_broken == broken
        # What was meant for it before its link was there; of the entries nothing.
        assert counters.messages_dropped - dropped <= 3
        assert region.nodes[away.name].machine.reloads == 0


def test_what_may_be_on_its_way_to_a_follower_fits_its_link() -> None:
    def config(**bounds: object) -> RaftConfig:
        return RaftConfig(FLEET, REGION, "n1", "127.0.0.1:0", {}, None, **bounds)  # type: ignore[arg-type]

    assert config().bounds.follower_bytes_max <= config().links.waiting_bytes_max
    with pytest.raises(ValueError, match="a link holds"):
        config(bounds=Bounds(bytes_in_flight_max=16 << 20))
    with pytest.raises(ValueError, match="a link holds"):
        config(links=LinkBounds(waiting_bytes_max=8 << 20))


async def test_a_node_that_was_away_past_compaction_gets_a_snapshot(
    tmp_path: Path, credentials: Callable[..., Pem]
) -> None:
    async with running(tmp_path, 3, credentials, **SMALL) as region:
        await fill(region, "a", 20)
        away = region.followers()[0].name
        await region.stop(away)
        for part in range(5):
            await fill(region, f"b{part}", 100)
        leader = await region.leader()
        await until(lambda: leader.log._tail.boundary_index > 100)
        await region.start(away)
        assert len(await level(region)) == 520
        assert region.nodes[away].machine.reloads >= 1
        await fill(region, "c", 20)
        await level(region)
        await region.stop(away)
        await region.start(away)
        assert len(await level(region)) == 540


@pytest.mark.parametrize("broken_off", [False, True])
async def test_a_snapshot_of_many_pieces_arrives_also_after_it_was_broken_off(
    tmp_path: Path, credentials: Callable[..., Pem], broken_off: bool
) -> None:
    async with running(tmp_path, 3, credentials, **SMALL) as region:
        away = (await region.leader()) and region.followers()[0].name
        await region.stop(away)
        leader = await region.leader()
        for n in range(200):
            await leader.log.append(b"%03d" % n + os.urandom(40_000), timeout_s=10)
        await until(lambda: leader.log._tail.boundary_index > 100)
        if broken_off:
            await region.start(away)
            incoming = region.nodes[away].log._incoming
            await until(lambda: incoming._size > 0 or region.nodes[away].machine.reloads > 0)
            await region.stop(away)
        await region.start(away)
        entries = await level(region)
        assert [entry[:3] for entry in entries] == [b"%03d" % n for n in range(200)]
        assert region.nodes[away].machine.reloads or broken_off
        await until(lambda: not list((tmp_path / leader.name / "snapshots").glob("out-*")))


async def test_entries_go_on_while_a_snapshot_is_on_its_way(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials, **SMALL) as region:
        away = (await region.leader()) and region.followers()[0].name
        await region.stop(away)
        for part in range(4):
            await fill(region, f"a{part}", 100)
        leader = await region.leader()
        await until(lambda: leader.log._tail.boundary_index > 100)
        starting = asyncio.create_task(region.start(away))
        written = 0
        while not (starting.done() and region.nodes[away].machine.reloads):
            await fill(region, f"b{written}", 5)
            written += 5
            assert written < 20_000
        assert len(await level(region)) == 400 + written


async def test_a_lost_disk_is_replaced_and_counts_again(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials, **SMALL) as region:
        await fill(region, "a", 200)
        lost = region.followers()[0].name
        await region.stop(lost)
        (tmp_path / lost).rename(tmp_path / "lost")
        await region.start(lost, how=Start.REPLACE)
        assert len(await level(region)) == 200
        node = region.nodes[lost]
        await until(lambda: node.log._folder.identity.standing is Standing.MEMBER)
        leader = await region.leader()
        third = next(name for name in region.names if name not in (lost, leader.name))
        await region.stop(third)
        await fill(region, "b", 20)
        assert len((await region.leader()).machine.entries()) == 220


async def test_an_emptied_disk_cannot_bootstrap_again(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials) as region:
        await fill(region, "a", 5)
        lost = region.followers()[0].name
        await region.stop(lost)
        (tmp_path / lost).rename(tmp_path / "lost")
        with pytest.raises(Fatal, match="--replace"):
            await region.start(lost, how=Start.BOOTSTRAP)
        await fill(region, "b", 5)


async def test_the_old_disk_is_refused_after_its_replacement(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials) as region:
        await fill(region, "a", 5)
        lost = region.followers()[0].name
        await region.stop(lost)
        (tmp_path / lost).rename(tmp_path / "old")
        await region.start(lost, how=Start.REPLACE)
        await until(lambda: region.nodes[lost].log._folder.identity.standing is Standing.MEMBER)
        await region.stop(lost)
        (tmp_path / lost).rename(tmp_path / "new")
        (tmp_path / "old").rename(tmp_path / lost)
        await region.start(lost)
        node = region.nodes[lost]
        await until(node.log.failed.done)
        with pytest.raises(Fatal, match="is not the disk that"):
            node.log.failed.result()
        await fill(region, "b", 5)


async def test_who_is_a_stranger_to_one_disk_of_before_goes_on(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials) as region:
        await fill(region, "a", 5)
        replaced, back = (node.name for node in region.followers())
        await region.stop(back)
        await asyncio.to_thread(shutil.copytree, tmp_path / back, tmp_path / "old")
        await region.start(back)
        await region.stop(replaced)
        (tmp_path / replaced).rename(tmp_path / "lost")
        await region.start(replaced, how=Start.REPLACE)
        log = region.nodes[replaced].log
        await until(lambda: log._folder.identity.standing is Standing.MEMBER)
        await region.stop(back)
        await asyncio.to_thread(shutil.rmtree, tmp_path / back)
        (tmp_path / "old").rename(tmp_path / back)
        await region.start(back)
        await until(lambda: back in log._refusals)
        assert not log.failed.done()
        await fill(region, "b", 5)
        assert not log.failed.done()


async def test_a_disk_that_forgot_what_it_acknowledged_is_refused(
    tmp_path: Path, credentials: Callable[..., Pem]
) -> None:
    """Its syncs lied and the power went, or an old copy was put back: it may not vote as if nothing had happened."""
    # Only the leader that counted it can tell, so this one has to stay.
    patient = Timing(election_min_s=2.0, election_max_s=3.0)
    async with running(tmp_path, 3, credentials, timing=patient) as region:
        await fill(region, "a", 5)
        await level(region)
        back = region.followers()[0].name
        await region.stop(back)
        await asyncio.to_thread(shutil.copytree, tmp_path / back, tmp_path / "old")
        await region.start(back)
        await fill(region, "b", 5)
        await level(region)
        # Stopped before its last acknowledgement arrived, it would have lost nothing that anybody counts on.
        leader = (await region.leader()).log
        await until(lambda: leader._guard.acknowledged(back) == leader._tail.last_index)
        await region.stop(back)
        await asyncio.to_thread(shutil.rmtree, tmp_path / back)
        (tmp_path / "old").rename(tmp_path / back)
        await region.start(back)
        node = region.nodes[back]
        await until(node.log.failed.done)
        with pytest.raises(Fatal, match=r"lost what it said was safe.*--replace"):
            node.log.failed.result()
        await region.stop(back)
        await asyncio.to_thread(shutil.rmtree, tmp_path / back)
        await region.start(back, how=Start.REPLACE)
        await fill(region, "c", 5)
        assert len(await level(region)) == 15


async def test_a_bootstrap_waits_for_every_member_and_says_which_is_missing(
    tmp_path: Path, credentials: Callable[..., Pem]
) -> None:
    region = Region(tmp_path, ("n1", "n2", "n3"), credentials, {"join_timeout_s": 0.5})
    with pytest.raises(Fatal, match=r"not reached: n3\."):
        await region.start("n1", "n2", how=Start.BOOTSTRAP)
    await region.stop()


async def test_a_slow_member_may_bootstrap_after_the_others_began(
    tmp_path: Path, credentials: Callable[..., Pem]
) -> None:
    region = Region(tmp_path, ("n1", "n2", "n3"), credentials, {})
    nodes = [await region._prepare(name, Start.BOOTSTRAP) for name in region.names]
    region.addresses = {node.name: f"127.0.0.1:{node.log.port}" for node in nodes}
    await asyncio.gather(*(node.log.start(node.machine, peers=region._others(node.name)) for node in nodes))
    region.nodes = {node.name: node for node in nodes}
    await fill(region, "a", 3)
    await region.stop("n3")
    _set_back(tmp_path / "n3")
    await region.start("n3", how=Start.BOOTSTRAP)
    assert len(await level(region)) == 3
    await region.stop()


def _set_back(path: Path) -> None:
    """As if the node had crashed just before it noticed that it had joined."""
    folder = open_folder(path, fleet=FLEET, region=REGION, node="n3", start=Start.NORMAL)
    folder.stand(Standing.BOOTSTRAPPING)
    folder.close()


async def test_a_member_without_its_journal_stops(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as region:
        await fill(region, "a", 5)
    for path in (tmp_path / "n1" / "journal").iterdir():
        path.unlink()
    with pytest.raises(Fatal, match=r"journal .* is empty, but this node is a member.*--replace"):
        async with running(tmp_path, 1, how=Start.NORMAL):
            pass


async def test_a_region_of_one_cannot_replace_its_disk(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="no peers to replace"):
        async with running(tmp_path, 1, how=Start.REPLACE):
            pass


async def test_b8_a_disk_that_refuses_stops_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, 1) as region:
        node = await region.leader()
        await fill(region, "a", 5)

        def refuse(*_: object) -> None:
            raise Fatal("journal: cannot write: no space left on device. Free or replace the disk, then start again.")

        monkeypatch.setattr(Journal, "write", refuse)
        with pytest.raises(OutcomeUnknown):
            await node.log.append(b"never", timeout_s=5)
        await until(node.log.failed.done)
        with pytest.raises(Fatal, match="no space left"):
            node.log.failed.result()
        assert b"never" not in node.machine.entries()


async def test_b8_a_follower_whose_disk_refuses_stops_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, 3) as region:
        await fill(region, "a", 5)
        failing, *_ = region.followers()
        write = Journal.write

        def refuse(journal: Journal, ops: list[Op]) -> None:
            if journal is failing.log._journal:
                raise Fatal("journal: cannot write: Input/output error")
            write(journal, ops)

        monkeypatch.setattr(Journal, "write", refuse)
        await fill(region, "b", 5)
        await until(failing.log.failed.done)
        assert not any(entry.startswith(b"b") for entry in failing.machine.entries())
        assert len(region.working()) == 2


async def test_a_defect_in_the_journal_thread_stops_the_node_and_not_the_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its thread a leader writes nothing more: it must not go on leading."""
    async with running(tmp_path, 3) as region:
        await fill(region, "a", 5)
        failing = await region.leader()
        write = Journal.write

        def explode(journal: Journal, ops: list[Op]) -> None:
            if journal is failing.log._journal and threading.current_thread() is not threading.main_thread():
                raise MemoryError("no memory for one batch")
            write(journal, ops)

        monkeypatch.setattr(Journal, "write", explode)
        with pytest.raises(OutcomeUnknown):
            await failing.log.append(bytes(raft._INLINE_BYTES_MAX + 1), timeout_s=10)
        await until(failing.log.failed.done)
        with pytest.raises(Fatal, match="no memory for one batch"):
            failing.log.failed.result()
        # As the entry point does, which waits for `failed`.
        await region.stop(failing.name)
        await fill(region, "b", 5)


async def test_nothing_is_closed_under_a_journal_thread_that_the_disk_holds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(raft, "_WRITER_STOP_S", 0.05)
    hangs, goes_on = threading.Event(), threading.Event()
    fdatasync = os.fdatasync
    synced: list[bool] = []

    def held(descriptor: int) -> None:
        if threading.current_thread().name == "journal":
            hangs.set()
            assert goes_on.wait(30)
            with contextlib.suppress(OSError):
                fdatasync(descriptor)
                synced.append(True)
        else:
            fdatasync(descriptor)

    async with running(tmp_path, 1) as region:
        node = await region.leader()
        monkeypatch.setattr(os, "fdatasync", held)
        asking = asyncio.create_task(node.log.append(bytes(raft._INLINE_BYTES_MAX + 1), timeout_s=10))
        await until(hangs.is_set)
        await region.stop(node.name)
        with pytest.raises(OutcomeUnknown):
            await asking
    assert "journal_left_open" in caplog.text
    with pytest.raises(Fatal, match="in use"):
        open_folder(tmp_path / "n1", fleet=FLEET, region=REGION, node="n1", start=Start.NORMAL)
    goes_on.set()
    node.log._writer._thread.join(30)
    assert synced, "the file was closed meanwhile"
    node.log._close_disk()
    node.log._folder.close()


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.LEADER], ids=["follower", "leader"])
async def test_a_node_leaves_a_slow_disk_to_its_thread(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop writes small batches itself, until one takes long: then it goes on hearing while the disk works."""
    monkeypatch.setattr(raft, "_INLINE_PAUSES", 1e9)
    monkeypatch.setattr(raft, "_INLINE_S_MAX", 60.0)
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        chosen = leader if role is Role.LEADER else region.followers()[0]
        write, threads = Journal.write, []

        def watched(journal: Journal, ops: list[Op]) -> None:
            if journal is chosen.log._journal:
                threads.append(threading.current_thread())
            write(journal, ops)

        monkeypatch.setattr(Journal, "write", watched)
        await fill(region, "a", 3)
        await level(region)
        assert threading.main_thread() in threads
        monkeypatch.setattr(raft, "_INLINE_S_MAX", -1.0)  # However long the next one takes, it is too long.
        await fill(region, "b", 1)
        await level(region)
        threads.clear()
        await fill(region, "c", 3)
        await level(region)
        assert threads
        assert threading.main_thread() not in threads


async def test_nobody_waits_for_what_only_the_own_node_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader's appends leave before its own sync, a follower's acknowledgement before it applies what came along."""
    monkeypatch.setattr(raft, "_INLINE_S_MAX", 60.0)
    # Beats are rare, so that commits travel with entries also on a busy machine.
    rare = Timing(election_min_s=0.9, election_max_s=1.8, beat_s=0.3, notice_s=1.0)
    async with running(tmp_path, 3, timing=rare) as region:
        leader, (follower, *_) = await region.leader(), region.followers()
        write, apply = Journal.write, follower.machine.apply
        unsent: list[int] = []
        done: list[tuple[str, int]] = []

        def wrote(journal: Journal, ops: list[Op]) -> None:
            added = [op.index for op in ops if isinstance(op, Add)]
            if journal is leader.log._journal and added:
                unsent.extend(len(link.waiting) for link in leader.log._transport._links.values())
            elif journal is follower.log._journal:
                done.extend(("written", index) for index in added)
            write(journal, ops)

        def applied(index: int, term: int, entry: bytes) -> None:
            done.append(("acknowledged", sum(len(link.waiting) for link in follower.log._transport._links.values())))
            done.append(("applied", index))
            apply(index, term, entry)

        monkeypatch.setattr(Journal, "write", wrote)
        monkeypatch.setattr(follower.machine, "apply", applied)
        for n in range(10):
            await leader.log.append(b"%d" % n, timeout_s=5)
        await level(region)
        # A link that is still busy with the message before lets the next one wait: most have left.
        assert len(unsent) >= 20
        assert unsent.count(0) > len(unsent) / 2
        waiting = [count for what, count in done if what == "acknowledged"]
        assert waiting.count(0) > len(waiting) / 2
        order = {step: place for place, step in enumerate(done)}
        last = max(index for what, index in done if what == "written")
        # The commit of an entry comes with the next one, or with a beat if that is late.
        later = [order["applied", index] > order["written", index + 1] for index in range(last - 9, last)]
        assert sum(later) >= 5


async def test_b9_an_unexpected_exception_in_apply_stops_the_node(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as region:
        node = await region.leader()

        def explode(*_: object) -> None:
            raise ZeroDivisionError

        node.machine.apply = explode  # type: ignore[method-assign]
        with pytest.raises(OutcomeUnknown):
            await node.log.append(b"x", timeout_s=5)
        with pytest.raises(Fatal, match="ZeroDivisionError"):
            node.log.failed.result()


async def test_the_log_is_not_trimmed_beyond_what_the_store_has_on_disk(tmp_path: Path) -> None:
    """What was applied while the store was synced may not be in it yet, should the power go."""
    begun, goes_on = threading.Event(), threading.Event()
    safe = 0
    async with running(tmp_path, 1, keep_entries=2, keep_bytes=1 << 20) as region:
        node = await region.leader()
        sync = node.machine.store.sync

        def slow() -> None:
            nonlocal safe
            index, _ = node.machine.applied
            sync()
            begun.set()
            assert goes_on.wait(30)
            safe = max(safe, index)

        node.machine.store.sync = slow  # type: ignore[method-assign]
        await fill(region, "a", 10)
        await until(begun.is_set)
        await fill(region, "b", 20)
        assert node.log._tail.boundary_index == 0
        goes_on.set()
        await until(lambda: node.log._tail.boundary_index > 0)
        assert node.log._tail.boundary_index <= safe


async def test_a_scrub_trims_what_is_in_the_store_and_waits_until_that_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the store is synced, then the log is trimmed on its disk too, and then files are written anew."""
    done: list[str] = []
    scrubbing = threading.Event()
    write, scrub = Journal.write, Journal.scrub

    def late(journal: Journal, ops: list[Op]) -> None:
        if any(isinstance(op, Trim) for op in ops):
            scrubbing.wait(0.2)
            done.append("trimmed")
        write(journal, ops)

    def noted(journal: Journal) -> bool:
        scrubbing.set()
        done.append("written anew")
        return scrub(journal)

    async with running(tmp_path, 1) as region:
        node = await region.leader()
        await fill(region, "a", 10)
        sync = node.machine.store.sync
        node.machine.store.sync = lambda: done.append("synced") or sync()  # type: ignore[func-returns-value, method-assign]
        monkeypatch.setattr(raft, "_INLINE_BYTES_MAX", -1)  # The thread writes everything.
        monkeypatch.setattr(Journal, "write", late)
        monkeypatch.setattr(Journal, "scrub", noted)
        await node.log.scrub(7)
        assert done == ["synced", "trimmed", "written anew"]
        assert node.log.scrubbed == 7
        monkeypatch.setattr(node.log._folder, "free_bytes", lambda: 1 << 20)
        with pytest.raises(Unavailable) as full:
            await node.log.scrub(8)
        assert full.value.reason == "DISK_FULL"
        monkeypatch.undo()
        for part in (Journal, RocksStore):
            monkeypatch.setattr(part, "scrub", lambda _: False)
            with pytest.raises(Unavailable) as used:
                await node.log.scrub(8)
            assert used.value.reason == "FILES_IN_USE"
            monkeypatch.undo()
        assert node.log.scrubbed == 7


async def test_a_bootstrap_that_ends_at_once_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member without a journal is taken for one that lost it, so the journal comes first."""
    stand = DataFolder.stand

    def crash(folder: DataFolder, standing: Standing) -> None:
        stand(folder, standing)
        raise Fatal("the power went")

    monkeypatch.setattr(DataFolder, "stand", crash)
    with pytest.raises(Fatal, match="the power went"):
        async with running(tmp_path, 1):
            pass
    monkeypatch.undo()
    async with running(tmp_path, 1, how=Start.NORMAL) as region:
        await fill(region, "a", 1)


@pytest.mark.parametrize("step", ["produce", "write", "stage"])
async def test_a_snapshot_that_fails_once_is_made_or_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    place = Incoming if step == "write" else raft
    works = getattr(place, step)
    failed: list[str] = []

    def fails(*given: object) -> object:
        if not failed:
            failed.append(step)
            raise Fatal("as told")
        return works(*given)

    async with running(tmp_path, 3, **SMALL) as region:
        await fill(region, "a", 20)
        away = region.followers()[0].name
        await region.stop(away)
        await fill(region, "b", 200)
        leader = await region.leader()
        await until(lambda: leader.log._tail.boundary_index > 100)
        monkeypatch.setattr(place, step, fails)
        await region.start(away)
        assert len(await level(region)) == 220
        assert failed
        # What it had before takes no room any more.
        await until(lambda: len(list((tmp_path / away / "store").glob("[0-9]*"))) == 1)


async def test_a_node_looks_after_the_room_on_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path, 1) as region:
        log = (await region.leader()).log
        folder = log._folder
        assert folder.ballast_bytes == log.config.ballast_bytes
        monkeypatch.setattr(DataFolder, "free_bytes", lambda _: 1000)
        await until(lambda: log.free_bytes == 1000)
        assert folder.ballast_bytes == 0
        monkeypatch.undo()
        await until(lambda: folder.ballast_bytes == log.config.ballast_bytes)
        assert log.free_bytes > 1000


async def test_log_and_disk_stay_bounded_under_sustained_writing(tmp_path: Path) -> None:
    async with running(tmp_path, 1, keep_entries=200, keep_bytes=1 << 20) as region:
        node = await region.leader()
        for _ in range(30):
            await asyncio.gather(*(node.log.append(b"v" * 2000, timeout_s=10) for _ in range(200)))
            await until(lambda: len(node.log._tail) <= 700)
        assert node.log._journal.size_bytes() < 60 << 20


def test_the_log_of_a_node_is_configured_with_loopback_or_certificates(tmp_path: Path) -> None:
    async def make(listen: str, peers: dict[str, str]) -> None:
        folder = open_folder(tmp_path, fleet=FLEET, region=REGION, node="n1", start=Start.BOOTSTRAP)
        try:
            RaftLog(RaftConfig(FLEET, REGION, "n1", listen, peers, None), folder)
        finally:
            folder.close()

    for listen, peers in (("0.0.0.0:0", {}), ("127.0.0.1:0", {"n2": "192.0.2.1:7000"})):
        with pytest.raises(ValueError, match="loopback"):
            asyncio.run(make(listen, peers))
