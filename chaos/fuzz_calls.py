"""Bad words: what a peer says to a node's transport and guard, and what a caller asks of a node.

A peer is trusted to be a peer, not to be right: whatever it sends is taken, ends the link (`Malformed`), or stops the
process (`Fatal`), and nothing that was committed changes. A caller hears a reply or one of the eight errors, and the
node answers the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from chaos.fuzz import Wrong
from chaos.fuzz_files import REGION_FILE
from chaos.mutations import drawn, redrawn, spoiled
from controlplane import config, features, limits
from controlplane.errors import ControlPlaneError, Fatal
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.kernel.store import MemoryStore
from controlplane.node import Call, Node
from controlplane.replication.guard import WIRE_VERSION, Bounds, Guard
from controlplane.replication.local import LocalLog
from controlplane.replication.snapshots import SnapshotMeta
from controlplane.replication.tail import Entry, Recovered, Tail
from controlplane.replication.transport import WIRE_VERSION as LINK_VERSION
from controlplane.replication.transport import Transport
from controlplane.v1 import api_pb2 as api
from controlplane.v1.peer_pb2 import PeerFrame, PeerHello, RaftBatch, RaftPart
from controlplane.v1.raft_pb2 import Append, AppendAck, LogEntry, RaftMessage, VoteReply

_COMMITTED: Final = 5
_LOG: Final = tuple(Entry(index, 2, b"entry %d" % index) for index in range(1, 9))
_FRAMES_MAX = 12
_PATIENCE_S = 10.0


def _packed(parts: Sequence[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _unpacked(given: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(given):
        size = int.from_bytes(given[at : at + 4], "big")
        yield given[at + 4 : at + 4 + size]
        at += 4 + size


class _Member:
    """A guard with its host and machine: a node of three, of which the input is the other two."""

    def __init__(self, *, leads: bool) -> None:
        self.now = 1000.0
        self.applied = (4, 2)
        self.sent: list[RaftMessage] = []
        self.tail = Tail(Recovered(0, 0, _LOG, 2, None, _COMMITTED), lambda *_: None)
        self.guard = Guard(
            "a", ("b", "c"), self.tail, self, self, now=self.now, random=Random(1), bounds=Bounds(reads_max=10)
        )
        for peer in ("b", "c"):
            self.guard.connected(peer, self.now)
        self.step(0.001)
        if leads:
            self._lead()

    def _lead(self) -> None:
        while self.guard.role.value == "follower":
            self.step(0.1)
            for ask in self._taken("pre_vote"):
                granted = {"next_term": ask.next_term, "granted": True, "nonce": ask.nonce}
                for peer in ("b", "c"):
                    self._hear(peer, pre_vote_reply=granted)
        for peer in ("b", "c"):
            self._hear(peer, vote_reply=VoteReply())
        matched = AppendAck(result=AppendAck.RESULT_MATCHED, match=self.tail.last_index, hint=self.tail.last_index)
        for peer in ("b", "c"):
            self._hear(peer, append_ack=matched)
        self.step(0.001)
        self.guard.propose(b"proposed", lambda *_: None)
        self.guard.read(lambda *_: None, self.now)

    def _hear(self, peer: str, **body: Any) -> None:
        self.guard.receive(peer, RaftMessage(version=WIRE_VERSION, term=self.tail.term, **body), self.now)
        self.step(0.001)

    def _taken(self, body: str) -> list[Any]:
        taken = [getattr(message, body) for message in self.sent if message.WhichOneof("body") == body]
        self.sent.clear()
        return taken

    def step(self, after_s: float) -> None:
        """Let time go on and the disk catch up."""
        self.now += after_s
        self.guard.tick(self.now)
        self.guard.synced(self.tail.seq, self.now)

    def check(self) -> None:
        """What must hold whatever was said."""
        tail = self.tail
        if not tail.boundary_index <= tail.commit <= tail.last_index or self.applied[0] > tail.commit:
            raise Wrong(f"boundary {tail.boundary_index}, applied {self.applied}, commit {tail.commit}")
        if tail.commit < _COMMITTED:
            raise Wrong(f"the commit index went back to {tail.commit}")
        for entry in _LOG[tail.boundary_index : _COMMITTED]:
            if tail.entry(entry.index) != entry:
                raise Wrong(f"entry {entry.index}, which was committed, is another one")

    # Machine and Host of the guard.

    def apply(self, index: int, term: int, entry: bytes) -> None:
        """See `Machine`."""
        if index != self.applied[0] + 1:
            raise Wrong(f"entry {index} is applied after {self.applied[0]}")
        self.applied = (index, term)

    def send(self, peer: str, message: RaftMessage) -> None:
        """See `Host`."""
        self.sent.append(message)
        del self.sent[:-100]

    def changed(self) -> None:
        """See `Host`."""

    def mark(self) -> bytes:
        """See `Host`."""
        return b""

    def marked(self, peer: str, mark: bytes) -> None:
        """See `Host`."""

    def free_bytes(self) -> int:
        """See `Host`."""
        return 1 << 40

    def snapshot_wanted(self) -> None:
        """See `Host`."""

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """See `Host`."""

    def caught_up(self) -> None:
        """See `Host`."""


class _Owner:
    """The transport's owner: hands what arrives to a guard, as the asyncio shell does."""

    def __init__(self, member: _Member) -> None:
        self._member = member

    def hello(self, peer: str) -> PeerHello:
        """See `Owner`."""
        return PeerHello(incarnation="mine")

    def meet(self, peer: str, hello: PeerHello) -> None:
        """See `Owner`."""

    def refused(self, peer: str, error: ControlPlaneError) -> None:
        """See `Owner`."""

    def defect(self, error: BaseException) -> None:
        """See `Owner`."""
        raise AssertionError("nobody is dialled") from error

    def up(self, peer: str) -> None:
        """See `Owner`."""

    def down(self, peer: str) -> None:
        """See `Owner`."""

    def received(self, peer: str, messages: Sequence[RaftMessage]) -> None:
        """See `Owner`."""
        for message in messages:
            self._member.guard.receive(peer, message, self._member.now)
            self._member.step(0.01)
            self._member.check()

    def heard(self, peer: str, term: int) -> None:
        """See `Owner`."""
        self._member.guard.heard_part(peer, term, self._member.now)
        self._member.step(0.01)
        self._member.check()


