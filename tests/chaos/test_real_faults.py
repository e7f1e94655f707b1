"""The faults themselves: do proxies, namespaces and shim break what they say, and does a region get over it?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chaos.real import Unsupported
from chaos.real.cluster import Cluster, NodeEnded, Replicas, compare
from chaos.real.disks import drop_unsynced
from chaos.real.faults import NEMESES
from chaos.real.links import SHAPES, Pace, all_pairs, isolated
from chaos.real.namespaces import Namespaces
from chaos.real.proxies import Proxies, holds
from chaos.real.shim import FAILING, FULL, LYING, Durable, Orders, Shim, build
from controlplane import sdk
from controlplane.kernel.keys import STATE
from controlplane.kernel.store import Batch
from controlplane.replication.journal import Journal
from controlplane.replication.tail import Entry
from controlplane.storage import RocksStore
from controlplane.v1.state_pb2 import State

THERE, BACK = ("a", "b"), ("b", "a")
SILENT_S = 0.15

# -- shapes of partitions


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_partition_cuts_something_and_leaves_something(shape: str, size: int) -> None:
    names = [f"n{number}" for number in range(size)]
    for seed in range(50):
        pairs = SHAPES[shape](names, names[0], Random(seed))
        assert pairs
        assert pairs < all_pairs(names)


def reached(names: list[str], cut: frozenset[tuple[str, str]], name: str) -> set[str]:
    return {other for other in names if other == name or not {(name, other), (other, name)} & cut}


@pytest.mark.parametrize("size", [3, 5])
def test_shapes_are_what_they_are_called(size: int) -> None:
    names = [f"n{number}" for number in range(size)]
    for seed in range(50):
        shaped = {name: SHAPES[name](names, "n1", Random(seed)) for name in SHAPES}
        reach = {name: sorted(len(reached(names, cut, node)) for node in names) for name, cut in shaped.items()}
        assert reach["isolate-leader"] == reach["isolate-any"] == [1, *[size - 1] * (size - 1)]
        assert reached(names, shaped["isolate-leader"], "n1") == {"n1"}
        assert len(reached(names, shaped["minority"], "n1")) == size // 2
        assert reach["bridge"] == [size // 2 + 1] * (size - 1) + [size]
        for one_way in ("one-way-in", "one-way-out"):
            assert not any(pair[::-1] in shaped[one_way] for pair in shaped[one_way])
    assert reach["ring"] == ([1, 1, 1] if size == 3 else [3] * 5)


# -- the list


def test_every_kind_of_fault_is_there_under_its_own_name() -> None:
    processes = {
        "kill-leader",
        "kill-any",
        "kill-majority",
        "restart-all",
        "rolling-restart",
        "pause-leader",
        "pause-any",
    }
    links = {*SHAPES, "flapping", "swizzle", "slow-links", "reset-links"}
    disks = {"slow-disk", "failing-disk", "disk-full", "torn-write", "lying-fsync", "power-loss", "power-loss-all"}
    assert set(NEMESES) == processes | links | disks | {"transfer", "replace-disk", "clock-jump", "mixed"}
    assert len(SHAPES) == 8
    for name, nemesis in NEMESES.items():
        assert nemesis.name == nemesis.make().name == name
        assert nemesis.shim == (name in disks | {"clock-jump"})
        assert ("direct" in nemesis.topologies) == (name not in links)


# -- proxies


@contextlib.asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Proxies, Callable[[], Awaitable[Any]]]]:
    """A server that says back what it hears, with a proxy before it; and how to connect."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    proxies = Proxies(Random(1))
    address = await proxies.open(THERE, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    host, port = address.split(":")
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        return reader, writer

    try:
        yield proxies, connect
    finally:
        for writer in writers:
            writer.close()
        await proxies.close()
        server.close()


async def said_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes, timeout_s: float) -> bool:
    writer.write(text)
    try:
        async with asyncio.timeout(timeout_s):
            assert await reader.readexactly(len(text)) == text
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("cut", [{THERE}, {BACK}, {THERE, BACK}])
async def test_a_cut_is_silent_and_what_it_held_goes_on_when_it_heals(cut: set[tuple[str, str]]) -> None:
    async with proxied() as (proxies, connect):
        stream = await connect()
        assert await said_back(*stream, b"before", 5)
        assert await proxies.dropped() == 0
        await proxies.cut(cut)
        assert not await said_back(*stream, b"held ", SILENT_S)
        assert await proxies.dropped() == 1
        await proxies.cut(())
        stream[1].write(b"and after")
        assert await asyncio.wait_for(stream[0].readexactly(14), 5) == b"held and after"


