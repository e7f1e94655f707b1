"""A region of real processes that can be broken: started, killed, paused, replaced, cut apart, and compared.

Everything lies in one folder: certificates, a region file for each node, `<node>/` with its data, `<node>.log` with
what it said. Three topologies: `direct` (processes can be broken, nothing between them), `proxied` (each node reaches
each other one through proxies of its own: `proxies`), `namespaces` (each node is a host of its own: `namespaces`).
Clients reach every node in all of them.

A node that ends although nobody ended it is found by `check`; whoever breaks a node so that it should end says so
first (`may_end`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import count, permutations, zip_longest
from pathlib import Path
from random import Random
from typing import Final, Literal, NamedTuple, Self, TypeVar

import grpc
from google.protobuf.message import Message

from chaos.real import Unsupported
from chaos.real.disks import drop_unsynced
from chaos.real.links import Links
from chaos.real.namespaces import Namespaces
from chaos.real.proxies import Proxies, holds
from chaos.real.shim import Shim, build
from controlplane.kernel.keys import STATE
from controlplane.loopback import Certificate, LoopbackRegion, Program, ending
from controlplane.storage import RocksStore
from controlplane.v1 import api_pb2 as api
from controlplane.v1.state_pb2 import State

Topology = Literal["direct", "proxied", "namespaces"]
READY_TIMEOUT_S: Final = 40.0
ASK_TIMEOUT_S: Final = 1.0
STOP_TIMEOUT_S: Final = 15.0
BALLAST_BYTES: Final = 1 << 20
_POLL_S: Final = 0.02
_COMPARISONS: Final = 5
_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
]

R = TypeVar("R", bound=Message)


class NodeEnded(Exception):
    """A node ended that nobody had ended; the text holds the last it said."""


class Leader(NamedTuple):
    """Who leads, and since which election."""

    name: str
    term: int


@dataclass(frozen=True, slots=True)
class Replicas:
    """What a comparison of all replicas found; `difference` is empty if they are equal."""

    revision: int
    hash: str
    rows: int
    difference: str

    @property
    def equal(self) -> bool:
        """Whether all nodes hold the same bytes."""
        return not self.difference


class Cluster:
    """A region of `nodes` processes in `folder`, running from `async with` on until its end.

    `shim` puts a library under each node that can break its disk and its clock. Entering raises `Unsupported` if this
    machine or user cannot have the topology or the shim, and `TimeoutError` if the region does not come up.
    """

    def __init__(self, folder: Path, nodes: int = 3, topology: Topology = "direct", *, shim: bool = False) -> None:
        self.folder, self.topology = folder.resolve(), topology
        self._size, self._with_shim = nodes, shim
        self._stack = AsyncExitStack()
        self._links: Links | None = None
        self._shims: dict[str, Shim] = {}
        self._programs: dict[str, Program] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._down: set[str] = set()
        self._may_end: set[str] = set()
        self._writes = count(1)

    async def __aenter__(self) -> Self:
        try:
            await self._build()
            for name in self.names:
                self._programs[name].start("--bootstrap")
            await self.settled()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # Who is there

    @property
    def names(self) -> Sequence[str]:
        """The nodes."""
        return self._region.names

    @property
    def addresses(self) -> Sequence[str]:
        """Where each answers clients, in the order of `names`."""
        return self._region.addresses

    @property
    def links(self) -> Links:
        """What lies between the nodes. Raises `Unsupported` in a direct topology."""
        if self._links is None:
            raise Unsupported("nothing lies between the nodes of a direct topology")
        return self._links

    @property
    def running(self) -> list[str]:
        """Nodes that have a process, paused ones too."""
        return [name for name in self.names if self._programs[name].running]

    @property
    def has_shim(self) -> bool:
        """Whether disks and clocks can be broken."""
        return bool(self._shims)

    def identity(self, role: str, name: str) -> Certificate:
        """A new certificate for a caller, as `ControlPlane.connect` takes it. Each name once."""
        return self._region.identity(role, name)

    def program(self, name: str) -> Program:
        """The process of a node."""
        return self._programs[name]

    def shim(self, name: str) -> Shim:
        """What lies under a node. Raises `Unsupported` in a cluster without."""
        if name not in self._shims:
            raise Unsupported("this cluster runs without the shim")
        return self._shims[name]

    def data(self, name: str) -> Path:
        """Where a node keeps its data."""
        return self._region.data_folder(self.names.index(name))

    def said_bytes(self, name: str) -> int:
        """How much a node has said so far."""
        file = self._said_file(name)
        return file.stat().st_size if file.exists() else 0

    def said(self, name: str, after_bytes: int = 0) -> str:
        """What a node has said since."""
        return self._said_file(name).read_bytes()[after_bytes:].decode(errors="replace")

    async def leader(self) -> Leader | None:
        """Who leads in the newest term that any node can be asked about, by its own account, if anybody does."""
        found = await self._statuses(self.running)
        leaders = [Leader(each.node, each.region.term) for each in found if each is not None and each.role == "leader"]
        return max(leaders, key=lambda leader: leader.term, default=None)

    async def led(self, timeout_s: float = READY_TIMEOUT_S) -> Leader:
        """Who leads, as soon as anybody does. Raises `TimeoutError`."""
        end = time.monotonic() + timeout_s
        while (leader := await self.leader()) is None:
            await self._rest(end, "no node leads")
        return leader

    async def led_after(self, before: Leader, timeout_s: float = READY_TIMEOUT_S) -> Leader:
        """Who leads in a later term, as soon as anybody does. Raises `TimeoutError`."""
        end = time.monotonic() + timeout_s
        while (leader := await self.led(timeout_s)).term <= before.term:
            await self._rest(end, f"nobody leads after term {before.term}")
        return leader

    async def status(self, name: str) -> api.GetStatusReply | None:
        """What a node says of itself now, or None if it does not answer."""
        request = api.GetStatusRequest(header=api.RequestHeader(consistency=api.LOCAL))
        try:
            return await self._ask(name, "Operators/GetStatus", request, api.GetStatusReply)
        except grpc.aio.AioRpcError:
            return None

    async def applied(self, index: int, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when every node that runs has applied the log up to `index`. Raises `TimeoutError`."""
        end = time.monotonic() + timeout_s
        while not all(each and each.applied >= index for each in await self._statuses(self.running)):
            await self._rest(end, f"not every node has applied entry {index}")

    # What is done to it

    def start(self, name: str) -> None:
        """Start a node on the data it has."""
        self._programs[name].start()
        self._down.discard(name)
        self._may_end.discard(name)

    def kill(self, *names: str) -> None:
        """End nodes by SIGKILL, all at the same moment as far as that goes."""
        self._down.update(names)
        for name in names:
            self._programs[name].send(signal.SIGKILL)
        for name in names:
            self._programs[name].kill()

    def pause(self, name: str) -> None:
        """Stop a node in the middle of whatever it does (SIGSTOP)."""
        self._programs[name].pause()

    def resume(self, name: str) -> None:
        """Let a paused node go on."""
        self._programs[name].resume()

    async def stop(self, name: str) -> int:
        """Ask a node to end; return its exit code. Raises `TimeoutError`."""
        self._down.add(name)
        self._programs[name].resume()
        return await self._programs[name].stop(timeout_s=STOP_TIMEOUT_S)

    async def transfer(self, target: str) -> str:
        """Have the leader hand over to `target`; return what became of it in a word."""
        header = api.RequestHeader(request_id=os.urandom(16))
        request = api.TransferRegionRequest(header=header, target=target)
        try:
            reply = await self._ask(
                (await self.led()).name, "Operators/TransferRegion", request, api.TransferRegionReply
            )
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return f"{reply.leader} leads term {reply.term}"

    def replace(self, name: str) -> None:
        """Give a node an empty disk, and start it so that it fetches everything from the others."""
        self.kill(name)
        folder = self.data(name)
        if folder.exists():
            folder.rename(next(path for path in self._elsewhere(folder) if not path.exists()))
        self._programs[name].start("--replace")
        self._down.discard(name)
        self._may_end.discard(name)

    def lose_power(self, names: Iterable[str], random: Random) -> int:
        """End nodes as a loss of power does; return how many unsynced bytes are gone. They stay down until started."""
        names = list(names)
        self.kill(*names)
        return sum(drop_unsynced(self.data(name), self.shim(name).durable(), random) for name in names)

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` beside, until it is cancelled or the cluster ends."""
        task = asyncio.create_task(work)
        self._stack.push_async_callback(_cancelled, task)
        return task

    def may_end(self, name: str) -> None:
        """Say that a node may end by itself from now on, until it is started again."""
        self._may_end.add(name)

    def must_run(self, name: str) -> None:
        """Take `may_end` back."""
        self._may_end.discard(name)

    def check(self) -> None:
        """Raise `NodeEnded` if a node has ended that nobody had ended."""
        for name in self.names:
            if not self._programs[name].running and name not in self._down | self._may_end:
                raise NodeEnded(f"{name} ended by itself:\n{self._programs[name].tail()}")

    # Whether it is whole

    async def settled(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when a write through each node that runs has been acknowledged. Raises `TimeoutError`, `NodeEnded`."""
        end = time.monotonic() + timeout_s
        waiting = self.running
        while waiting:
            self.check()
            wrote = await asyncio.gather(*(self._writes_through(name) for name in waiting))
            waiting = [name for name, done in zip(waiting, wrote, strict=True) if not done]
            if waiting:
                await self._rest(end, f"no write through {', '.join(waiting)} was acknowledged")

    async def replicas_equal(self, timeout_s: float = READY_TIMEOUT_S) -> Replicas:
        """Compare revision and running hash of all nodes, then kill them and compare their stores byte for byte.

        All nodes must run and nobody may write; they are down afterwards. Raises `TimeoutError` if they do not come to
        one revision.
        """
        end = time.monotonic() + timeout_s
        for _ in range(_COMPARISONS):
            await self._level(end)
            self.kill(*self.names)
            found = await asyncio.to_thread(compare, {name: self.data(name) / "store" for name in self.names})
            if found is not None:
                return found
            # Something was committed between the last look and the end: an expired lease, an entry of a new leader.
            for name in self.names:
                self.start(name)
            await self.settled()
        raise TimeoutError(f"the region never stood still in {_COMPARISONS} comparisons")

    async def _level(self, end: float) -> None:
        """Wait until all nodes are at one revision, twice in a row. Raises `TimeoutError` saying where they are."""
        before = None
        while True:
            self.check()
            found = await self._statuses(self.names)
            places = {(each.header.revision, each.hash, each.applied) if each else None for each in found}
            if len(places) == 1 and None not in places and places == before:
                return
            before = places
            where = ", ".join(f"{each.node} {each.header.revision} {each.hash[:8]}" for each in found if each)
            await self._rest(end, f"the replicas do not come to one revision: {where}")

    def _said_file(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @staticmethod
    def _elsewhere(folder: Path) -> Iterator[Path]:
        return (folder.with_name(f"{folder.name}.old{number}") for number in count(1))

    async def _statuses(self, names: Iterable[str]) -> list[api.GetStatusReply | None]:
        return list(await asyncio.gather(*(self.status(name) for name in names)))

    async def _writes_through(self, name: str) -> bool:
        number = next(self._writes)
        header = api.RequestHeader(request_id=f"settled{number:09}".encode())
        request = api.CreateWorkflowRequest(header=header, id=f"settled/{number}", state=b"{}")
        try:
            await self._ask(name, "Agents/CreateWorkflow", request, api.CreateWorkflowReply)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def _ask(self, name: str, path: str, request: Message, reply: type[R]) -> R:
        method: grpc.aio.UnaryUnaryMultiCallable[Message, R] = self._channels[name].unary_unary(
            f"/controlplane.v1.{path}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        return await method(request, timeout=ASK_TIMEOUT_S)

    async def _rest(self, end: float, why: str) -> None:
        if time.monotonic() > end:
            raise TimeoutError(why)
        await asyncio.sleep(_POLL_S)

    # How it is built

    async def _build(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        library = build(self.folder) if self._with_shim else None
        commands: list[list[str]] = [[] for _ in range(self._size)]
        hosts: Sequence[str] = ()
        if self.topology == "namespaces":
            spaces = await self._entered_namespaces()
            hosts, commands = spaces.hosts, spaces.commands
        self._region = LoopbackRegion(self.folder, size=self._size, fleet="chaos", hosts=hosts)
        files = await self._files()
        for number, name in enumerate(self.names):
            if library is not None:
                self._shims[name] = Shim(library, self.folder / f"{name}.shim")
                self._stack.callback(self._shims[name].close)
                commands[number] = commands[number] + self._shims[name].command
            program = self._region.nodes[number]
            argv = [str(files[name]) if part == str(self._region.file) else part for part in program.argv]
            program.argv = commands[number] + _tied() + argv
            self._programs[name] = program
        self._open_channels()
        self._stack.enter_context(ending(list(self._programs.values())))

    async def _entered_namespaces(self) -> Namespaces:
        spaces = Namespaces(self._size)
        self._stack.push_async_callback(spaces.close)
        await spaces.open()
        self._links = spaces
        return spaces

    async def _files(self) -> dict[str, Path]:
        """Write a region file for each node: its own view of where the others are."""
        text = self._region.file.read_text().replace("\n", f"\nballast_bytes = {BALLAST_BYTES}\n", 1)
        texts = dict.fromkeys(self.names, text)
        if self.topology == "proxied":
            await self._put_proxies(texts)
        files = {name: self.folder / f"{name}.toml" for name in self.names}
        for name, file in files.items():
            file.write_text(texts[name])
        return files

    async def _put_proxies(self, texts: dict[str, str]) -> None:
        proxies = Proxies(Random(0))
        self._stack.push_async_callback(proxies.close)
        self._links = proxies
        region = self._region
        for a, b in permutations(range(self._size), 2):
            pair = (region.names[a], region.names[b])
            for target in (region.addresses[b], region.peer_addresses[b]):
                place = await proxies.open(pair, target, partial(self._is_from, pair[0]))
                texts[pair[0]] = texts[pair[0]].replace(f'"{target}"', f'"{place}"')

    def _is_from(self, name: str, port: int) -> bool:
        """Whether a node dialled from this port."""
        return self._programs[name].running and holds(self._programs[name].pid, port)

    def _open_channels(self) -> None:
        identity = self.identity("operator", "chaos-observer")
        parts = [identity[part].read_bytes() for part in ("ca", "key", "cert")]
        credentials = grpc.ssl_channel_credentials(*parts)
        for name, address in zip(self.names, self.addresses, strict=True):
            channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
            self._channels[name] = channel
            self._stack.push_async_callback(channel.close)


def _tied() -> list[str]:
    """What to put before a command, so that it ends with this process even if that is killed."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def compare(folders: dict[str, Path]) -> Replicas | None:
    """Compare all rows of closed stores; None if they do not stand at the same entry of the log."""
    with ExitStack() as stack:
        stores = {name: stack.enter_context(closing(RocksStore(folder))) for name, folder in folders.items()}
        states = [State.FromString(store.get(STATE) or b"") for store in stores.values()]
        if len({state.index for state in states}) != 1:
            return None
        rows, difference = _differ(stores)
        return Replicas(states[0].revision, states[0].hash.hex(), rows, difference)


def _differ(stores: dict[str, RocksStore]) -> tuple[int, str]:
    """How many rows were compared, and what the first difference is."""
    names, rows = list(stores), 0
    scans = [store.scan(b"", b"\xff" * 64) for store in stores.values()]
    for rows, found in enumerate(zip_longest(*scans), start=1):
        if len(set(found)) > 1:
            shown = (f"{name}: {_shown(row)}" for name, row in zip(names, found, strict=True))
            return rows, f"row {rows} differs: " + "; ".join(shown)
    return rows, ""


def _shown(row: tuple[bytes, bytes] | None) -> str:
    return "no row" if row is None else f"{row[0]!r} = {row[1][:64].hex()}"
