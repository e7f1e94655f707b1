"""Break-glass reads: somebody of another region is shown what is pinned here, in an emergency and on the record.

Theory of operation. A read of another region's partition may say in its header that it is an emergency, and why. The
caller's region hands it to the home like any other call. Where the home would deny it because the partition does not
reach so far, its leader looks into the region file: whether people of that region and role may break the glass.

1. The default is no: a peer for which the file lists no role, and an agent whatever the file says, are denied as ever.
2. Only `READS`, one record or page each, and only so many in a while. No write, no watch, no event log, no kill switch.
3. An environment stays a wall, only the home shows what is pinned to it, and a paused link carries nothing.
4. Written down first: the answer, or a refusal that tells what is there, leaves when a record of it is committed here,
   and reaches the caller when their own region has committed one too. What cannot be written down is not answered.
5. Who wrote what is shown, and why, stays at home as in any answer that leaves.
6. What is shown passes through the memory of the nodes that carry it. Neither a store nor a journal nor a log line of
   the caller's region has it, or what it was about.
"""

from __future__ import annotations

import hashlib
from asyncio import Future
from typing import Any, Final

import structlog
from google.protobuf.message import DecodeError

from controlplane import features, limits, status
from controlplane.errors import Compacted, ControlPlaneError, Denied, Invalid, NotFound, Refused, Unavailable
from controlplane.features import checks, glass
from controlplane.features.audit import REACH_WORDS
from controlplane.features.federation import told
from controlplane.features.partitions import system
from controlplane.federation import Federation
from controlplane.geography import PINNED
from controlplane.identity import PEOPLE, Identity
from controlplane.kernel.transaction import Reader
from controlplane.node import Call, HomedElsewhere, Node
from controlplane.server.region import RegionView
from controlplane.telemetry import Counts, RateLimit
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import BreakGlass, Passage

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

LIST: Final = "ListBreakGlass"
READS: Final = frozenset(
    {
        "GetElection",
        "GetFlag",
        "GetFlagHistory",
        "GetWorkflow",
        "GetWorkflowHistory",
        "ListElections",
        "ListFlags",
        "ListWorkflows",
    }
)
"""Calls that may break the glass. Kill switches say who and why; what travels of them are stops."""

_TIMEOUT_S = 5.0


