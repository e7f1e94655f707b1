"""What every way into a node has in common: who is calling, may they, and who answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Final, Protocol

import structlog

from controlplane import features, limits, roles, status
from controlplane.config import RegionConfig
from controlplane.errors import ControlPlaneError, Denied, Invalid, NotFound, Unavailable
from controlplane.federation import Federation, doors
from controlplane.forward import Request, Router
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.node import AGE_UNKNOWN_MS, Call, HomedElsewhere, Node
from controlplane.server.drills import Drills
from controlplane.server.glass import LIST, Glass
from controlplane.server.outline import OUTLINE, Outlines
from controlplane.server.partitions import Partitions
from controlplane.server.region import RegionView
from controlplane.server.reviewers import Reviewers
from controlplane.server.shares import Intake, Outbox
from controlplane.telemetry import LINES_LOGGED, LINES_PERIOD_S, Counts, RateLimit
from controlplane.v1.records_pb2 import Reach

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

NOTE: Final = "NotePassage"
LEADERS: Final = frozenset({*features.WRITES, "TransferRegion", "MovePartition", NOTE})
"""Calls that only the leader answers: forwarded from anywhere else."""
EFFECTS: Final = LEADERS | frozenset(roles.DRILLS)
"""Calls that do something, so that their answer is never kept from their caller. All of those are small."""
STREAMS: Final = frozenset({"Watch", "WatchRegion", "ReadLedger"})
SESSION: Final = "Session"
FOLLOW: Final = "Follow"
FORWARD: Final = "Forward"
COSIGN: Final = "Cosign"
ADOPT: Final = "Adopt"
FROM_ELSEWHERE: Final = frozenset(
    {*features.WRITES, *features.READS, "GetOutcome", "ListEvents", OUTLINE} - {"EraseRecord"}
)
"""Calls that callers of other regions may have made by a node of theirs: about records of one partition; outlines.
Whoever erases answers for it to the region that it is erased from."""

_URI_NAMES: Final = ("x509_uri", "x509_subject_alternative_name")
_KNOWN: Final = frozenset({*roles.TABLE, FOLLOW, FORWARD, COSIGN, ADOPT})


class Peer(Protocol):
    """The part of a gRPC servicer context that says who is calling."""

    def auth_context(self) -> Mapping[str, Any]:
        """Properties of the caller's certificate."""


class Replies(Protocol):
    """The encoded replies of one call. Whoever asked for them closes them."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Each once, in order."""

    async def aclose(self) -> None:
        """End it."""


class Principal:
    """Somebody for whom calls are made, with what has been found out already."""

    __slots__ = ("admitted", "identity", "uri")

    def __init__(self, identity: Identity) -> None:
        self.identity, self.uri = identity, identity.uri
        self.admitted: set[str] = set()
        """Methods that `Desk.admit` let through."""