class _Frames:
    """What gRPC would hand to the transport: frames, parsed as they are read."""

    def __init__(self, frames: Sequence[bytes]) -> None:
        self._frames = list(frames)

    async def read(self) -> PeerFrame | None:
        """The next frame; `DecodeError` if it is none, None at the end."""
        return PeerFrame.FromString(self._frames.pop(0)) if self._frames else None

    async def write(self, frame: PeerFrame) -> None:
        """The hello that answers."""


class Wire:
    """Frames of a link, through the real transport's checks into a real guard, as a follower or as the leader."""

    def __init__(self, _: Path) -> None:
        self._runner = asyncio.Runner()
        self._me = Identity("fleet", EVERY_ENVIRONMENT, "eu", "peer", "a")

    def make(self, random: Random) -> bytes:
        """See `Target`."""
        hello = PeerHello(wire=LINK_VERSION, fleet="fleet", region="eu", node="b", to="a", process=b"p" * 16)
        if random.random() < 0.1:
            redrawn(random, hello)
        frames = [PeerFrame(hello=hello).SerializeToString()]
        for _ in range(random.randint(1, _FRAMES_MAX)):
            messages = [self._message(random) for _ in range(random.choice((1, 1, 2, 4)))]
            made = [PeerFrame(batch=RaftBatch(messages=messages))]
            if random.random() < 0.1:
                made = self._parts(random, messages[0])
            if random.random() < 0.05:
                made = [drawn(random, PeerFrame)]
            for frame in made:
                packed = frame.SerializeToString()
                frames.append(spoiled(random, packed, frames) if random.random() < 0.15 else packed)
        return bytes((random.randrange(2),)) + _packed(frames)

    def _parts(self, random: Random, message: RaftMessage) -> list[PeerFrame]:
        data, step = message.SerializeToString(), random.choice((1, 7, 40))
        parts = [
            RaftPart(term=message.term, size=len(data), offset=offset, data=data[offset : offset + step])
            for offset in range(0, len(data), step)
        ]
        if random.random() < 0.1:
            redrawn(random, random.choice(parts))
        return [PeerFrame(part=part) for part in parts]

    def _message(self, random: Random) -> RaftMessage:
        """Mostly of a version and a term that get past the first check, and often an append that fits."""
        if random.random() < 0.3:
            previous, term = random.randint(0, 9), random.randint(1, 4)
            rows = [
                LogEntry(index=previous + 1 + at, term=term, payload=b"p") for at in range(random.choice((0, 1, 3)))
            ]
            append = Append(prev_index=previous, prev_term=2, entries=rows, commit=random.randint(0, 12))
            message = RaftMessage(term=term, append=append)
            if random.random() < 0.3:
                redrawn(random, message)
        else:
            message = drawn(random, RaftMessage)
        if random.random() < 0.95:
            message.version = WIRE_VERSION
        if random.random() < 0.8:
            message.term = random.randint(1, 5)
        return message

    def feed(self, given: bytes) -> str:
        """See `Target`."""
        member = _Member(leads=bool(given[0]) if given else False)
        return self._runner.run(self._feed(member, list(_unpacked(given[1:]))))

    async def _feed(self, member: _Member, frames: list[bytes]) -> str:
        peers = {"a": "127.0.0.1:1", "b": "127.0.0.1:2", "c": "127.0.0.1:3"}
        transport = Transport(self._me, peers, "127.0.0.1:0", None, _Owner(member), random=Random(1))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await transport.serve(_Frames(frames))
        except (ControlPlaneError, DecodeError):
            return "refused"
        except Fatal:
            return "stopped"
        finally:
            member.check()
        if len(member.tail) > len(_LOG) + 200:
            raise Wrong(f"the log grew to {len(member.tail)} entries")
        return "link closed" if transport.counters.frames_malformed else "taken"

    def close(self) -> None:
        """See `Target`."""
        self._runner.close()


