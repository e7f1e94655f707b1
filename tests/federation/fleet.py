"""Whole regions in one event loop: real nodes, stores, servers with mutual TLS, and links that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
from click.testing import CliRunner, Result

from controlplane import certs, config, limits, process, status
from controlplane.cli import main
from controlplane.controllers import Controllers
from controlplane.datadir import Start, open_folder
from controlplane.drills.injector import Injector
from controlplane.errors import ControlPlaneError
from controlplane.features.partitions import system
from controlplane.federation import Federation
from controlplane.federation.links import packed
from controlplane.identity import Identity
from controlplane.kernel import keys
from controlplane.kernel.store import MemoryStore, Store
from controlplane.kernel.transaction import scope_of
from controlplane.loopback import Relay, free_ports
from controlplane.node import Node
from controlplane.replication import Log
from controlplane.replication.local import LocalLog
from controlplane.replication.raft import RaftConfig, RaftLog
from controlplane.server import Server
from controlplane.server.drills import Drills, Facts
from controlplane.storage import RocksStore
from controlplane.telemetry import FederationCollector
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import GLOBAL, JURISDICTION, Passage, Reach
from controlplane.v1.state_pb2 import Event
from tests.server.regions import Caller, until

FLEET = "acme"
WEST, CENTRAL, EAST = "eu-west", "eu-central", "us-east"
LAW = {"eu": [WEST, CENTRAL], "us": [EAST]}
DEFAULTS = {"global": ["flag", "stop"], "jurisdiction": ["workflow"], "home-only": ["election", "switch"]}
Law = Mapping[str, list[str]]


class Member:
    """One node of a region. Its store outlives it, so that it can be started again."""

    def __init__(self, region: Region, name: str) -> None:
        self.region, self.name = region, name
        self.memory = MemoryStore()
        self.log: Log | None = None
        """One that the test decides, instead of the usual one."""
        self.node: Node
        self.server: Server
        self.federation: Federation
        self.injector: Injector
        """What faults of drills do to it, if its region is drilled."""
        self.running = False

    async def start(self, how: Start) -> None:
        own, loop = self.region.config, asyncio.get_running_loop()
        credentials = process.read_credentials(own, own.node(self.name))
        store: Store = self.memory
        log: Log = self.log or LocalLog(self.name)
        if len(own.nodes) > 1:
            folder = open_folder(
                self.region.fleet.folder / own.name / self.name, fleet=FLEET, region=own.name, node=self.name, start=how
            )
            peers = {each.name: each.peer_address for each in own.nodes if each.name != self.name}
            listen = own.node(self.name).peer_address
            raft = RaftConfig(FLEET, own.name, self.name, listen, peers, credentials, ballast_bytes=0)
            store, log = RocksStore(folder.store), cast(Log, RaftLog(raft, folder))
        self.node = Node(
            fleet=FLEET,
            region=own.name,
            name=self.name,
            partitions=own.partitions,
            store=store,
            log=log,
            clock=loop.time,
            wall_ms=process.wall_ms,
            entropy=os.urandom,
            atlas=own.atlas,
            quota_bytes=self.region.quota_bytes,
        )
        await self.node.start()
        self.controllers = Controllers(self.node)
        self.controllers.start()
        self.federation = Federation(own, self.node, credentials)
        drills = self._drills(log) if self.region.drilled else None
        files = log if isinstance(log, RaftLog) else None
        self.server = Server(
            own, self.name, self.node, credentials, federation=self.federation, drills=drills, files=files
        )
        await self.server.start()
        self.federation.start()
        self.running = True

    def _drills(self, log: Log) -> Drills:
        """Take faults of links and regions; there is no process above it."""
        own, clock = self.region.config, asyncio.get_running_loop().time
        raft = log if isinstance(log, RaftLog) else None
        peers = sorted(raft.config.peers) if raft else []
        send = raft.send_undisturbed if raft else lambda peer, message: None
        self.injector = injector = Injector(peers, send, None, clock, [peer.region for peer in own.peers])
        injector.sever = self.federation.links.sever
        if raft:
            raft.disturb(injector)
        return Drills(Facts(self.name, "", lambda: "member", "", log.status), injector)

    async def stop(self) -> None:
        if not self.running:
            return
        self.running = False
        await self.federation.stop()
        await self.server.stop()
        await self.controllers.stop()
        await self.node.stop()
        if isinstance(self.node.store, RocksStore):
            self.node.store.close()


class Region:
    """A region of this fleet: what its file says, and its members."""

    def __init__(self, fleet: Fleet, name: str, size: int) -> None:
        self.fleet, self.name, self.size = fleet, name, size
        self.ports = fleet.take_ports(2 * size)
        self.node_names = [f"{name.rpartition('-')[2]}{n + 1}" for n in range(size)]
        self.members = {node: Member(self, node) for node in self.node_names}
        self.law: Law = LAW
        self.may_leave: dict[str, list[str]] = {}
        self.break_glass: dict[str, list[str]] = {}
        """Roles, by peer."""
        self.forgotten: set[str] = set()
        """Regions that are no peers of it."""
        self.shares_more = True
        """Whether its file names the partition that is the default for nothing."""
        self.quota_bytes = limits.QUOTA_BYTES
        self.drilled = False
        """Whether its nodes take the faults of drills."""
        self.config: config.RegionConfig

    @property
    def member(self) -> Member:
        """The only member, or the one that leads."""
        return next(m for m in self.members.values() if m.running and m.node.log.status().ready)

    @property
    def node(self) -> Node:
        return self.member.node

    def load(self) -> None:
        """Read the region's file as it is now."""
        self.config = config.parse(self.text(), self.fleet.folder / f"{self.name}.toml")

    def text(self) -> str:
        own = next(law for law, regions in self.law.items() if self.name in regions)
        lines = [
            f'format = 1\nfleet = "{FLEET}"\nregion = "{self.name}"\njurisdiction = "{own}"',
            'authority = "authority.crt"',
            "[jurisdictions]",
            *(f"{law} = {regions!r}" for law, regions in self.law.items()),
        ]
        for n, name in enumerate(self.node_names):
            lines.append(
                f'[[node]]\nname = "{name}"\naddress = "127.0.0.1:{self.ports[n]}"\n'
                f'peer_address = "127.0.0.1:{self.ports[self.size + n]}"\n'
                f'certificate = "{self.name}-{name}.crt"\nkey = "{self.name}-{name}.key"'
            )
        for reach, kinds in DEFAULTS.items():
            lines.append(
                f'[[partition]]\nid = "{self.name}.prod.{reach}"\nenvironment = "prod"\nreach = "{reach}"\n'
                f"default_for = {kinds!r}"
            )
        if self.shares_more:
            lines.append(f'[[partition]]\nid = "{self.name}.prod.shared"\nenvironment = "prod"\nreach = "global"')
        for other, region in self.fleet.regions.items():
            if other != self.name and other not in self.forgotten:
                may = self.may_leave.get(other, self._lawful(other))
                lines.append(
                    f'[[peer]]\nregion = "{other}"\n'
                    f"endpoints = {[relay.address for relay in self.fleet.ways(self.name, other)]!r}\n"
                    f"certificate_names = {region.node_names!r}\nmay_leave = {may!r}\n"
                    f"break_glass = {self.break_glass.get(other, [])!r}"
                )
        return "\n".join(lines)

    def _lawful(self, other: str) -> list[str]:
        together = any({self.name, other} <= {*regions} for regions in self.law.values())
        return ["jurisdiction", "global"] if together else ["global"]

    async def start(self, how: Start = Start.BOOTSTRAP) -> None:
        self.load()
        await asyncio.gather(*(member.start(how) for member in self.members.values()))
        await until(lambda: any(m.node.log.status().ready for m in self.members.values()))

    async def stop(self) -> None:
        await asyncio.gather(*(member.stop() for member in self.members.values()))

    async def restart(self) -> None:
        await self.stop()
        await self.start(Start.NORMAL)

    # -- what is in it

    def held(self, home: str, reach: Reach, store: Store | None = None) -> dict[bytes, tuple[int, bytes]]:
        """The records of a home and reach that are here: revision at home, and value."""
        prefix = keys.RECORD + keys.domain(home, Reach.Name(reach))
        found = {}
        start, end = keys.children(prefix)
        for row, encoded in (store or self.node.store).scan(start, end):
            event = Event.FromString(encoded)
            at = event.origin.revision if event.HasField("origin") else event.revision
            found[row] = (at, event.value)
        return found

    def passages(self, **wanted: Any) -> list[Passage]:
        """What is written down about what passed."""
        prefix = keys.RECORD + scope_of(system(self.name)) + keys.text("passage")
        start, end = keys.children(prefix)
        rows = self.node.store.scan(start, end)
        every = [Passage.FromString(Event.FromString(encoded).value) for _, encoded in rows]
        return [each for each in every if all(getattr(each, name) == value for name, value in wanted.items())]

    def link(self, other: str) -> api.Link:
        return next(link for link in self.member.federation.links.report() if link.region == other)

    def metrics(self) -> dict[tuple[str, ...], float]:
        found = {}
        for family in FederationCollector(self.member.federation.links).collect():
            for sample in family.samples:
                found[(sample.name.removeprefix("controlplane_federation_"), *sample.labels.values())] = sample.value
        return found

    def everything(self) -> Iterator[bytes]:
        """Every row of every member's store."""
        for member in self.members.values():
            end = b"\xff" * 8
            for key, value in member.node.store.scan(b"", end):
                yield key + b"\n" + value