async def test_a_cut_of_one_direction_lets_the_other_pass() -> None:
    heard = asyncio.Queue[bytes]()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        heard.put_nowait(await reader.read(100))

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    proxies = Proxies(Random(1))
    address = await proxies.open(THERE, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    reader, writer = await asyncio.open_connection(*address.split(":"))
    assert await asyncio.wait_for(reader.read(100), 5) == b"hello"
    await proxies.cut([BACK])
    writer.write(b"passes")
    assert await asyncio.wait_for(heard.get(), 5) == b"passes"
    writer.close()
    await proxies.close()
    server.close()


async def test_a_cut_holds_back_the_end_of_a_connection_and_new_ones() -> None:
    async with proxied() as (proxies, connect):
        reader, writer = await connect()
        assert await said_back(reader, writer, b"x", 5)
        await proxies.cut([THERE])
        writer.write_eof()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), SILENT_S)
        late = await connect()
        assert not await said_back(*late, b"y", SILENT_S)
        await proxies.cut(())
        assert await asyncio.wait_for(reader.read(1), 5) == b""
        assert await asyncio.wait_for(late[0].readexactly(1), 5) == b"y"


async def test_a_slow_link_delays_everything_and_keeps_its_order() -> None:
    async with proxied() as (proxies, connect):
        reader, writer = await connect()
        await proxies.slow({THERE: Pace(delay_ms=20, jitter_ms=30)})
        began = time.monotonic()
        for number in range(20):
            writer.write(bytes([number]))
            await asyncio.sleep(0.002)
        assert await asyncio.wait_for(reader.readexactly(20), 5) == bytes(range(20))
        assert time.monotonic() - began >= 0.05
        assert await proxies.delayed() >= 2
        await proxies.slow({})
        assert await said_back(reader, writer, b"soon", 5)


async def test_a_rate_is_kept() -> None:
    async with proxied() as (proxies, connect):
        stream = await connect()
        await proxies.slow({THERE: Pace(rate_bytes_s=1_000_000)})
        began = time.monotonic()
        assert await said_back(*stream, bytes(200_000), 5)
        assert time.monotonic() - began >= 0.18
        assert await proxies.delayed() >= 1


async def test_a_reset_breaks_connections_at_once() -> None:
    async with proxied() as (proxies, connect):
        reader, writer = await connect()
        assert await said_back(reader, writer, b"x", 5)
        assert await proxies.reset([BACK]) == 0
        assert await proxies.reset([THERE]) == 1
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), 5)
        assert await said_back(*await connect(), b"again", 5)


async def test_who_is_not_the_node_goes_through_a_cut() -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    proxies = Proxies(Random(1))
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    node = await proxies.open(THERE, target, lambda port: holds(os.getpid(), port))
    client = await proxies.open(THERE, target, lambda port: holds(os.getppid(), port))
    await proxies.cut([THERE, BACK])
    passes = await asyncio.open_connection(*client.split(":"))
    assert await said_back(*passes, b"passes", 5)
    held = await asyncio.open_connection(*node.split(":"))
    assert not await said_back(*held, b"held", SILENT_S)
    for _, writer in (passes, held):
        writer.close()
    await proxies.close()
    server.close()


async def test_nobody_listening_looks_like_that() -> None:
    async with proxied() as (proxies, _):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            address = await proxies.open(BACK, f"127.0.0.1:{taken.getsockname()[1]}")
            reader, writer = await asyncio.open_connection(*address.split(":"))
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(1), 5) == b""
            writer.close()


