"""One node as a process: which parts it has, in which order they start, and how it ends.

It ends in one of two ways. Asked to (SIGTERM), it says NOT_SERVING, hands leadership over while it still answers,
finishes what was begun, closes its parts from the outside in, and succeeds. When an invariant breaks it stops at
once, without a handover: going on could only make it worse, and its peers elect another leader in milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import structlog
from prometheus_client.registry import Collector

from controlplane import limits, signing
from controlplane.auditor import LedgerKeys
from controlplane.config import FIRST_EPOCH, KINDS, ConfigError, NodeConfig, RegionConfig, Timing, split_address
from controlplane.controllers import Controllers
from controlplane.credentials import CredentialFiles, Credentials
from controlplane.datadir import DataFolder, Start, open_folder, prepare
from controlplane.drills.injector import Injector, Line
from controlplane.errors import ControlPlaneError, Fatal, Unavailable
from controlplane.federation import Federation
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.node import Node
from controlplane.replication import Log, guard
from controlplane.replication.local import LocalLog
from controlplane.replication.raft import RaftConfig, RaftLog
from controlplane.server import Server, descriptors
from controlplane.server.drills import Drills, Facts
from controlplane.storage import RocksStore
from controlplane.telemetry import (
    CertificateCollector,
    Counts,
    FederationCollector,
    LinkCollector,
    MeasuredLog,
    MetricsServer,
    NodeCollector,
)
from controlplane.v1 import records_pb2

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

HANDOVER_S: Final = 2.0
DEV_NODE: Final = "dev"
DEV_IDENTITY: Final = Identity("dev", "dev", "local", "operator", "developer")
"""Whom everybody is taken for by `controlplane dev`."""

_LOOK_S = 0.25
_PLENTY_BYTES = 1 << 62

Stop = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Part:
    """Something that starts and stops."""

    name: str
    start: Stop
    stop: Stop


class Process:
    """Parts that start in order and stop in reverse, until asked to end or until one of `failures` says why not."""

    def __init__(self, parts: Sequence[Part], failures: Sequence[asyncio.Future[None]], drain: Stop) -> None:
        self._parts, self._failures, self._drain = parts, failures, drain

    async def run(self, stopping: asyncio.Event, ready: Callable[[], None]) -> None:
        """Run until `stopping` is set; call `ready` once everything is up. Raises `Fatal` if it may not go on."""
        started: list[Part] = []
        stop = asyncio.create_task(_set(stopping))
        try:
            for part in self._parts:
                if not await self._started(part, stop):
                    return
                started.append(part)
            ready()
            await self._until(stop, stop)
            await self._drain()
        finally:
            stop.cancel()
            for part in reversed(started):
                with contextlib.suppress(ControlPlaneError):
                    await part.stop()

    async def _started(self, part: Part, stop: asyncio.Future[None]) -> bool:
        try:
            return await self._until(asyncio.ensure_future(part.start()), stop)
        except ControlPlaneError as error:
            raise Fatal(f"{part.name}: {error}") from error

    async def _until(self, work: asyncio.Future[None], stop: asyncio.Future[None]) -> bool:
        """Wait for `work`, a stop or a failure; tell whether work came to its end. Raises what failed."""
        await asyncio.wait({work, stop, *self._failures}, return_when=asyncio.FIRST_COMPLETED)
        for failure in self._failures:
            if failure.done():
                work.cancel()
                failure.result()
        if work.done():
            work.result()
            return True
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return False


async def serve(
    config: RegionConfig,
    name: str,
    data: Path,
    start: Start,
    stopping: asyncio.Event,
    drills_line: socket.socket | None = None,
) -> None:
    """Run node `name` of a region until `stopping` is set. Raises `ConfigError` or `Fatal`.

    With `drills_line`, the way to the process above, the node takes faults from operators.
    """
    # Messages come and go by the thousand and form no cycles: looking for some every 700 of them is wasted.
    gc.set_threshold(20_000, 20, 50)
    descriptors.provide()
    credentials = read_credentials(config, config.node(name))
    folder = open_folder(data, fleet=config.fleet, region=config.name, node=name, start=start)
    counts = Counts()
    raft = RaftLog(_raft_config(config, name, credentials), folder)
    raft.on_sync(counts.sync_s.observe)
    started_as = folder.identity.standing.value
    facts = Facts(name, _hash_of(config.file), lambda: folder.identity.standing.value, started_as, raft.status)
    under_drill = (
        None
        if drills_line is None
        else _UnderDrill(drills_line, raft, stopping, [peer.region for peer in config.peers])
    )
    drills = Drills(facts, None if under_drill is None else under_drill.injector)
    # A node is the durable machine that this log asks for; the port promises its callers less.
    node = _node(config, name, RocksStore(folder.store), cast(Log, raft), counts, _Room(raft))
    # Without peers as well: who reads the metrics from elsewhere is written down.
    federation = Federation(config, node, credentials)
    server = Server(
        config,
        name,
        node,
        credentials,
        counts=counts,
        data=data,
        drills=drills,
        federation=federation,
        ledger_keys=read_ledger_keys(config),
        files=raft,
    )
    collectors = [
        LinkCollector(raft.counters),
        CertificateCollector(credentials.expires_s),
        drills.collector,
        FederationCollector(federation.links),
    ]
    if under_drill is not None:
        under_drill.injector.sever = federation.links.sever
    failures = [node.failed, raft.failed]
    process = _process(config.node(name), node, server, failures, collectors, federation)
    try:
        await process.run(stopping, lambda: _log.info("serving", address=server.address))
    finally:
        if under_drill is not None:
            await under_drill.stop()


class _UnderDrill:
    """What lets operators break this node: faults on its links, and the way to the process above it."""

    def __init__(self, end: socket.socket, raft: RaftLog, stopping: asyncio.Event, regions: Sequence[str]) -> None:
        self._line = Line(end)
        clock = asyncio.get_running_loop().time
        self.injector = Injector(sorted(raft.config.peers), raft.send_undisturbed, self._line, clock, regions)
        raft.disturb(self.injector)
        self._stopping = stopping
        self._following = asyncio.create_task(self._follow(), name="line to the supervisor")

    async def stop(self) -> None:
        self.injector.stop()
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        self._line.close()

    async def _follow(self) -> None:
        """Without the process above, nobody would undo what was done to this one: end, in order."""
        await self._line.listen()
        _log.error("supervisor_gone")
        self._stopping.set()


def _hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


async def dev(port: int, data: Path, stopping: asyncio.Event, say: Callable[[str], None]) -> None:
    """Run a region of one node without certificates, on loopback, until `stopping` is set. Raises `Fatal`."""
    descriptors.provide()
    config = _dev_config(port, data)
    prepare(data)
    empty = not (data / "IDENTITY").exists()
    start = Start.BOOTSTRAP if empty else Start.NORMAL
    folder = open_folder(data, fleet=config.fleet, region=config.name, node=DEV_NODE, start=start)
    store, counts = RocksStore(folder.store), Counts()
    node = _node(config, DEV_NODE, store, LocalLog(DEV_NODE, store), counts)
    server = Server(
        config, DEV_NODE, node, None, counts=counts, data=data, everybody=DEV_IDENTITY, files=_Alone(folder, store)
    )
    process = _process(config.node(DEV_NODE), node, server, [node.failed], [], None)
    await process.run(stopping, lambda: say(f"controlplane dev on 127.0.0.1:{server.port}, data in {data}"))


class _Alone:
    """The files of a node without peers: its store is all there is to scrub."""

    def __init__(self, folder: DataFolder, store: RocksStore) -> None:
        self._folder, self._store = folder, store

    @property
    def scrubbed(self) -> int:
        return self._folder.scrubbed

    async def scrub(self, revision: int) -> None:
        if not await asyncio.to_thread(self._store.scrub):
            raise Unavailable("files of before are still being read", reason="FILES_IN_USE")
        self._folder.note_scrubbed(revision)


def _dev_config(port: int, data: Path) -> RegionConfig:
    address = f"127.0.0.1:{port}"
    return RegionConfig(
        file=data,
        fleet=DEV_IDENTITY.fleet,
        name=DEV_IDENTITY.region,
        jurisdiction="local",
        authority=data,
        nodes=(NodeConfig(DEV_NODE, address, address, "127.0.0.1:0", data, data),),
        partitions=(_dev_partition(),),
        administrators=(DEV_IDENTITY,),
        timing=Timing(),
        quota_bytes=limits.QUOTA_BYTES,
        ballast_bytes=0,
    )


def _dev_partition() -> records_pb2.Partition:
    return records_pb2.Partition(
        id=f"{DEV_IDENTITY.region}.{DEV_IDENTITY.environment}.all",
        home=DEV_IDENTITY.region,
        epoch=FIRST_EPOCH,
        reach=records_pb2.HOME_ONLY,
        environment=DEV_IDENTITY.environment,
        default_for=KINDS,
    )


def read_credentials(config: RegionConfig, node: NodeConfig) -> CredentialFiles:
    """Read the node's certificate, key and authority, and check whose they are. Raises `ConfigError`."""
    owner = Identity(config.fleet, EVERY_ENVIRONMENT, config.name, "peer", node.name)
    return CredentialFiles(config.authority, node.certificate, node.key, owner)