class Desk:
    """Admits calls and has them answered."""

    def __init__(  # noqa: PLR0913 - everything a call may need passes over it.
        self,
        config: RegionConfig,
        node: Node,
        router: Router,
        region: RegionView,
        counts: Counts,
        *,
        drills: Drills,
        glass: Glass,
        outlines: Outlines,
        reviewers: Reviewers,
        partitions: Partitions,
        fixed: Identity | None,
        federation: Federation | None = None,
    ) -> None:
        """`fixed` is who everybody is where there are no certificates (development only)."""
        self._config, self._federation = config, federation
        self._fleet, self._region_name = config.fleet, config.name
        self._administrators = frozenset(config.administrators)
        self._node, self._router, self.region, self.counts = node, router, region, counts
        self._drills, self._glass, self._outlines, self._reviewers = drills, glass, outlines, reviewers
        self._partitions = partitions
        self._fixed = fixed
        self.intake = Intake()
        self.outbox = Outbox(counts, node.clock)
        self._logged = RateLimit(LINES_LOGGED, LINES_PERIOD_S, node.clock)
        self._defects_logged = RateLimit(LINES_LOGGED, LINES_PERIOD_S, node.clock)

    # -- who and whether

    def caller(self, peer: Peer) -> Identity:
        """Return who is at the other end of a connection. Raises `Denied`."""
        if self._fixed is not None:
            return self._fixed
        identity = self._of_fleet(_identity(_uri(peer.auth_context())))
        if identity.region != self._region_name:
            self.note_denial(identity.region)
            raise Denied(
                f"the certificate is of region {identity.region}, this is {self._region_name}", reason="REGION_MISMATCH"
            )
        return identity

    def neighbour(self, peer: Peer) -> Identity:
        """Return which node of which peer region is at the other end of a connection. Raises `Denied`."""
        if self._fixed is not None:
            raise Denied("without certificates there are no other regions", reason="PEER_UNKNOWN")
        identity = self._of_fleet(_identity(_uri(peer.auth_context())))
        try:
            self._check_neighbour(identity)
        except Denied:
            self.note_denial(identity.region)
            raise
        return identity

    def _check_neighbour(self, identity: Identity) -> None:
        if (identity.role, identity.environment) != ("peer", EVERY_ENVIRONMENT):
            raise Denied("only nodes of regions speak to other regions", reason="PEER_ROLE_REQUIRED")
        known = self._config.peer(identity.region)
        if known is None:
            raise Denied("the certificate's region is no peer of this one", reason="PEER_UNKNOWN")
        if identity.name not in known.certificate_names:
            raise Denied(
                f"the region file names no such node of {identity.region}",
                reason="PEER_NAME_UNKNOWN",
                hint="`certificate_names` of the peer in the region file lists them",
            )

    def principal(self, caller: Identity, on_behalf_of: str) -> Identity:
        """Return for whom an operation in `caller`'s session is done. Raises `Denied`."""
        if caller.role != "peer":
            if on_behalf_of:
                raise Denied("only nodes act on behalf of others", reason="ON_BEHALF_DENIED")
            return caller
        if on_behalf_of == caller.uri and caller.region == self._region_name:
            return caller
        if not on_behalf_of:
            raise Denied("a node asks on behalf of a caller only", reason="ON_BEHALF_MISSING")
        principal = self._of_fleet(_identity(on_behalf_of))
        if caller.region == self._region_name:
            # A node of this region also hands on what nodes of other regions brought it.
            known = principal.region == self._region_name or self._config.peer(principal.region) is not None
        else:
            known = principal.region == caller.region
        if not known:
            raise Denied("the caller's region is not one that this node speaks for", reason="REGION_MISMATCH")
        if principal.role == "peer":
            raise Denied("nodes are not callers", reason="ON_BEHALF_DENIED")
        return principal

    def admit(self, caller: Identity, method: str) -> None:
        """Return if `caller` may call `method`. Raises `Denied`, or `Invalid` if there is no such method."""
        if method not in roles.TABLE:
            raise Invalid("there is no such method", reason="METHOD_UNKNOWN")
        if caller.region != self._region_name and method not in FROM_ELSEWHERE:
            raise Denied(f"{method} is not for callers of other regions", reason="NOT_FOR_OTHER_REGIONS")
        if roles.allowed(method, caller.role, caller.environment):
            return
        if method in roles.REGION_WIDE and caller in self._administrators:
            return
        raise Denied(
            f"role {caller.role} may not call {method} from environment {caller.environment}",
            reason="ROLE_DENIED",
            hint="use a certificate whose role may; regions/README.md says how roles are given",
        )

    def _of_fleet(self, identity: Identity) -> Identity:
        if identity.fleet != self._fleet:
            raise Denied("the certificate is of another fleet", reason="FLEET_MISMATCH")
        return identity

    def note_denial(self, region: str) -> None:
        """Have it written down that a caller of another region was denied something, if this node may write."""
        if self._federation is not None and region in self._node.atlas.jurisdictions and region != self._region_name:
            self._federation.doors.denied(region)

    # -- running

    def call(self, caller: Identity, method: str, request: bytes, timeout_s: float | None) -> Call:
        """Return an admitted request as the node takes it. Raises `Unavailable` if there is no time left."""
        if timeout_s is not None and timeout_s <= 0:
            raise Unavailable("the deadline had passed on arrival", reason="DEADLINE")
        return Call(
            method, request, caller.uri, caller.environment, self.deadline(timeout_s), self.foreign_region(caller)
        )

    def foreign_region(self, caller: Identity) -> str:
        """The caller's region if it is another one, else nothing: as `Call.region` has it."""
        return "" if caller.region == self._region_name else caller.region

    def deadline(self, timeout_s: float | None) -> float:
        """Return, on the node's clock, when a call that arrives now must be answered."""
        timeout_s = limits.CALL_TIMEOUT_S if timeout_s is None else min(timeout_s, limits.CALL_TIMEOUT_MAX_S)
        return self._node.clock() + timeout_s

    def run(self, request: Request) -> None:
        """Have a call that has one reply answered."""
        method = request.call.method
        if method in LEADERS or request.call.region or self._glass.asked(request.call):
            # What callers of other regions are told is written down, and what is heard by breaking the glass, which
            # only the leader can do.
            self._router.submit(request)
        elif method in ("GetRegion", "GetStatus"):
            _answer(request, self.region.answer)
        elif method == OUTLINE:
            asyncio.ensure_future(self._outlines.ask(request.call)).add_done_callback(partial(_settled, request))
        elif method == LIST:
            asyncio.ensure_future(self._glass.listed(request.call)).add_done_callback(partial(_settled, request))
        elif method in roles.DRILLS:
            asyncio.ensure_future(self._drills.answer(request.call)).add_done_callback(partial(_settled, request))
        elif method in ("ListPartitions", "ListQuarantine"):
            asyncio.ensure_future(self._partitions.answer(request.call)).add_done_callback(partial(_settled, request))
        elif method in roles.REVIEWERS:
            asyncio.ensure_future(self._reviewers.answer(request.call)).add_done_callback(partial(_settled, request))
        else:
            submitted(self._node, self._federation, request.call).add_done_callback(
                lambda future: _settled(request, future)
            )

    async def stream(self, call: Call) -> Replies:
        """Begin a call that has many replies. A partition of another region is watched where it is copied: here."""
        if call.method == "ReadLedger":
            return self._reviewers.read(call)
        if call.method != "Watch":
            return self.region.watch(call)
        try:
            return await self._node.watch(call)
        except HomedElsewhere as elsewhere:
            raise NotFound(
                "no copy of such a partition is here",
                reason="PARTITION_UNKNOWN",
                hint=f"only what {elsewhere.home} shares with this region can be watched here",
            ) from None

    def revision_and_age(self) -> tuple[int, int]:
        """The newest revision applied here, and the upper bound in milliseconds of its age."""
        try:
            return self._node.revision, self._node.fresh_ms()
        except Unavailable:
            return self._node.revision, AGE_UNKNOWN_MS

    # -- what went wrong

    def failure(self, method: str, error: BaseException) -> bytes:
        """Count `error` and return it as an encoded status; what is none of the eight is a defect and logged whole.

        Callers can have denials and defects by the thousand: some of each are logged in a period, all are counted.
        """
        self.counts.calls[method if method in _KNOWN else "unknown", type(error).__name__] += 1
        if isinstance(error, Denied):
            self._denied(method, error)
        elif not isinstance(error, ControlPlaneError):
            self.counts.defects += 1
            if self._defects_logged.allows():
                _log.error("defect", method=method, suppressed=self._defects_logged.suppressed, exc_info=error)
        return status.encode(error)

    def _denied(self, method: str, error: Denied) -> None:
        self.counts.denials[error.reason] += 1
        if self._logged.allows():
            known = method if method in _KNOWN else "unknown"
            _log.warning("denied", method=known, reason=error.reason, suppressed=self._logged.suppressed)