# -- namespaces

SERVE = """
import socket
listening = socket.create_server(("0.0.0.0", 7000))
print("listening", flush=True)
while True:
    peer = listening.accept()[0]
    while said := peer.recv(100):
        peer.send(said)
"""


async def test_hosts_are_cut_apart_by_packets_dropped_and_nothing_of_them_is_left() -> None:
    hosts = Namespaces(2)
    try:
        await hosts.open()
    except Unsupported as why:
        pytest.skip(f"SKIPPED, partitions by network namespaces were NOT tested here: {why}")
    marks = [command[3] for command in hosts.commands]
    try:
        argv = [*hosts.commands[1], sys.executable, "-c", SERVE]
        server = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            assert await server.stdout.readline() == b"listening\n"
            stream = await asyncio.open_connection(hosts.hosts[1], 7000)
            await hosts.cut([("n1", "n2"), ("n2", "n1")])
            assert await said_back(*stream, b"whoever is no node reaches every host", 5)
            connect = f"import socket; socket.create_connection(({hosts.hosts[1]!r}, 7000), 0.3)"
            assert await ended([*hosts.commands[0], sys.executable, "-c", connect]) != 0
            assert await hosts.dropped() > 0
            await hosts.cut(())
            assert await ended([*hosts.commands[0], sys.executable, "-c", connect]) == 0
            assert await hosts.dropped() > 0
            stream[1].close()
        finally:
            server.kill()
            await server.wait()
    finally:
        await hosts.close()
    assert not set(marks) & entries("/run/netns")
    assert not any(name.startswith(f"cx{os.getpid()}") for name in entries("/sys/class/net"))


async def test_what_a_dead_process_left_is_removed_and_what_a_living_one_has_is_not() -> None:
    hosts = Namespaces(1)
    try:
        await hosts.open()
    except Unsupported as why:
        pytest.skip(f"SKIPPED, leftovers of network namespaces were NOT tested here: {why}")
    dead = await asyncio.create_subprocess_exec("true")
    await dead.wait()
    left, other = f"chaos-{dead.pid}-1", f"chaos-{os.getppid()}-9"
    try:
        for name in (left, other):
            assert await ended(["ip", "netns", "add", name]) == 0
        await hosts.close()
        await hosts.open()
        found = entries("/run/netns")
        assert left not in found
        assert other in found
    finally:
        await hosts.close()
        await ended(["ip", "netns", "del", other])


def entries(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


async def ended(argv: list[str]) -> int:
    process = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.DEVNULL)
    async with asyncio.timeout(10):
        return await process.wait()


# -- the shim


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("shim"))
    except Unsupported as why:
        pytest.skip(f"SKIPPED, disk and clock faults were NOT tested here: {why}")