class Fleet:
    """Three regions that know each other."""

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self.folder = folder
        # All at once: a port that was free a moment ago is free again for who asks a second time.
        self._ports = free_ports(sum(2 * size + size * (len(sizes) - 1) for size in sizes.values()))
        self.authority = certs.create_authority(FLEET, folder)
        self.regions = {name: Region(self, name, size) for name, size in sizes.items()}
        self._relays: dict[tuple[str, str], list[Relay]] = {}
        for one in sizes:
            for other, region in self.regions.items():
                if one != other:
                    self._relays[one, other] = [
                        Relay(port, f"127.0.0.1:{region.ports[n]}")
                        for n, port in enumerate(self.take_ports(region.size))
                    ]
        for name, region in self.regions.items():
            for node in region.node_names:
                identity = Identity(FLEET, "all", name, "peer", node)
                signed = self.authority.sign(identity, ["127.0.0.1"])
                signed.save(folder / f"{name}-{node}.crt", folder / f"{name}-{node}.key")

    def take_ports(self, count: int) -> list[int]:
        """Ports that nothing else of this fleet has."""
        taken, self._ports = self._ports[:count], self._ports[count:]
        return taken

    def __getitem__(self, name: str) -> Region:
        return self.regions[name]

    def ways(self, one: str, other: str) -> list[Relay]:
        """The connections that `one` opens to `other`."""
        return self._relays[one, other]

    def between(self, one: str, other: str) -> list[Relay]:
        return [*self.ways(one, other), *self.ways(other, one)]

    async def cut(self, one: str, other: str) -> None:
        for relay in self.between(one, other):
            await relay.cut()

    async def heal(self, one: str, other: str) -> None:
        for relay in self.between(one, other):
            await relay.heal()

    async def start(self) -> None:
        for relays in self._relays.values():
            for relay in relays:
                await relay.heal()
        await asyncio.gather(*(region.start() for region in self.regions.values()))
        for one, other in self._relays:
            await until(lambda one=one, other=other: self[one].link(other).state == "up")

    async def stop(self) -> None:
        await asyncio.gather(*(region.stop() for region in self.regions.values()))
        for relays in self._relays.values():
            for relay in relays:
                await relay.cut()

    def credentials(self, identity: Identity) -> grpc.ChannelCredentials:
        signed = self.authority.sign(identity)
        folder = self.folder / os.urandom(4).hex()
        signed.save(folder / "crt", folder / "key")
        return grpc.ssl_channel_credentials(
            self.authority.file.read_bytes(), (folder / "key").read_bytes(), (folder / "crt").read_bytes()
        )

    def caller(
        self,
        region: str,
        role: str = "operator",
        node: str = "",
        *,
        at: str = "",
        name: str = "maria",
        environment: str = "prod",
    ) -> Caller:
        """Somebody of `region` who talks to one of its nodes, or to one of region `at`."""
        served = self[at or region]
        n = served.node_names.index(node) if node else 0
        identity = Identity(FLEET, environment, region, role, name)
        return Caller(f"127.0.0.1:{served.ports[n]}", self.credentials(identity))

    def peer(self, of: str, at: str, node: str = "", **other: str) -> Caller:
        """A node of region `of` that talks to region `at`, with a certificate of its own."""
        parts = {"fleet": FLEET, "environment": "all", "role": "peer", "name": "", **other}
        parts["name"] = parts["name"] or self[of].node_names[0]
        identity = Identity(region=parts.pop("region", of), **parts)
        n = self[at].node_names.index(node) if node else 0
        return Caller(f"127.0.0.1:{self[at].ports[n]}", self.credentials(identity))

    async def cpctl(self, region: str, *arguments: str, role: str = "operator") -> Result:
        """Run cpctl as somebody of `region`, at a node of it. What nodes log meanwhile is in its output too."""
        folder = self.folder / os.urandom(4).hex()
        signed = self.authority.sign(Identity(FLEET, "prod", region, role, "maria"))
        signed.save(folder / "crt", folder / "key")
        who = ["--authority", self.authority.file, "--certificate", folder / "crt", "--key", folder / "key"]
        given = ["--address", f"127.0.0.1:{self[region].ports[0]}", *map(str, who), *arguments]
        return await asyncio.to_thread(CliRunner().invoke, main, given, env={"XDG_CONFIG_HOME": str(self.folder)})

    # -- conditions

    def copied(self, home: str, to: str, reach: Reach) -> bool:
        """Whether `to` holds exactly what `home` shares."""
        there = self[to]
        cursor = next((c for c, _ in there.node.views() if (c.peer, c.reach) == (home, reach)), None)
        whole = cursor is not None and not cursor.listing
        return whole and self[home].held(home, reach) == there.held(home, reach)

    async def settled(self, home: str = WEST) -> None:
        """Wait until everything that `home` shares is where it may be."""
        for other in self.regions:
            for reach in (GLOBAL, JURISDICTION) if {home, other} <= {WEST, CENTRAL} else (GLOBAL,):
                if other != home:
                    await until(lambda other=other, reach=reach: self.copied(home, other, reach))


