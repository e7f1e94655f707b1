"""Real parts to build regions from: certificates, data folders, a small machine, nodes on free loopback ports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from controlplane.certs import Authority, Life
from controlplane.credentials import Pem
from controlplane.datadir import Start, open_folder
from controlplane.identity import Identity
from controlplane.kernel.store import Batch
from controlplane.replication import Role
from controlplane.replication.raft import RaftConfig, RaftLog
from controlplane.storage import RocksStore

FLEET, REGION = "fleet", "region"
APPLIED = b"\x00applied"


class Register:
    """A machine that keeps every entry under its index, and the applied index with it."""

    def __init__(self, folder: Path) -> None:
        self.store = RocksStore(folder)
        self.seen: list[tuple[int, bytes]] = []
        self.reloads = 0

    @property
    def applied(self) -> tuple[int, int]:
        row = self.store.get(APPLIED) or bytes(16)
        return int.from_bytes(row[:8], "big"), int.from_bytes(row[8:], "big")

    def apply(self, index: int, term: int, entry: bytes) -> None:
        assert index == self.applied[0] + 1
        puts = {APPLIED: index.to_bytes(8, "big") + term.to_bytes(8, "big")}
        if entry:
            puts[b"e" + index.to_bytes(8, "big")] = entry
            self.seen.append((index, entry))
        self.store.commit(Batch(puts=puts))

    def reloaded(self) -> None:
        self.reloads += 1

    def mark(self) -> bytes:
        return b""

    def marked(self, peer: str, mark: bytes) -> None:
        assert not mark, peer

    def entries(self) -> list[bytes]:
        """Every entry applied ever, in order."""
        return [value for _, value in self.store.scan(b"e", b"f")]


def signed_by(authority: Authority, identity: Identity, life: Life | None = None) -> Pem:
    signed = authority.sign(identity, ["127.0.0.1"], life)
    key = signed.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    return Pem(authority.certificate.public_bytes(pem), signed.certificate.public_bytes(pem), key)


@dataclass
class Node:
    """One running node."""

    name: str
    log: RaftLog
    machine: Register

    async def stop(self) -> None:
        await self.log.stop()
        self.machine.store.close()


@dataclass
class Region:
    """Nodes of one region in this event loop; each has a folder below `path` that outlives it."""

    path: Path
    names: tuple[str, ...]
    credentials: Callable[..., Pem] | None
    options: Mapping[str, object] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    async def start(self, *names: str, how: Start = Start.NORMAL) -> None:
        """Start nodes (all, by default) at the addresses they had before, if any."""
        chosen = names or self.names
        fresh = [await self._prepare(name, how) for name in chosen]
        for node in fresh:
            self.addresses[node.name] = f"127.0.0.1:{node.log.port}"
        results = await asyncio.gather(
            *(node.log.start(node.machine, peers=self._others(node.name)) for node in fresh), return_exceptions=True
        )
        for node, result in zip(fresh, results, strict=True):
            if isinstance(result, BaseException):
                await node.stop()
                raise result
            self.nodes[node.name] = node

    async def stop(self, *names: str) -> None:
        for name in names or tuple(self.nodes):
            await self.nodes.pop(name).stop()

    async def leader(self, timeout_s: float = 30.0) -> Node:
        """The node that leads and is ready, once there is one."""
        await until(lambda: any(node.log.status().ready for node in self.working()), timeout_s)
        return next(node for node in self.working() if node.log.status().ready)

    def followers(self) -> list[Node]:
        return [node for node in self.working() if node.log.status().role is not Role.LEADER]

    def working(self) -> list[Node]:
        return [node for node in self.nodes.values() if not node.log.failed.done()]

    def _others(self, name: str) -> dict[str, str]:
        return {other: self.addresses.get(other, "127.0.0.1:1") for other in self.names if other != name}

    async def _prepare(self, name: str, how: Start) -> Node:
        folder = open_folder(self.path / name, fleet=FLEET, region=REGION, node=name, start=how)
        config = RaftConfig(
            fleet=FLEET,
            region=REGION,
            node=name,
            listen=self.addresses.get(name, "127.0.0.1:0"),
            peers=self._others(name),
            credentials=self.credentials(name) if self.credentials else None,
            **{"ballast_bytes": 1 << 20, "join_timeout_s": 10.0, **self.options},
        )
        log = RaftLog(config, folder)
        await log.listen()
        return Node(name, log, Register(folder.store))


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Return once `condition` holds; fail after `timeout_s`."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - conditions of several nodes have no common event.
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(
    path: Path,
    count: int,
    credentials: Callable[..., Pem] | None = None,
    how: Start = Start.BOOTSTRAP,
    **options: object,
) -> AsyncIterator[Region]:
    """A region of `count` nodes, started; stopped at the end."""
    region = Region(path, tuple(f"n{k + 1}" for k in range(count)), credentials, options)
    try:
        await region.start(how=how)
        yield region
    finally:
        await region.stop()