def read_ledger_keys(config: RegionConfig) -> LedgerKeys | None:
    """Read the keys of this region's ledger and of its peers'; None without one. Raises `ConfigError`.

    A peer's key that is not there yet keeps nobody from starting: its ledger is not cosigned until it is.
    """
    if config.ledger_key is None:
        return None
    peers = {}
    for peer in config.peers:
        if peer.ledger_key is None:
            continue
        try:
            peers[peer.region] = bytes.fromhex(signing.public_key(peer.ledger_key))
        except (OSError, signing.KeyInvalid) as error:
            _log.warning("ledger_key_of_peer_unreadable", peer=peer.region, problem=str(error))
    try:
        return LedgerKeys(config.fleet, config.name, signing.Signer(config.ledger_key).key, peers)
    except (OSError, signing.KeyInvalid) as error:
        raise ConfigError([f"{config.file}: ledger_key: cannot be read: {error}"]) from error


def _raft_config(config: RegionConfig, name: str, credentials: Credentials) -> RaftConfig:
    return RaftConfig(
        fleet=config.fleet,
        region=config.name,
        node=name,
        listen=config.node(name).listens[1],
        peers={each.name: each.peer_address for each in config.nodes if each.name != name},
        credentials=credentials,
        timing=_guard_timing(config.timing),
        ballast_bytes=config.ballast_bytes,
    )