class Under:
    """A process with the shim under it, that does what it is told."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.shim = Shim(library, folder.with_suffix(".shim"))
        argv = [*self.shim.command, sys.executable, "-m", "tests.chaos.under_shim"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def does(self, what: str, folder: Path | None = None) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what} {folder or self.folder}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.shim.close()


@pytest.fixture
def under(library: Path, tmp_path: Path) -> Iterator[Under]:
    running = Under(library, tmp_path / "data")
    yield running
    running.end()


def test_a_sync_fails_is_late_or_lies_and_what_it_did_not_cover_goes_with_the_power(under: Under) -> None:
    shim, lied = under.shim, under.folder / "lied"
    lied.mkdir()
    assert under.does("sync") == ["", ""]
    assert shim.counts().syncs == 2
    inode = (under.folder / "fsync").stat().st_ino
    assert shim.durable()[inode] == Durable(4, named=False)
    assert under.does("sync_folder") == ""
    assert shim.durable()[inode] == Durable(4, named=True)

    # A durable name is the old file's or the new one's, but never nobody's.
    under.does("replace")
    replaced, new = ((under.folder / name).stat().st_ino for name in ("fsync", "new"))
    assert (shim.durable()[replaced], shim.durable()[new]) == (Durable(6, named=True), Durable(6, named=False))
    (under.folder / "new").unlink()

    shim.order(FAILING)
    assert under.does("sync") == ["EIO", "EIO"]
    assert shim.counts().syncs_failed == 2

    shim.order(LYING)
    assert under.does("sync", lied) == ["", ""]
    assert shim.counts().syncs_lied == 2
    assert sum(drop_unsynced(under.folder, shim.durable(), Random(seed)) for seed in range(20)) == 8
    assert not list(lied.iterdir())
    assert (under.folder / "fsync").read_bytes() == b"1234"

    shim.order(Orders(sync_delay_ms=100))
    began = time.monotonic()
    assert under.does("sync") == ["", ""]
    assert time.monotonic() - began >= 0.2
    assert shim.counts().syncs_delayed == 2


def test_a_write_fails_where_it_should_and_nowhere_else(under: Under) -> None:
    assert under.does("write") == ["", ""]
    under.shim.order(FULL, under.folder)
    assert under.does("write") == ["ENOSPC", ""]
    assert under.does("room") == 0
    assert under.shim.counts().writes_failed == 1
    under.shim.order(Orders())
    assert under.does("write") == ["", ""]
    assert under.does("room") > 0


@pytest.mark.parametrize(("orders", "complaint"), [(FAILING, "cannot sync"), (FULL, "cannot write")])
def test_a_real_store_is_not_spared(under: Under, orders: Orders, complaint: str) -> None:
    assert under.does("open") == ""
    before = under.shim.counts()
    assert before.syncs > 0
    under.shim.order(orders, under.folder)
    assert complaint in under.does("commit")
    after = under.shim.counts()
    assert after.syncs_failed + after.writes_failed > before.syncs_failed + before.writes_failed


def test_the_wall_clock_jumps_and_no_wait_feels_it(under: Under) -> None:
    for offset_s in (300, -300, 0):
        under.shim.order(Orders(clock_offset_ns=offset_s * 10**9))
        wall, monotonic, waited, waited_for_the_wall = under.does("clock")
        assert abs(wall - time.time() - offset_s) < 5
        assert abs(monotonic - time.monotonic()) < 5
        assert waited < 5
        assert 0.04 < waited_for_the_wall < 5
    assert under.shim.counts().clock_shifted > 0
    assert under.shim.counts().waits_shifted == 2


def test_a_write_that_is_torn_anywhere_leaves_what_was_before_it(under: Under) -> None:
    armed = under.folder / "armed"
    whole = torn(under, armed, 1 << 20)
    # All but the last byte was written: every shorter tear leaves less.
    assert whole > 100
    for size in (0, 1, 2, 6, 7, 8, *range(9, whole, 8), whole - 1):
        torn(under, armed, size)
    # Without a tear there is a second entry: it is the tear that takes it away.
    under.shim.order(Orders())
    assert under.does("tear", fresh(armed)) == 0
    assert [entry.payload for entry in recovered(armed)] == [b"first", b"second"]


def fresh(armed: Path) -> Path:
    shutil.rmtree(armed, ignore_errors=True)
    armed.mkdir()
    return armed.parent


def recovered(armed: Path) -> Sequence[Entry]:
    journal = Journal(armed / "journal")
    try:
        return journal.recover().entries
    finally:
        journal.close()


def torn(under: Under, armed: Path, size: int) -> int:
    """Tear the last record of a journal after `size` bytes; return how many of it were written."""
    folder = fresh(armed)
    under.shim.order(Orders(tear_after_bytes=size), armed)
    assert under.does("tear", folder) == -signal.SIGKILL
    logs_bytes = sum(file.stat().st_size for file in (armed / "journal").glob("*.log"))
    found = recovered(armed)
    assert [(entry.index, entry.payload) for entry in found] == [(1, b"first")]
    return logs_bytes


# -- a region


async def test_a_region_gets_over_a_killed_and_an_isolated_leader(tmp_path: Path) -> None:
    async with Cluster(tmp_path, topology="proxied") as cluster:
        for name in ("kill-leader", "isolate-leader"):
            before = await cluster.led()
            fault = NEMESES[name].make()
            await fault.inject(cluster, Random(1))
            after = await cluster.led_after(before)
            assert after.name != before.name
            assert await fault.observed()
            await fault.heal()
            await cluster.settled()
            cluster.check()
        found = await cluster.replicas_equal()
        assert found.equal, found.difference
        assert found.rows > 0


async def test_what_was_acknowledged_outlives_failing_disks_and_the_loss_of_all_power(
    tmp_path: Path, library: Path
) -> None:
    async with Cluster(tmp_path, shim=True) as cluster:
        identity = cluster.identity("operator", "writer")
        async with sdk.ControlPlane.connect(cluster.addresses, mirror=False, **identity) as plane:
            acknowledged = []
            for name in ("failing-disk", "power-loss-all"):
                fault = NEMESES[name].make()
                await fault.inject(cluster, Random(7))
                if name == "failing-disk":
                    for number in range(20):
                        await plane.create_workflow(f"w/{number}", b"{}")
                        acknowledged.append(f"w/{number}")
                assert await fault.observed()
                await fault.heal()
                await cluster.settled()
                cluster.check()
            for workflow in acknowledged:
                assert (await plane.get_workflow(workflow)).workflow.version == 1
        found = await cluster.replicas_equal()
        assert found.equal, found.difference


async def test_agents_leave_a_leader_that_was_cut_off_from_the_others(tmp_path: Path) -> None:
    async with Cluster(tmp_path, topology="proxied") as cluster:
        identity = cluster.identity("agent", "writer")
        async with sdk.ControlPlane.connect(cluster.addresses, mirror=False, **identity) as plane:
            for shape, ends in {"both ways": (0, 1), "out": (0,)}.items():
                leader = await cluster.led()
                await plane.create_workflow(f"{shape} before", b"{}")
                cut = isolated(cluster.names, leader.name)
                await cluster.links.cut(pair for pair in cut if any(pair[end] == leader.name for end in ends))
                # Its own node does not answer, two others do.
                await plane.create_workflow(f"{shape} during", b"{}", timeout_s=8)
                assert (await cluster.led()).name != leader.name
                await cluster.links.cut(())
                await cluster.settled()


async def test_a_node_that_ends_by_itself_does_not_go_unnoticed(tmp_path: Path) -> None:
    async with Cluster(tmp_path, nodes=1) as cluster:
        cluster.check()
        # As whatever is no fault of ours would end it.
        os.kill(cluster.program("n1").pid, signal.SIGKILL)
        await cluster.program("n1").ended(timeout_s=5)
        with pytest.raises(NodeEnded, match="n1"):
            cluster.check()
        with pytest.raises(Unsupported):
            cluster.shim("n1")
        with pytest.raises(Unsupported):
            _ = cluster.links


def test_a_difference_between_replicas_does_not_go_unnoticed(tmp_path: Path) -> None:
    def replica(name: str, index: int = 5, **rows: bytes) -> Path:
        store = RocksStore(tmp_path / name)
        state = State(index=index, revision=7, hash=b"h").SerializeToString()
        store.commit(Batch(puts={STATE: state, **{key.encode(): row for key, row in rows.items()}}))
        store.close()
        return tmp_path / name

    one, two = replica("one", a=b"1", b=b"2"), replica("two", a=b"1", b=b"2")
    assert compare({"one": one, "two": two}) == Replicas(7, b"h".hex(), 3, "")
    for number, rows in enumerate(({"a": b"1"}, {"a": b"1", "b": b"3"}, {"a": b"1", "b": b"2", "z": b"4"})):
        found = compare({"one": one, "other": replica(f"other{number}", **rows)})
        assert found is not None
        assert not found.equal
        assert "one: " in found.difference
        assert "other: " in found.difference
    assert compare({"one": one, "late": replica("late", 4, a=b"1", b=b"2")}) is None