class Spy:
    """A follower that keeps every message it is sent."""

    def __init__(self, fleet: Fleet, region: str, home: str, reach: Reach, caller: Caller, **hello: Any) -> None:
        self.terms = fleet[region].member.federation.links.get(home).terms  # type: ignore[union-attr]
        self.messages: list[bytes] = []
        self._hello = wire.FollowHello(
            terms=hello.pop("terms", None) or packed(self.terms), reach=reach, epoch=1, **hello
        )
        self._caller = caller
        self._begin()

    def _begin(self) -> None:
        self._stream: Any = self._caller.channel.stream_stream("/controlplane.v1.Federation/Follow")()

    async def open(self) -> wire.FollowReply:
        while True:
            try:
                await self.send(wire.FollowRequest(hello=self._hello))
            except grpc.aio.AioRpcError as error:
                # It was refused while the hello was written, and sometimes gRPC lost the reason.
                if error.code() is grpc.StatusCode.INTERNAL:
                    self._begin()
                    continue
            return await self.read()

    async def send(self, request: wire.FollowRequest) -> None:
        await self._stream.write(request.SerializeToString())

    async def read(self) -> wire.FollowReply:
        async with asyncio.timeout(10):
            try:
                encoded = await self._stream.read()
            except grpc.aio.AioRpcError:
                encoded = grpc.aio.EOF
            if encoded is grpc.aio.EOF:
                code = await self._stream.code()
                trailers = await self._stream.trailing_metadata()
                raise status.from_call(code, await self._stream.details(), trailers)
        self.messages.append(encoded)
        return wire.FollowReply.FromString(encoded)

    async def end(self) -> ControlPlaneError:
        """Read on until the stream ends; return the error that ended it."""
        while True:
            try:
                await self.read()
            except ControlPlaneError as error:
                return error

    def close(self) -> None:
        self._stream.cancel()


@contextlib.asynccontextmanager
async def running(folder: Path, *, drilled: bool = False, **sizes: int) -> AsyncIterator[Fleet]:
    """A fleet that is up: three regions of one node each, unless told otherwise. `drilled`: nodes take faults."""
    fleet = Fleet(
        folder,
        {name.replace("_", "-"): size for name, size in sizes.items()} or dict.fromkeys((WEST, CENTRAL, EAST), 1),
    )
    for region in fleet.regions.values():
        region.drilled = drilled
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()