def _guard_timing(timing: Timing) -> guard.Timing:
    return guard.Timing(timing.election_min_ms / 1000, timing.election_max_ms / 1000, timing.beat_ms / 1000)


class _Room:
    """Free bytes on the disks that a write needs: this one, and of the others the best that make a majority with it."""

    def __init__(self, raft: RaftLog) -> None:
        self._raft = raft
        self._majority_of_others = (len(raft.config.peers) + 1) // 2
        self._known_bytes, self._known_until = 0, 0.0

    def __call__(self) -> int:
        now = time.monotonic()
        if now >= self._known_until:
            self._known_bytes, self._known_until = self._look(), now + _LOOK_S
        return self._known_bytes

    def _look(self) -> int:
        # A peer that has not said yet reports 0 and is taken to have room: its own disk refuses if it has not.
        others = sorted((said or _PLENTY_BYTES for said in self._raft.peer_free_bytes().values()), reverse=True)
        return min([self._raft.free_bytes, *others[: self._majority_of_others]])


def _node(
    config: RegionConfig, name: str, store: RocksStore, log: Log, counts: Counts, room: Callable[[], int] | None = None
) -> Node:
    clock = asyncio.get_running_loop().time
    return Node(
        fleet=config.fleet,
        region=config.name,
        name=name,
        partitions=config.partitions,
        store=store,
        log=MeasuredLog(log, counts, clock),
        clock=clock,
        wall_ms=wall_ms,
        entropy=os.urandom,
        quota_bytes=config.quota_bytes,
        free_bytes=room,
        atlas=config.atlas,
    )


def _process(
    mine: NodeConfig,
    node: Node,
    server: Server,
    failures: Sequence[asyncio.Future[None]],
    links: Sequence[Collector],
    federation: Federation | None,
) -> Process:
    controllers = Controllers(node)
    told = None if federation is None else federation.doors.scraped
    collectors = [NodeCollector(node, server.counts, lambda: server.router.waiting), *links]
    metrics = MetricsServer(collectors, told)
    between_regions = [] if federation is None else [Part("federation", _later(federation.start), federation.stop)]
    return Process(
        [
            Part("node", node.start, _stopper(node)),
            Part("controllers", _later(controllers.start), controllers.stop),
            Part("server", server.start, server.stop),
            *between_regions,
            Part("metrics", _metrics(metrics, mine), metrics.stop),
        ],
        failures,
        drain=lambda: _drain(server, node, mine.name),
    )


def wall_ms() -> int:
    """The wall clock, in Unix milliseconds."""
    return time.time_ns() // 1_000_000


async def _drain(server: Server, node: Node, name: str) -> None:
    _log.info("draining")
    await server.announce_stop()
    if node.log.status().leader == name:
        with contextlib.suppress(ControlPlaneError):
            leader = await node.log.transfer(None, timeout_s=HANDOVER_S)
            _log.info("handed_over", leader=leader)
    await server.drain()


def _metrics(metrics: MetricsServer, node: NodeConfig) -> Stop:
    host, port = split_address(node.metrics_address)

    async def start() -> None:
        try:
            bound = await metrics.start(host, port)
        except OSError as error:
            raise Fatal(f"cannot serve metrics on {node.metrics_address}: {error.strerror or error}") from error
        _log.info("metrics", address=f"{host}:{bound}")

    return start


def _stopper(node: Node) -> Stop:
    async def stop() -> None:
        await node.stop()
        if isinstance(node.store, RocksStore):
            node.store.close()

    return stop


def _later(work: Callable[[], None]) -> Stop:
    async def run() -> None:
        work()

    return run


async def _set(event: asyncio.Event) -> None:
    await event.wait()
