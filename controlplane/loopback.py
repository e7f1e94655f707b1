"""Programs of one machine that are started, broken and started again: what demo and benchmark run their regions on."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypedDict

import controlplane.ledger.verify
from controlplane import certs, config, signing
from controlplane.identity import EVERY_ENVIRONMENT, Identity

_POLL_S = 0.005
_CHUNK_BYTES = 1 << 16
# Of a connection that is delayed: 64 MiB, so a delay of a second still leaves room for more than a loopback carries.
_CHUNKS_UNDER_WAY_MAX = 1 << 10
_CPCTL = ("-c", "from controlplane.cli import main; main()")
_TOOL_S = 120.0
_AGAIN_S = 0.5
# Below what systems give to outgoing connections, above what services of theirs use.
_PORTS = range(12_000, 30_000)
_given: set[int] = set()


class Program:
    """One child process, with its output in a file. `kill` in a `finally` ends it for certain."""

    def __init__(self, argv: Sequence[str], output: Path) -> None:
        self.argv = list(argv)
        self._output = output
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process exists (a paused one does)."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the latest start."""
        assert self._child is not None
        return self._child.pid

    def start(self, *more: str) -> None:
        """Start with `more` arguments; what it prints is appended to the output file."""
        assert not self.running
        with self._output.open("ab") as output:
            self._child = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                [*self.argv, *more], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if self._child is not None:
            self._child.send_signal(number)

    def pause(self) -> None:
        """Stop it in the middle of whatever it does, silently: its connections stay open."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once and wait for its end. Harmless when it is gone already."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    async def stop(self, *, timeout_s: float) -> int:
        """Ask it to end; return its exit code. Raises `TimeoutError` (the process is then still there)."""
        self.send(signal.SIGTERM)
        return await self.ended(timeout_s=timeout_s)

    async def ended(self, *, timeout_s: float) -> int:
        """Wait for its end; return its exit code. Raises `TimeoutError`."""
        assert self._child is not None
        end = time.monotonic() + timeout_s
        while (code := self._child.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.argv[0]} did not end within {timeout_s} s")
            await asyncio.sleep(_POLL_S)
        return code

    def rss_mb(self) -> float:
        """Resident memory in units of 2**20 bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise ProcessLookupError(self.pid)

    def tail(self, lines: int = 15) -> str:
        """The end of what it printed."""
        if not self._output.exists():
            return ""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-lines:])


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, all different.

    The system gives none of them to whoever connects, so that a node finds its own again after it was down; nor does
    this function give them again, here or to another process of the same user while this one runs. Raises `OSError` if
    there are not so many.
    """
    with ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(ports) == count:
                break
            if port not in _given and _reserved(port) and _bound(stack.enter_context(socket.socket()), port):
                ports.append(port)
        if len(ports) < count:
            raise OSError(f"there are no {count} free ports on this machine")
        _given.update(ports)
        return ports


def _reserved(port: int) -> bool:
    """Whether no other process was given `port`: each has a byte of one file, which the system unlocks at its end."""
    file = _reservations()
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _reservations() -> int:
    # Never closed: closing it anywhere in the process would unlock everything.
    name = Path(tempfile.gettempdir()) / f"controlplane-ports-{os.getuid()}"
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _bound(tried: socket.socket, port: int) -> bool:
    try:
        tried.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@contextmanager
def ending(programs: Sequence[Program]) -> Iterator[None]:
    """Kill all of `programs` on the way out, paused ones too."""
    try:
        yield
    finally:
        for program in programs:
            program.kill()


class Certificate(TypedDict):
    """Who a caller is, as `ControlPlane.connect` takes it by keyword."""

    ca: Path
    cert: Path
    key: Path


class Place(NamedTuple):
    """A partition of a region: the last word of its id, how far its records travel, what it is the default for."""

    word: str
    reach: str
    kinds: Sequence[str]


_KEPT_AT_HOME = (Place("all", "home-only", ("flag", "switch", "workflow", "election")),)


class LoopbackRegion:
    """A region of real nodes on 127.0.0.1 with mutual TLS: its certificates, region file, data and processes.

    All of it lives in `folder`; the caller ends the processes (`ending`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int = 3,
        fleet: str = "demo",
        name: str = "eu-west",
        environment: str = "prod",
        hosts: Sequence[str] | None = None,
        drills: bool = False,
        authority: certs.Authority | None = None,
    ) -> None:
        """With `drills` every node is run by a process above it, which is what `nodes` then start and stop.

        `authority` is the fleet's, if it has more regions than this one.
        """
        self.fleet, self.name, self.environment = fleet, name, environment
        self.names = [f"n{number + 1}" for number in range(size)]
        self._folder = folder
        self._flags = ["--drills"] if drills else []
        self._authority = authority or certs.create_authority(fleet, folder / "certificates")
        self._certificates = folder / "certificates"
        hosts = hosts or ["127.0.0.1"] * size
        places = [f"{host}:{port}" for host, port in zip([*hosts] * 3, free_ports(3 * size), strict=True)]
        self.addresses, self.peer_addresses, self.metrics_addresses = (places[k * size :][:size] for k in range(3))
        for node, host in zip(self.names, hosts, strict=True):
            peer = Identity(fleet, EVERY_ENVIRONMENT, name, "peer", node)
            certs.issue(self._authority, peer, self._certificates, [host])
        self.file = folder / "region.toml"
        self.describe("local", _KEPT_AT_HOME)
        self.nodes = [self._program(folder, node) for node in self.names]

    def identity(self, role: str, name: str) -> Certificate:
        """A new certificate for a caller, as `ControlPlane.connect` takes it."""
        caller = Identity(self.fleet, self.environment, self.name, role, name)
        issued = certs.issue(self._authority, caller, self._certificates)
        return Certificate(ca=issued.authority, cert=issued.certificate, key=issued.key)

    def describe(self, jurisdiction: str, partitions: Sequence[Place], *more: str) -> None:
        """Write the region file anew; `more` are lines of it. Nodes read it when they start."""
        top = [
            "format = 1",
            f'fleet = "{self.fleet}"',
            f'region = "{self.name}"',
            f'jurisdiction = "{jurisdiction}"',
            f'authority = "{self._authority.file.resolve()}"',
        ]
        nodes = [line for number in range(len(self.names)) for line in self._node_lines(number)]
        places = [line for place in partitions for line in self._partition_lines(place)]
        self.file.write_text("\n".join([*top, *more, "", *nodes, *places]))

    def start(self) -> None:
        """Start all nodes, with empty data folders."""
        for node in self.nodes:
            node.start("--bootstrap")

    def data_folder(self, number: int) -> Path:
        """Where a node keeps its data."""
        return self._folder / self.names[number]

    def _program(self, folder: Path, node: str) -> Program:
        serve = [sys.executable, "-m", "controlplane", "serve", "--region", str(self.file)]
        argv = [*serve, "--node", node, "--data", str(folder / node), *self._flags]
        return Program(argv, folder / f"{node}.log")

    def _partition_lines(self, place: Place) -> list[str]:
        kinds = ", ".join(f'"{kind}"' for kind in place.kinds)
        return [
            "[[partition]]",
            f'id = "{self.name}.{self.environment}.{place.word}"',
            f'environment = "{self.environment}"',
            f'reach = "{place.reach}"',
            f"default_for = [{kinds}]",
            "",
        ]

    def _node_lines(self, number: int) -> list[str]:
        node = self.names[number]
        return [
            "[[node]]",
            f'name = "{node}"',
            f'address = "{self.addresses[number]}"',
            f'peer_address = "{self.peer_addresses[number]}"',
            f'metrics_address = "{self.metrics_addresses[number]}"',
            f'certificate = "certificates/{node}.crt"',
            f'key = "certificates/{node}.key"',
            "",
        ]


