"""Callers that ask for everything and keep every byte that they are told.

They speak gRPC without the SDK, so that they can say anything: every call, for every partition, with every consistency,
well formed and malformed, from a node of their own region, past it at the home itself, in the name of a node, and as a
follower that lies about who it is, what was agreed and how far it has come.

What they ask for has plain names: a request that has a planted word in it would carry it abroad itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import grpc
import grpc.aio

from chaos.leaks_search import HOME, Words
from controlplane import status
from controlplane.federation.links import FOLLOW, FORWARD
from controlplane.kernel import keys
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import audit_pb2, drill_pb2
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1 import records_pb2 as records

PLAIN: Final = "plain"
"""The name of one record of each kind in each partition: values of records with plain names can be asked for."""

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_TIMEOUT_S = 5.0
_QUIET_S = 0.4
_PLANTED_S, _AGAIN_S = 20.0, 0.1
_PASSING = ("CONNECTION_LOST", "DEADLINE", "NO_LEADER", "NOT_LEADER", "STOPPING", "OVERLOADED")
_STREAM_MESSAGES_MAX = 400
_AT_ONCE = 24
_READS: Final = ("LINEARIZABLE", "AT_LEAST", "LOCAL")
_SERVICES = {
    method.name: service.name
    for file in (api.DESCRIPTOR, drill_pb2.DESCRIPTOR, audit_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
_STREAMS = ("Watch", "WatchRegion", "ReadLedger")


class Asked(NamedTuple):
    """One request, ready to be sent."""

    method: str
    encoded: bytes


@dataclass(slots=True)
class Ear:
    """What somebody was told: every reply, and every error with its text, details and trailing metadata."""

    heard: list[tuple[str, bytes]] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    """By what came of a call: "ok", or the reason of the error."""

    def hear(self, what: str, message: bytes) -> None:
        """Keep a message."""
        self.heard.append((what, message))
        self.answers["ok"] += 1

    def fail(self, what: str, code: Any, text: str | None, metadata: Any) -> str:
        """Keep an error whole; its reason."""
        told = [(str(name), value) for name, value in metadata or ()]
        reason = status.from_call(code, text, told).reason
        self.answers[reason] += 1
        carried = [
            name.encode() + b"=" + (value if isinstance(value, bytes) else value.encode()) for name, value in told
        ]
        self.heard.append((f"{what}, refused", b"\n".join([(text or "").encode(), *carried])))
        return reason


class Caller:
    """One certificate at one address."""

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials, ear: Ear, name: str, quiet_s: float = _QUIET_S
    ) -> None:
        """A stream that says nothing for `quiet_s` is taken to have said all."""
        self.channel = grpc.aio.secure_channel(address, credentials, _OPTIONS)
        self._ear, self._name, self._quiet_s = ear, name, quiet_s
        self.refused = ""
        """Why the last call that was refused was."""

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def ask(self, asked: Asked, path: str = "", timeout_s: float = _TIMEOUT_S) -> bytes | None:
        """Make one call; None if it is refused."""
        path = path or f"/controlplane.v1.{_SERVICES.get(asked.method, 'Agents')}/{asked.method}"
        what = f"{self._name} {asked.method}"
        try:
            call: Any = self.channel.unary_unary(path)
            reply: bytes = await call(asked.encoded, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            self.refused = self._ear.fail(what, error.code(), error.details(), error.trailing_metadata())
            return None
        self._ear.hear(what, reply)
        return reply

    async def read_stream(self, asked: Asked) -> None:
        """Begin a call of many replies and read until it ends, or has nothing to say for a moment."""
        stream: Any = self.channel.unary_stream(f"/controlplane.v1.{_SERVICES[asked.method]}/{asked.method}")
        await self._drink(stream(asked.encoded), f"{self._name} {asked.method}")

    async def _drink(self, call: Any, what: str) -> int:
        taken = 0
        try:
            while taken < _STREAM_MESSAGES_MAX:
                async with asyncio.timeout(self._quiet_s if taken else _TIMEOUT_S):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    break
                taken += 1
                self._ear.hear(what, message)
        except TimeoutError:
            pass
        except grpc.aio.AioRpcError as error:
            self._ear.fail(what, error.code(), error.details(), error.trailing_metadata())
            return taken
        if call.done() and await call.code() is not grpc.StatusCode.OK:
            self._ear.fail(what, await call.code(), await call.details(), await call.trailing_metadata())
        call.cancel()
        return taken

    async def everything(self, requests: Iterable[Asked]) -> None:
        """Make all of these calls, some at a time."""
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(asked: Asked) -> None:
            async with turn:
                await (self.read_stream(asked) if asked.method in _STREAMS else self.ask(asked))

        await asyncio.gather(*(one(asked) for asked in requests))

    async def in_session(self, requests: Iterable[Asked]) -> None:
        """Make them as operations of one session."""
        stream: Any = self.channel.stream_stream("/controlplane.v1.Agents/Session")()
        operations = [
            api.Operation(id=number, method=asked.method, request=asked.encoded, timeout_ms=5000)
            for number, asked in enumerate(requests, 1)
        ]
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for first in range(0, len(operations), 16):
                some = operations[first : first + 16]
                await stream.write(api.SessionRequest(operations=some).SerializeToString())
        await self._drink(stream, f"{self._name} Session")

    async def forwarded(self, requests: Iterable[Asked], terms: wire.Terms, on_behalf_of: str) -> None:
        """Make them as a node does for a caller of its region."""
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(asked: Asked) -> None:
            brought = wire.ForwardRequest(
                method=asked.method, request=asked.encoded, on_behalf_of=on_behalf_of, timeout_ms=5000, terms=terms
            )
            async with turn:
                await self.ask(Asked(f"Forward {asked.method}", brought.SerializeToString()), FORWARD)

        await asyncio.gather(*(one(asked) for asked in requests))

    async def follow(self, *requests: wire.FollowRequest) -> int:
        """Open a stream with these messages, and read what comes of it; how many messages that were."""
        stream: Any = self.channel.stream_stream(FOLLOW)()
        what = f"{self._name} Follow"
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for request in requests:
                await stream.write(request.SerializeToString())
        return await self._drink(stream, what)


# -- what is asked


def every_request(partitions: Sequence[str], revision: int, *, own: bool) -> Iterator[Asked]:
    """Every call for every partition (`""`: the default one). With `own`, none that does something to the node asked.

    Reads come with every consistency, and once more as an emergency; writes are such as run into what is there: a name
    that is taken, a version and a revision that are others, a fence and a lease of somebody else.
    """
    for partition in partitions:
        for consistency in _READS:
            header = api.RequestHeader(partition=partition, consistency=consistency, revision=1)
            yield from _encoded(_reads(header, revision))
        emergency = api.RequestHeader(partition=partition, break_glass="let me in")
        yield from _encoded(_reads(emergency, revision))
        yield from _encoded(_writes(partition, revision, own=own))
    yield from _encoded(_about_nodes(own=own))
    yield from _malformed(partitions)


def _encoded(requests: Iterable[tuple[str, Any]]) -> Iterator[Asked]:
    for method, request in requests:
        yield Asked(method, request.SerializeToString())


def _reads(header: api.RequestHeader, revision: int) -> Iterator[tuple[str, Any]]:
    for at in (0, max(1, revision // 2)):
        yield "GetWorkflow", api.GetWorkflowRequest(header=header, id=PLAIN, at_revision=at)
        yield "GetFlag", api.GetFlagRequest(header=header, name=PLAIN, at_revision=at)
    yield "GetWorkflowHistory", api.GetWorkflowHistoryRequest(header=header, id=PLAIN)
    yield "GetFlagHistory", api.GetFlagHistoryRequest(header=header, name=PLAIN)
    yield "GetElection", api.GetElectionRequest(header=header, name=PLAIN)
    for prefix, after in (("", ""), ("p", ""), ("", "a")):
        yield "ListWorkflows", api.ListWorkflowsRequest(header=header, prefix=prefix, after=after, limit=500)
        yield "ListFlags", api.ListFlagsRequest(header=header, prefix=prefix, after=after, limit=500)
        yield "ListElections", api.ListElectionsRequest(header=header, prefix=prefix, after=after, limit=500)
    yield "GetAgentConfig", api.GetAgentConfigRequest(header=header, user="u", tenant="t")
    yield "ListSwitches", api.ListSwitchesRequest(header=header, limit=500)
    yield "CheckSwitches", api.CheckSwitchesRequest(header=header, subject=api.Subject(tenant="t", workflow=PLAIN))
    asked = api.RequestHeader()
    asked.CopyFrom(header)
    asked.request_id = bytes(16)
    yield "GetOutcome", api.GetOutcomeRequest(header=asked)
    for kinds in ([], ["flag"], ["workflow"], ["switch"], ["election"], ["stop"], ["flag", "switch"], ["passage"]):
        yield "ListEvents", api.ListEventsRequest(header=header, limit=500, kinds=kinds)
        if header.consistency == api.LOCAL:
            yield "Watch", api.WatchRequest(header=header, kinds=kinds, snapshot=True)
            yield "Watch", api.WatchRequest(header=header, kinds=kinds, after_revision=1)


def _writes(partition: str, revision: int, *, own: bool) -> Iterator[tuple[str, Any]]:
    fence = api.Fence(election=PLAIN, epoch=1, revision=revision)
    for fenced in (None, fence):

        def header(fenced: api.Fence | None = fenced) -> api.RequestHeader:
            return api.RequestHeader(partition=partition, request_id=os.urandom(16), reason="asked", fence=fenced)

        process = bytes(16)
        flag = text_flag(PLAIN, "asked")
        yield "Campaign", api.CampaignRequest(header=header(), name=PLAIN, process=process, ttl_ms=5000)
        yield "Renew", api.RenewRequest(header=header(), name=PLAIN, process=process, fence=fence)
        yield "Resign", api.ResignRequest(header=header(), name=PLAIN, process=process, fence=fence)
        yield "CreateWorkflow", api.CreateWorkflowRequest(header=header(), id=PLAIN, schema_version=1)
        yield "CompareAndSwapWorkflow", api.CompareAndSwapWorkflowRequest(header=header(), id=PLAIN, version=10**6)
        yield "SetFlag", api.SetFlagRequest(header=header(), flag=flag, must_not_exist=True)
        yield "SetFlag", api.SetFlagRequest(header=header(), flag=flag, expected_revision=10**9)
        yield "RestoreFlag", api.RestoreFlagRequest(header=header(), name=PLAIN, revision=revision)
        yield "RestoreFlag", api.RestoreFlagRequest(header=header(), name=PLAIN, revision=1)
        scope = records.Scope(kind=records.SCOPE_TENANT, name=PLAIN)
        if partition or not own:
            yield "EngageSwitch", api.EngageSwitchRequest(header=header(), scope=scope)
            yield "ReleaseSwitch", api.ReleaseSwitchRequest(header=header(), scope=scope)
        yield "ExceptSwitch", api.ExceptSwitchRequest(header=header(), scope=scope, region=HOME, epoch=1, revision=9)


def _about_nodes(*, own: bool) -> Iterator[tuple[str, Any]]:
    yield "GetRegion", api.GetRegionRequest()
    yield "GetStatus", api.GetStatusRequest()
    for region in ("", HOME):
        yield "GetOutline", api.GetOutlineRequest(region=region)
    yield "ListBreakGlass", api.ListBreakGlassRequest()
    yield "WatchRegion", api.WatchRegionRequest()
    yield "GetCheckpoint", audit_pb2.GetCheckpointRequest()
    yield "ReadLedger", audit_pb2.ReadLedgerRequest(to_ms=1 << 50)
    yield "ReadNodes", audit_pb2.ReadNodesRequest(nodes=[audit_pb2.NodeAt(level=0, at=0)])
    yield "ScanDisk", audit_pb2.ScanDiskRequest()
    yield "ListFaults", drill_pb2.ListFaultsRequest()
    if not own:
        yield "TransferRegion", api.TransferRegionRequest()
        yield "InjectFault", drill_pb2.InjectFaultRequest()
        yield "HealFaults", drill_pb2.HealFaultsRequest()


def _malformed(partitions: Sequence[str]) -> Iterator[Asked]:
    odd = [
        f"{HOME}.prod.unheard-of",
        f"{HOME}.system",
        f"{HOME}.shared",
        f"{HOME}",
        "x" * 300,
        "\x00",
        f"{HOME}.prod.pinned\x00",
    ]
    for name in odd:
        yield from _encoded(
            [
                ("GetWorkflow", api.GetWorkflowRequest(header=api.RequestHeader(partition=name), id=PLAIN)),
                ("ListEvents", api.ListEventsRequest(header=api.RequestHeader(partition=name))),
                ("SetFlag", api.SetFlagRequest(header=api.RequestHeader(partition=name, request_id=bytes(16)))),
            ]
        )
    for method in ("GetWorkflow", "SetFlag", "ListEvents", "Campaign", "Nothing"):
        yield Asked(method, b"\xff\xff\xff")
        yield Asked(method, b"")
    for partition in partitions:
        header = api.RequestHeader(partition=partition, epoch=7, request_id=b"short")
        yield Asked("CreateWorkflow", api.CreateWorkflowRequest(header=header, id=PLAIN).SerializeToString())
        header = api.RequestHeader(partition=partition, epoch=7, request_id=bytes(16), since=1 << 60)
        yield Asked("CreateWorkflow", api.CreateWorkflowRequest(header=header, id=PLAIN).SerializeToString())
        header = api.RequestHeader(partition=partition, consistency=77)  # type: ignore[arg-type]
        yield Asked("ListWorkflows", api.ListWorkflowsRequest(header=header).SerializeToString())
        header = api.RequestHeader(partition=partition, consistency=api.AT_LEAST, revision=1)
        yield Asked("ListFlags", api.ListFlagsRequest(header=header, prefix="\x00").SerializeToString())
        yield Asked("ListFlags", api.ListFlagsRequest(header=header, limit=1 << 30).SerializeToString())


# -- a follower that lies


def every_hello(terms: wire.Terms, third: str, law: str, revision: int) -> Iterator[tuple[wire.FollowRequest, ...]]:
    """What a stream can begin with: every reach, terms true and false, and every place to go on from.

    `third` is another region, and `law` the jurisdiction that the follower would like to be in.
    """
    reaches: list[Any] = [records.GLOBAL, records.JURISDICTION, records.HOME_ONLY, 0, 77]
    for reach in reaches:
        for said in [terms, *_lies(terms, third, law)]:
            yield (_hello(terms=said, reach=reach, epoch=1, revision=1),)
        for place in _places(revision):
            yield (_hello(terms=terms, reach=reach, **place),)
    # What comes after the beginning.
    true = _hello(terms=terms, reach=records.GLOBAL, epoch=1, revision=1)
    other = _hello(terms=terms, reach=records.HOME_ONLY, epoch=1, revision=1)
    ack = wire.FollowRequest(ack=wire.FollowAck(messages=1))
    yield true, wire.FollowRequest(asked=5)
    yield true, other
    yield true, ack
    yield ack, true
    yield (wire.FollowRequest(asked=1 << 63),)


def _hello(**fields: Any) -> wire.FollowRequest:
    return wire.FollowRequest(hello=wire.FollowHello(**fields))


def _lies(terms: wire.Terms, third: str, law: str) -> Iterator[wire.Terms]:
    wide = [records.HOME_ONLY, records.JURISDICTION, records.GLOBAL]
    lies: list[dict[str, Any]] = [
        {"jurisdiction": law},
        {"jurisdiction": law, "peer_jurisdiction": law},
        {"peer_jurisdiction": "us"},
        {"peer_jurisdiction": ""},
        {"region": third},
        {"region": third, "jurisdiction": law},
        {"region": terms.peer},
        {"peer": third},
        {"fleet": "another"},
        {"map_digest": bytes(32)},
        {"map_digest": b""},
        {"jurisdiction": law, "peer_jurisdiction": law, "may_leave": [records.JURISDICTION, records.GLOBAL]},
        {"may_leave": wide},
        {"may_leave": []},
    ]
    for lie in lies:
        told = wire.Terms()
        told.CopyFrom(terms)
        for name, value in lie.items():
            if name == "may_leave":
                del told.may_leave[:]
                told.may_leave.extend(value)
            else:
                setattr(told, name, value)
        yield told
    yield wire.Terms()


def _places(revision: int) -> Iterator[dict[str, Any]]:
    for after in (0, revision // 2, revision, 1 << 40):
        yield {"epoch": 1, "revision": after}
    for epoch in (0, 7):
        yield {"epoch": epoch, "revision": 1}
    scopes = [
        b"",
        b"\x00",
        b"\xff",
        *(keys.domain(HOME, reach) for reach in ("HOME_ONLY", "JURISDICTION", "GLOBAL")),
        keys.text(HOME),
        keys.domain("eu-central", "JURISDICTION"),
        keys.scope(HOME, "HOME_ONLY", f"{HOME}.prod.pinned", 1),
        keys.scope(HOME, "GLOBAL", f"{HOME}.prod.config", 1),
        keys.RECORD + keys.domain(HOME, "HOME_ONLY"),
        b"x" * 4096,
    ]
    for listed in scopes:
        yield {"epoch": 1, "revision": revision, "listing": True, "listed": listed}


# -- what is planted


def text_flag(name: str, text: str) -> records.Flag:
    """A flag with `text` wherever there is room for one."""
    value = records.FlagValue(string_value=text)
    return records.Flag(
        name=name,
        type=records.STRING,
        enabled=True,
        variants=[records.Variant(name=f"variant-{text}", value=value)],
        default_variant=f"variant-{text}",
        metadata=f'{{"owner": "{text}"}}',
        description=f"about {text}",
    )


async def plant(writers: Mapping[str, Caller], words: Words, partitions: Mapping[str, str], tag: str) -> int:
    """Write the words into all that they are for; the newest revision. Raises `Unplanted`.

    `partitions`: id → word for its contents. Who writes, why and with which request id is pinned in all of them: it is
    the one of `writers` (word → caller whose name has it) with the pinned word. Only a lease is taken by the one with
    the word of its partition: the holder is part of the record, and travels with it.
    """
    newest = 0
    for partition, word in partitions.items():
        for name in (PLAIN, f"{word}-{tag}", f"new-{tag}"):
            newest = max(newest, await _plant(writers, words, partition, word, name))
    await _stop(writers[words.pinned], words, tag)
    return newest


class Unplanted(Exception):
    """What was to be searched for could not be written."""


async def _plant(writers: Mapping[str, Caller], words: Words, partition: str, word: str, name: str) -> int:
    flag = api.SetFlagRequest(header=header(words, partition), flag=text_flag(name, word))
    written = await _written(writers[words.pinned], "SetFlag", flag)
    workflow = api.CreateWorkflowRequest(
        header=header(words, partition), id=name, state=word.encode(), schema_version=1, code_version=word
    )
    with contextlib.suppress(Unplanted) if name == PLAIN else contextlib.nullcontext():
        await _written(writers[words.pinned], "CreateWorkflow", workflow)
    process = word.encode() + bytes(4)
    lease = api.CampaignRequest(
        header=header(words, partition), name=name, process=process, ttl_ms=60_000, value=word.encode()
    )
    await _written(writers[word], "Campaign", lease)
    return api.SetFlagReply.FromString(written).header.revision


async def _written(writer: Caller, method: str, request: Any) -> bytes:
    """Have it written, also by a region that has just started. Raises `Unplanted`."""
    asked = Asked(method, request.SerializeToString())
    end = time.monotonic() + _PLANTED_S
    while (reply := await writer.ask(asked)) is None:
        if writer.refused not in _PASSING or time.monotonic() > end:
            raise Unplanted(f"{method} in {request.header.partition or 'the default partition'}: {writer.refused}")
        await asyncio.sleep(_AGAIN_S)
    return reply


def header(words: Words, partition: str = "") -> api.RequestHeader:
    """That of a write at home: its id and its reason are pinned."""
    nonce = words.pinned.encode() + os.urandom(4)
    return api.RequestHeader(partition=partition, request_id=nonce, reason=f"because of {words.pinned}")


async def _stop(home: Caller, words: Words, tag: str) -> None:
    """Throw a switch, and release it: its name, reason and thrower stay, that something is stopped does not."""
    scope = records.Scope(kind=records.SCOPE_TENANT, name=f"{words.pinned}-{tag}")
    for kind, method in ((api.EngageSwitchRequest, "EngageSwitch"), (api.ReleaseSwitchRequest, "ReleaseSwitch")):
        await _written(home, method, kind(header=header(words), scope=scope))