class Glass:
    """Both ends of such a read, on the leader of either region; and what was written down of them."""

    def __init__(self, node: Node, region: RegionView, federation: Federation | None, counts: Counts) -> None:
        self._node, self._region, self._federation, self._counts = node, region, federation, counts
        self._rates: dict[str, RateLimit] = {}

    # -- at home

    def wanted(self, call: Call) -> bool:
        """Whether a call of another region's caller asks for the glass to be broken, and is denied without that."""
        if not self.asked(call):
            return False
        try:
            self._node.partition(_parsed(call).header, features.READS[call.method].kind.name, call)
        except Denied as denial:
            return denial.reason in PINNED
        except (ControlPlaneError, HomedElsewhere):
            return False
        return False

    async def let_in(self, call: Call) -> bytes:
        """Answer a call that is `wanted`, if this region's operators let its caller in; the encoded reply.

        Raises `Denied` (BREAK_GLASS_DENIED, BREAK_GLASS_RATE, and the reasons of `check_glass`), `Invalid`
        (BREAK_GLASS_REASON_MISSING), `Unavailable` (BREAK_GLASS_NOT_RECORDED), and what the read itself raises.
        """
        assert self._federation is not None
        try:
            role = self._admit(call)
            return await self._show(call, role)
        except Denied:
            self._federation.doors.denied(call.region)
            self._counts.break_glass[call.region, "denied"] += 1
            raise

    def _admit(self, call: Call) -> str:
        """The caller's role, if it may break the glass now."""
        assert self._federation is not None
        role, link = Identity.parse(call.actor).role, self._federation.links.get(call.region)
        if link is None or role not in PEOPLE or role not in link.peer.break_glass:
            raise Denied(
                f"the operators of {self._node.region} let no {role} of {call.region} read what is pinned there",
                reason="BREAK_GLASS_DENIED",
                hint="`break_glass` of the peer in the home's region file says who may",
            )
        if not checks.free_text(_parsed(call).header.break_glass, "header.break_glass").strip():
            raise Invalid(
                "say why this is an emergency", reason="BREAK_GLASS_REASON_MISSING", field="header.break_glass"
            )
        rate = self._rates.setdefault(
            call.region, RateLimit(limits.BREAK_GLASS_READS_MAX, limits.BREAK_GLASS_PERIOD_S, self._node.clock)
        )
        if not rate.allows():
            raise Denied(
                f"{call.region} has read what is pinned {limits.BREAK_GLASS_READS_MAX} times in"
                f" {limits.BREAK_GLASS_PERIOD_S:.0f} seconds",
                reason="BREAK_GLASS_RATE",
                hint="wait a moment, or have somebody at the home read it",
            )
        return role

    async def _show(self, call: Call, role: str) -> bytes:
        through = call._replace(glass=True)
        header = _parsed(call).header
        partition = self._node.partition(header, features.READS[call.method].kind.name, through, glass=True)
        read = BreakGlass(
            direction=Passage.EGRESS,
            counterparty=call.region,
            actor=call.actor,
            reason=header.break_glass,
            method=call.method,
            partition=partition.id,
            reach=partition.reach,
            environment=call.environment,
        )
        try:
            shown = told(call.method, await self._node.submit(through), call.region)
        except (Refused, NotFound, Compacted) as refusal:
            # It says what is there, and what is not.
            await self._write_down(call, read, status.encode(refusal))
            raise
        mark = _reply_type(call)(header=api.ReplyHeader(break_glass=partition.reach))
        # Encoded messages that follow each other are one message.
        reply: bytes = shown + mark.SerializeToString()
        served = _reply_type(call).FromString(reply).header
        read.epoch, read.revision = served.epoch, served.revision
        await self._write_down(call, read, reply)
        _log.warning(
            "break glass: pinned data is shown to another region",
            to=call.region,
            role=role,
            method=call.method,
            reach=REACH_WORDS[partition.reach],
        )
        return reply

    # -- where the caller is

    def asked(self, call: Call) -> bool:
        """Whether a call says that the glass is to be broken; the leader has to answer it, or to have it answered."""
        if self._federation is None or call.method not in READS:
            return False
        try:
            return bool(_parsed(call).header.break_glass)
        except Invalid:
            return False

    async def take(self, call: Call, answer: Future[bytes]) -> bytes:
        """Hand the answer of a call that `asked` to this region's caller: written down, if the glass was broken for it.

        Raises what `answer` does, and `Unavailable` (BREAK_GLASS_NOT_RECORDED).
        """
        reply = await answer
        try:
            served = _reply_type(call).FromString(reply).header
        except DecodeError:
            raise Unavailable("the answer of the home cannot be read", reason="FORWARD_BROKEN") from None
        if not served.break_glass:
            return reply
        read = BreakGlass(
            direction=Passage.INGRESS,
            counterparty=served.region,
            actor=call.actor,
            reach=served.break_glass,
            environment=call.environment,
            epoch=served.epoch,
            revision=served.revision,
        )
        await self._write_down(call, read, reply)
        _log.warning("break glass: pinned data of another region is read", of=served.region, method=call.method)
        return reply

    # -- both

    async def listed(self, call: Call) -> bytes:
        """Answer ListBreakGlass: one page of what was written down in the caller's environment, oldest first."""
        request = call.read(api.ListBreakGlassRequest)
        await self._node.consistent(request.header, call.deadline)
        reader = Reader(self._node.store, system(self._node.region), self._node.revision)
        rows, more = checks.page(glass.reads(reader, call.environment, request.after_revision), request.limit)
        found = [
            api.BreakGlassView(read=row.value, meta=api.Meta(revision=row.revision, at_ms=row.at_ms)) for row in rows
        ]
        return api.ListBreakGlassReply(header=self._region.header(), reads=found, more=more).SerializeToString()

    async def _write_down(self, call: Call, read: BreakGlass, answer: bytes) -> None:
        """Return when this is in the log. Raises `Unavailable`: then the answer must not be given."""
        read.digest = hashlib.sha256(answer).digest()
        sort = "shown" if read.direction == Passage.EGRESS else "read"
        timeout_s = min(_TIMEOUT_S, call.deadline - self._node.clock())
        try:
            await self._node.transact(
                system(self._node.region), "BreakGlass", lambda tx: glass.record(tx, read), timeout_s=timeout_s
            )
        except ControlPlaneError as error:
            self._counts.break_glass[read.counterparty, "unrecorded"] += 1
            raise Unavailable(
                f"{self._node.region} could not write down that this is read, so it is not answered",
                reason="BREAK_GLASS_NOT_RECORDED",
                because=error.reason,
            ) from error
        self._counts.break_glass[read.counterparty, sort] += 1


def _parsed(call: Call) -> Any:
    return call.read(features.READS[call.method].request)


def _reply_type(call: Call) -> Any:
    return getattr(api, f"{call.method}Reply")