_REQUESTS: dict[str, type[Message]] = {
    **{name: method.request for name, method in {**features.WRITES, **features.READS}.items()},
    "GetOutcome": api.GetOutcomeRequest,
    "ListEvents": api.ListEventsRequest,
    "Watch": api.WatchRequest,
}
_AGENT = "controlplane://demo/prod/eu-west/agent/a1"


class Rpc:
    """Operations of a session, run one after the other on a real node over a memory store."""

    def __init__(self, _: Path) -> None:
        self._runner = asyncio.Runner()
        self._partitions = config.load(REGION_FILE).partitions

    def make(self, random: Random) -> bytes:
        """See `Target`."""
        operations: list[bytes] = []
        for number in range(random.randint(1, 8)):
            method = random.choice(sorted(_REQUESTS))
            request = drawn(random, _REQUESTS[method])
            if random.random() < 0.8:
                self._properly(random, request)
            packed = request.SerializeToString()
            if random.random() < 0.15:
                packed = spoiled(random, packed, operations)
            operation = api.Operation(id=number, method=method, request=packed)
            if random.random() < 0.05:
                redrawn(random, operation)
            operations.append(operation.SerializeToString())
        return _packed(operations)

    def _properly(self, random: Random, request: Any) -> None:
        """A header that gets a request past the first checks, so that its content is looked at."""
        request.header.Clear()
        request.header.request_id = random.randbytes(limits.REQUEST_ID_BYTES)
        request.header.reason = "why"
        request.header.consistency = api.LOCAL

    def feed(self, given: bytes) -> str:
        """See `Target`."""
        return self._runner.run(self._feed(list(_unpacked(given))))

    async def _feed(self, operations: list[bytes]) -> str:
        drawn_so_far = count(1)
        node = Node(
            fleet="demo",
            region="eu-west",
            name="n1",
            partitions=self._partitions,
            store=MemoryStore(),
            log=LocalLog("n1"),
            clock=lambda: 1000.0,
            wall_ms=lambda: 1_700_000_000_000,
            entropy=lambda size: next(drawn_so_far).to_bytes(size, "big"),
        )
        await node.start()
        try:
            answered = sum([await self._answered(node, packed) for packed in operations])
            await self._lives(node)
        finally:
            await node.stop()
        return "some answered" if answered else "all refused"

    async def _answered(self, node: Node, packed: bytes) -> bool:
        try:
            operation = api.Operation.FromString(packed)
        except DecodeError:
            return False
        if operation.method not in _REQUESTS:
            return False
        call = Call(operation.method, operation.request, _AGENT, "prod", node.clock() + 0.005)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._ask(node, call)
        except ControlPlaneError as error:
            if type(error) is ControlPlaneError or not error.reason or len(str(error)) > 1000:
                raise Wrong(f"an error that says nothing, or too much: {error!r}") from error
            return False
        return True

    async def _ask(self, node: Node, call: Call) -> None:
        if call.method != "Watch":
            await node.submit(call)
            return
        watching = await node.watch(call)
        try:
            await anext(aiter(watching))
        finally:
            await watching.aclose()

    async def _lives(self, node: Node) -> None:
        """The next caller is answered."""
        if node.failed.done():
            node.failed.result()
        call = Call("GetAgentConfig", b"", _AGENT, "prod", node.clock() + 5.0)
        async with asyncio.timeout(_PATIENCE_S):
            await node.submit(call)

    def close(self) -> None:
        """See `Target`."""
        self._runner.close()