def plan(
    node: Node,
    region: RegionView,
    outlines: Outlines,
    glass: Glass,
    partitions: Partitions,
    federation: Federation | None,
) -> Callable[[Call], asyncio.Future[bytes]]:
    """Return what answers a leader's call on the leader itself."""

    def answer(call: Call) -> asyncio.Future[bytes]:
        if call.method == "TransferRegion":
            return asyncio.ensure_future(region.transfer(call))
        if call.method == "MovePartition":
            return asyncio.ensure_future(partitions.answer(call))
        if call.method == NOTE and federation is not None:
            return asyncio.ensure_future(federation.doors.take(call))
        if not call.region or federation is None:
            answered = submitted(node, federation, call)
            return asyncio.ensure_future(glass.take(call, answered)) if glass.asked(call) else answered
        if glass.wanted(call):
            return asyncio.ensure_future(glass.let_in(call))
        if call.method == OUTLINE:
            answered = asyncio.ensure_future(outlines.tell(call))
            reach, sort = outlines.reach_of(call), doors.OUTLINE
        else:
            answered = asyncio.ensure_future(_told(call, submitted(node, federation, call)))
            reach, sort = node.reach_of(call), doors.ANSWER
        answered.add_done_callback(partial(_write_down, federation, call, reach, sort))
        return answered

    return answer


