"""What a state machine costs on this stack if it does the least that ours has to, and checks nothing.

Beside what `bare` does, a request is taken apart, gets a digest and a transaction, and is answered in a message of
ours; and every node makes of a transaction the rows that make a write worth replicating: the record, its event, its
history, the outcome by request id and a running hash, in RocksDB. No roles, deadlines, sizes, elections, watchers or
ledger; versions are counted and not compared. A program in Python on these libraries can hardly write faster than this.

`python -m bench.least NUMBER FOLDER AUTHORITY KEY CERTIFICATE ADDRESS …` is one of its nodes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from rocksdict import Options, Rdict, WriteBatch

from bench.bare import Bare, Node, Stream, main
from bench.side import VALUE, Write, writing
from controlplane.limits import GATHER_PAUSE_S, GATHER_S_MAX
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Workflow
from controlplane.v1.state_pb2 import Entry, Event, Guard, Outcome, RequestId, State, Txn
from controlplane.v1.state_pb2 import Write as Written

_METHOD: Final = "CompareAndSwapWorkflow"
_SCOPE: Final = b"bench\0home-only\0bench.prod.home-only\0\0\0\0\1"
_ACTOR: Final = "controlplane://bench/prod/bench/operator/bench"
_REVISION_BYTES: Final = 8


class Least(Bare):
    """Three such nodes; a side for writes over a stream."""

    name = "least state machine"
    program = "bench.least"

    def writer(self, way: str) -> AbstractAsyncContextManager[Write]:
        """See `Side`; there are no plain calls."""
        return writing(way, self._channel(0), _no_plain, _Stream)

    @asynccontextmanager
    async def probe(self, nodes: Sequence[int]) -> AsyncIterator[Sequence[Write]]:
        """See `Side`; only the leader can be asked."""
        assert [*nodes] == [0]
        async with self.writer("stream") as write:
            yield [write]


def _no_plain(channel: grpc.aio.Channel) -> Write:
    raise NotImplementedError


class _Stream(Stream):
    """Writes of many workers over one stream, in our messages."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self._versions: dict[int, int] = {}

    def _item(self, number: int, worker: int) -> api.Operation:
        request = api.CompareAndSwapWorkflowRequest(
            header=api.RequestHeader(request_id=os.urandom(16)),
            id=f"w{worker}",
            version=self._versions.get(worker, 0),
            state=VALUE,
        )
        return api.Operation(id=number, method=_METHOD, request=request.SerializeToString())

    def _packed(self, items: Sequence[api.Operation]) -> bytes:
        return api.SessionRequest(operations=items).SerializeToString()

    def _answers(self, message: bytes) -> Iterator[tuple[int, bytes]]:
        for each in api.SessionReply.FromString(message).replies:
            yield each.id, each.reply

    def _took(self, worker: int, answer: bytes) -> None:
        self._versions[worker] = api.CompareAndSwapWorkflowReply.FromString(answer).version


class _Node(Node):
    """One of the processes."""

    def __init__(self, number: int, folder: Path, credentials: grpc.ChannelCredentials, others: Sequence[str]) -> None:
        super().__init__(number, folder, credentials, others)
        self._store = Rdict(str(folder / f"store-{number}"), Options(raw_mode=True))
        self._revision, self._hash = 0, bytes(32)
        self._known: dict[bytes, tuple[int, int, int]] = {}
        """By key: the revision at which it was created, that of its newest version, and which version that is."""
        self._expected = 0
        self._planned: Entry | None = None

    async def _persist(self, entry: bytes) -> None:
        # As in the product: two changes of thread take longer than the sync does.
        await asyncio.sleep(0)
        self._sync(entry)

    async def _gather(self) -> None:
        # As in the product: callers that were answered together ask again one after the other.
        end, seen = asyncio.get_running_loop().time() + GATHER_S_MAX, 0
        while seen < len(self._waiting) < self._expected and asyncio.get_running_loop().time() < end:
            seen = len(self._waiting)
            await asyncio.sleep(GATHER_PAUSE_S)
        self._expected = len(self._waiting)

    def _plan(self, records: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
        known: dict[bytes, tuple[int, int, int]] = {}
        txns = []
        for revision, record in enumerate(records, self._revision + 1):
            request = api.CompareAndSwapWorkflowRequest.FromString(record)
            key = _SCOPE + b"workflow\0" + request.id.encode() + b"\0"
            created, newest, version = known.get(key) or self._known.get(key) or (revision, 0, 0)
            known[key] = created, revision, version + 1
            header = api.ReplyHeader(revision=revision, region="bench", epoch=1, node="n1")
            nonce, digest = request.header.request_id, hashlib.sha256(record).digest()
            value = Workflow(state=request.state).SerializeToString()
            txns.append(
                Txn(
                    request=RequestId(identity=_ACTOR, nonce=nonce, digest=digest),
                    actor=_ACTOR,
                    action=_METHOD,
                    scope=_SCOPE,
                    guards=[Guard(key=key, revision=newest)],
                    writes=[Written(key=key, value=value, history=True)],
                    reply=api.CompareAndSwapWorkflowReply(header=header, version=version + 1).SerializeToString(),
                )
            )
        self._planned = Entry(base=self._revision, txns=txns, base_hash=self._hash)
        return self._planned.SerializeToString(), [txn.reply for txn in txns]

    def _apply(self, entry: bytes) -> None:
        batch, digest = WriteBatch(raw_mode=True), hashlib.sha256(self._hash + entry)
        for txn in (self._planned or Entry.FromString(entry)).txns:
            self._revision += 1
            revision = self._revision.to_bytes(_REVISION_BYTES, "big")
            for write in txn.writes:
                created, _, version = self._known.get(write.key) or (self._revision, 0, 0)
                self._known[write.key] = created, self._revision, version + 1
                event = Event(
                    revision=self._revision,
                    key=write.key,
                    created=created,
                    version=version + 1,
                    actor=txn.actor,
                    action=txn.action,
                    value=write.value,
                ).SerializeToString()
                batch.put(b"r" + write.key, event)
                batch.put(b"e" + txn.scope + revision, event)
                batch.put(b"h" + write.key + revision, event)
                digest.update(event)
            outcome = Outcome(
                verdict=Outcome.COMMITTED, revision=self._revision, reply=txn.reply, digest=txn.request.digest
            ).SerializeToString()
            where = hashlib.sha256(txn.request.nonce + txn.request.identity.encode()).digest()[:16]
            batch.put(b"o" + where, outcome)
            digest.update(outcome)
        self._hash = digest.digest()
        batch.put(b"s", State(revision=self._revision, hash=self._hash).SerializeToString())
        self._store.write(batch)

    def _records(self, message: bytes) -> Iterator[tuple[int, bytes]]:
        for operation in api.SessionRequest.FromString(message).operations:
            yield operation.id, operation.request

    def _reply(self, answers: Sequence[tuple[int, bytes]]) -> bytes:
        replies = [api.OperationReply(id=number, reply=answer) for number, answer in answers]
        return api.SessionReply(replies=replies, revision=self._revision).SerializeToString()


if __name__ == "__main__":
    main(_Node)