PINNED = "pinned"
"""The partition of a fleet's region whose records never leave it."""
_SHARED = (
    Place("config", "global", ("flag",)),
    Place("state", "jurisdiction", ("workflow", "election")),
    Place(PINNED, "home-only", ()),
    Place("switches", "home-only", ("switch",)),
    Place("stops", "global", ("stop",)),
)


class Relay:
    """Carries connections to one address on this machine, until it is cut; what was open then is reset.

    What either end says arrives `delay_s` later, in order, however much of it is under way.
    """

    def __init__(self, port: int, target: str, delay_s: float = 0.0) -> None:
        self.address = f"127.0.0.1:{port}"
        self._port, self._target, self._delay_s = port, target, delay_s
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()

    async def heal(self) -> None:
        """Carry connections from now on."""
        if self._server is None:
            self._server = await asyncio.start_server(self._begin, "127.0.0.1", self._port)

    async def cut(self) -> None:
        """Refuse new connections, and end those there are."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        carrying = tuple(self._carrying)
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:
            # It was accepted when this was not cut yet.
            writer.transport.abort()
            return
        task = asyncio.create_task(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        # Also of one that was cut before it began.
        task.add_done_callback(lambda _: writer.transport.abort())

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            # Nobody is there: whoever asked finds out as if this relay were not.
            return
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            back.transport.abort()

    def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Awaitable[None]:
        return _late_pump(reader, writer, self._delay_s) if self._delay_s else _pump(reader, writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.close()


async def _late_pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY_MAX)

    async def take() -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await under_way.put((loop.time() + delay_s, chunk))
        await under_way.put((loop.time() + delay_s, b""))

    async def deliver() -> None:
        while True:
            due_s, chunk = await under_way.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            if not chunk:
                break
            writer.write(chunk)
            await writer.drain()
        writer.close()

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(take())
            group.create_task(deliver())
    except* OSError:
        pass


class LoopbackFleet:
    """Regions of real nodes on this machine that federate with each other over relays, which can be cut.

    Each direction of a link takes `delay_s`. The caller ends the processes (`ending`), and runs in one event loop for
    as long as relays are used.
    """

    def __init__(
        self, folder: Path, jurisdictions: Mapping[str, Sequence[str]], *, size: int = 3, delay_s: float = 0.0
    ) -> None:
        self.folder, self._delay_s = folder, delay_s
        authority = certs.create_authority("demo", folder / "certificates")
        names = [name for regions in jurisdictions.values() for name in regions]
        self.regions: dict[str, LoopbackRegion] = {}
        for name in names:
            (folder / name).mkdir()
            self.regions[name] = LoopbackRegion(folder / name, size=size, name=name, authority=authority)
            signing.new(folder / name / "ledger.key")
        self._relays = self._connected()
        for law, regions in jurisdictions.items():
            for name in regions:
                peers = [line for other in names if other != name for line in self._peer(name, other, other in regions)]
                lines = [f"{law} = [{', '.join(map(_quoted, each))}]" for law, each in jurisdictions.items()]
                key = ['ledger_key = "ledger.key"']
                self.regions[name].describe(law, _SHARED, *key, "", "[jurisdictions]", *lines, "", *peers)

    @property
    def nodes(self) -> list[Program]:
        """Every node of every region."""
        return [node for region in self.regions.values() for node in region.nodes]

    def trust(self) -> Path:
        """Write what a reviewer trusts, and say where it is."""
        file = self.folder / "trust.toml"
        file.write_text(certs.trust_for(*(config.load(region.file) for region in self.regions.values())))
        return file

    async def join(self) -> None:
        """Open all links."""
        await asyncio.gather(*(relay.heal() for relays in self._relays.values() for relay in relays))

    async def cut_off(self, name: str) -> None:
        """Cut every link from and to a region."""
        await asyncio.gather(*(relay.cut() for relay in self._of(name)))

    async def heal(self, name: str) -> None:
        """Open every link from and to a region."""
        await asyncio.gather(*(relay.heal() for relay in self._of(name)))

    async def close(self) -> None:
        """Cut all links."""
        await asyncio.gather(*(relay.cut() for relays in self._relays.values() for relay in relays))

    def _of(self, name: str) -> list[Relay]:
        return [relay for ends, relays in self._relays.items() if name in ends for relay in relays]

    def _connected(self) -> dict[tuple[str, str], list[Relay]]:
        pairs = [(one, other) for one in self.regions for other in self.regions if one != other]
        ports = iter(free_ports(sum(len(self.regions[other].addresses) for _, other in pairs)))
        return {
            (one, other): [Relay(next(ports), address, self._delay_s) for address in self.regions[other].addresses]
            for one, other in pairs
        }

    def _peer(self, name: str, other: str, same_law: bool) -> list[str]:
        endpoints = ", ".join(_quoted(relay.address) for relay in self._relays[name, other])
        names = ", ".join(map(_quoted, self.regions[other].names))
        reaches = ("jurisdiction", "global") if same_law else ("global",)
        return [
            "[[peer]]",
            f'region = "{other}"',
            f"endpoints = [{endpoints}]",
            f"certificate_names = [{names}]",
            f"may_leave = [{', '.join(map(_quoted, reaches))}]",
            f'ledger_key = "../{other}/ledger.key.pub"',
            "",
        ]


class Finished(NamedTuple):
    """How a tool ended, and what it printed."""

    code: int
    out: str
    problem: str


class ToolFailed(Exception):
    """A tool ended with another exit code than it should have."""


async def run_cpctl(
    identity: Certificate, addresses: Sequence[str], *arguments: str, environ: Mapping[str, str] | None = None
) -> Finished:
    """Run a command of an operator's or reviewer's, at these nodes. Raises `TimeoutError` after two minutes.

    `environ`: its environment, if not that of this process.
    """
    where = [part for address in addresses for part in ("--address", address)]
    given = ("--authority", str(identity["ca"]), "--certificate", str(identity["cert"]), "--key", str(identity["key"]))
    return await _python(*_CPCTL, *where, *given, *arguments, environ=environ)


async def residency_claims(
    regions: Mapping[str, LoopbackRegion], trust: Path, folder: Path, seed: str, *, cosigned_s: float
) -> dict[str, dict[str, str]]:
    """What each region's residency report is worth to a reviewer, who verifies it offline: claim → status, by region.

    The reports are written into `folder`, once every region has shown its ledger to the others: `TimeoutError` if that
    takes longer than `cosigned_s`. Raises `ToolFailed`.
    """
    reviewers = {
        name: region.identity("reviewer", f"auditor-{time.monotonic_ns()}") for name, region in regions.items()
    }

    async def asked(name: str, *arguments: str) -> str:
        finished = await run_cpctl(reviewers[name], regions[name].addresses, *arguments)
        return _printed(finished, arguments, (0,))

    async with asyncio.timeout(cosigned_s):
        for name in regions:
            while True:
                shown = json.loads(await asked(name, "--json", "region", "checkpoint"))
                if len(shown["cosigned"]) == len(regions) - 1:
                    break
                await asyncio.sleep(_AGAIN_S)
    bundles = {name: folder / f"{name}.tar" for name in regions}
    for name, bundle in bundles.items():
        await asked(name, "region", "report", "--out", str(bundle))
    claims = {}
    for name, bundle in bundles.items():
        others = [part for other in bundles if other != name for part in ("--peer-bundle", str(bundles[other]))]
        verifying = (str(controlplane.ledger.verify.__file__), str(bundle), "--trust", str(trust), *others)
        told = _printed(await _python(*verifying, "--seed", seed, "--json"), verifying, (0, 1))
        claims[name] = {each["name"]: each["status"] for each in json.loads(told)["claims"]}
    return claims


async def _python(*arguments: str, environ: Mapping[str, str] | None = None) -> Finished:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environ
    )
    try:
        async with asyncio.timeout(_TOOL_S):
            out, problem = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Finished(process.returncode, out.decode(), problem.decode(errors="replace"))


def _printed(finished: Finished, arguments: Sequence[str], codes: Sequence[int]) -> str:
    if finished.code not in codes:
        raise ToolFailed(f"{' '.join(arguments)} ended with {finished.code}: {finished.problem[-2000:]}")
    return finished.out


def _quoted(text: str) -> str:
    return f'"{text}"'