def submitted(node: Node, federation: Federation | None, call: Call) -> asyncio.Future[bytes]:
    """Have `node` answer a call, or the region that alone can."""
    answer = node.submit(call)
    if not answer.done() or answer.cancelled():
        return answer
    error = answer.exception()
    if not isinstance(error, HomedElsewhere):
        return answer
    if error.request:
        call = call._replace(request=error.request)
    return asyncio.ensure_future(_at_home(federation, call, error.home))


async def _at_home(federation: Federation | None, call: Call, home: str) -> bytes:
    if federation is None:
        # As `links.forward` has it, where the region file names no peer at all any more.
        raise Unavailable(f"{home}, the partition's home, is no peer of this region", reason="HOME_UNREACHABLE")
    return await federation.links.forward(call, home)


async def _told(call: Call, answered: asyncio.Future[bytes]) -> bytes:
    """What a caller of another region hears of an answer."""
    return features.federation.told(call.method, await answered, call.region)


def _write_down(federation: Federation, call: Call, reach: Reach, sort: str, answer: asyncio.Future[bytes]) -> None:
    """Have it written down what a caller of another region was told: refusals tell what is there, too."""
    if answer.cancelled():
        return
    error = answer.exception()
    if isinstance(error, Denied) or (error is not None and not reach):
        # A refusal about no partition that is known here tells nothing of one. Its reach could not be said, and a
        # reviewer would have to take it for anything.
        federation.doors.denied(call.region)
    else:
        told = answer.result() if error is None else status.encode(error)
        federation.doors.answered(call.region, reach, told, sort)


def _answer(request: Request, answer: Callable[[Call], bytes]) -> None:
    try:
        request.answered(answer(request.call))
    except ControlPlaneError as error:
        request.failed(error)


def _settled(request: Request, future: asyncio.Future[bytes]) -> None:
    if future.cancelled():
        request.failed(Unavailable("this node is stopping", reason="STOPPING"))
        return
    error = future.exception()
    if error is None:
        request.answered(future.result())
    else:
        request.failed(error)


def _uri(properties: Mapping[str, Any]) -> str:
    """The one identity among a certificate's names."""
    for name in _URI_NAMES:
        uris = {value for value in properties.get(name, ()) if value.startswith(b"controlplane://")}
        if len(uris) > 1:
            raise Denied("the certificate names several identities", reason="IDENTITY_MALFORMED")
        if uris:
            return str(uris.pop(), "utf-8", "replace")
    raise Denied(
        "the certificate names no identity",
        reason="IDENTITY_MISSING",
        hint="it needs a URI controlplane://<fleet>/<environment>/<region>/<role>/<name>",
    )


@lru_cache(maxsize=16_384)
def _identity(uri: str) -> Identity:
    try:
        return Identity.parse(uri)
    except Invalid as error:
        raise Denied(str(error), reason=error.reason, hint=error.hint) from error
