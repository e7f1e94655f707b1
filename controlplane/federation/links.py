"""What this node knows of each region that it federates with, and calls handed to the region that can answer them.

A link is *up* while a stream of either direction is open, or the other side answered last; *paused* while the two
sides disagree about the map (or about what was sent), so that nothing passes; else *down*. Only the leader keeps
streams. Other nodes tell a link's state from the age of the copies, which every node knows.

1. What a link may carry is computed anew from what both sides say, at every hello and every call.
2. A pause is loud: it is logged, shown by `cpctl status` and counted in the metrics, with the same sentences on both
   sides. The two go on greeting each other, so it ends by itself when they agree.
3. A call is handed on once. Another endpoint is tried only if the call certainly reached no log.
4. The answering side reads the caller's certificate. The calling side relies on the fleet's authority and on the host
   name in the certificate; that it is the right region there is what the terms say, and they are compared.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from controlplane import geography
from controlplane.config import PeerConfig, RegionConfig
from controlplane.errors import ControlPlaneError, OutcomeUnknown, Unavailable
from controlplane.features import moves
from controlplane.federation.ways import Ways
from controlplane.geography import Agreement, Terms
from controlplane.node import Call, Node
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import Reach

_LOG = logging.getLogger(__name__)

FOLLOW: Final = "/controlplane.v1.Federation/Follow"
FORWARD: Final = "/controlplane.v1.Federation/Forward"
COSIGN: Final = "/controlplane.v1.Federation/Cosign"
ADOPT: Final = "/controlplane.v1.Federation/Adopt"
SEVERED: Final = "REGION_CUT_OFF"
PARTITIONS_CHANGED: Final = "PARTITIONS_CHANGED"
"""Why a stream ends that begins anew at once."""
INGRESS: Final = "ingress"
EGRESS: Final = "egress"

_FRESH_MS = 5_000
"""Elsewhere than on the leader, a link counts as up while what it brings is younger than this."""
_CONNECT_S = 2.0
_COSIGN_S = 5.0
_TEXT_MAX = 512
_LINES_MAX, _LINES_PERIOD_S = 20, 60.0
_MAP = "map"


def packed(terms: Terms) -> wire.Terms:
    """Terms as they travel."""
    return wire.Terms(
        fleet=terms.fleet,
        region=terms.region,
        jurisdiction=terms.jurisdiction,
        peer=terms.peer,
        peer_jurisdiction=terms.peer_jurisdiction,
        may_leave=terms.may_leave,
        map_digest=terms.map_digest,
    )


def unpacked(terms: wire.Terms) -> Terms:
    """Terms that arrived, checked. Raises `Invalid`."""
    return Terms(
        fleet=terms.fleet,
        region=terms.region,
        jurisdiction=terms.jurisdiction,
        peer=terms.peer,
        peer_jurisdiction=terms.peer_jurisdiction,
        may_leave=tuple(terms.may_leave),
        map_digest=terms.map_digest,
    )


class Link:
    """One peer: what it agreed to, how it can be reached, and what passed."""

    def __init__(self, node: Node, peer: PeerConfig, ways: Ways) -> None:
        atlas = node.atlas
        self.region, self.peer = peer.region, peer
        self.jurisdiction = atlas.jurisdictions[peer.region]
        self.exported = geography.exported(atlas, peer.region)
        self.imported = tuple(
            reach for reach in geography.SHARED if geography.lawful(atlas, peer.region, reach, atlas.region)
        )
        """Reaches that the law lets the peer share with us; whether it does is for the peer to say."""
        self.terms = geography.terms(atlas, peer.region)
        self.transactions: Counter[tuple[Reach, str]] = Counter()
        """By reach and direction, "ingress" or "egress"; pages of listings count as well."""
        self.differences = 0
        """Times that the two sides did not agree on what had passed."""
        self.forwarded = 0
        self.ways = ways
        self._node = node
        self._first = 0
        self._live: set[tuple[str, Reach]] = set()
        self._pauses: dict[str, str] = {}
        self._troubles = {EGRESS: "nothing was heard from it yet"}
        self._told = ("down", "")
        self.receives: frozenset[Reach] = frozenset()
        """Reaches that the peer shares, as it said last."""
        self.severed = False
        """A drill cut the two regions off from each other: nothing passes, and nothing is begun."""
        self._listeners: list[Callable[[], None]] = []
        self._severing: list[Callable[[], None]] = []
        self._agreed: list[Callable[[], None]] = []
        self._lines, self._lines_since = 0, node.clock()

    # -- what is known of it

    @property
    def state(self) -> tuple[str, str]:
        """One of "up", "down" and "paused", and why, as far as this node saw itself."""
        if self.severed:
            return "down", "a drill cut it off: cpctl drill watch"
        if self._pauses:
            return "paused", "; ".join(self._pauses.values())
        return ("up", "") if self._live else ("down", self._troubles.get(INGRESS) or self._troubles[EGRESS])

    @property
    def disputed(self) -> bool:
        """Whether the two sides disagree about the map: nothing passes."""
        return _MAP in self._pauses

    def on_dispute(self, listener: Callable[[], None]) -> None:
        """Call `listener`, which must not raise or block, when the two sides begin to disagree."""
        self._listeners.append(listener)

    def on_agreement(self, listener: Callable[[], None]) -> None:
        """Call `listener`, which must not raise or block, when the other side has said what it holds true."""
        self._agreed.append(listener)

    def on_severed(self, listener: Callable[[], None]) -> None:
        """Call `listener`, which must not raise or block, when a drill cuts the other side off, and when it ends."""
        self._severing.append(listener)

    def sever(self, *, severed: bool) -> None:
        """Cut the other side off, or heal that, at this node."""
        if severed != self.severed:
            self.severed = severed
            self._tell()
            for listener in self._severing:
                listener()

    def meet(self, theirs: wire.Terms) -> Agreement:
        """Work out what the link carries from what the other side says now. Raises `Invalid`."""
        agreement = geography.agreement(self.terms, unpacked(theirs))
        self.receives = frozenset(agreement.receives)
        if agreement.paused:
            self.dispute("; ".join(agreement.pauses))
        else:
            self.resume(_MAP)
        for listener in self._agreed:
            listener()
        return agreement

    def dispute(self, why: str) -> None:
        """The two sides disagree about the map."""
        self.pause(_MAP, why)
        for listener in self._listeners:
            listener()

    def pause(self, source: str, why: str) -> None:
        """Nothing passes, until `resume` of the same source."""
        self._pauses[source] = why[:_TEXT_MAX]
        self._tell()

    def resume(self, source: str) -> None:
        """This is settled."""
        self._pauses.pop(source, None)
        self._tell()

    def opened(self, direction: str, reach: Reach) -> None:
        """The other side was heard."""
        self._live.add((direction, reach))
        self._troubles.pop(INGRESS, None)
        self._tell()

    def closed(self, direction: str, reach: Reach, why: str) -> None:
        """It is heard no more."""
        self._live.discard((direction, reach))
        self._troubles[direction] = why[:_TEXT_MAX]
        self._tell()

    def differs(self, reach: Reach) -> None:
        """The two sides saw different things pass. That is a defect, or somebody between them."""
        self.differences += 1
        _LOG.error(
            "what %s says it received is not what was sent to it: reach %s, difference %d",
            self.region,
            Reach.Name(reach),
            self.differences,
        )

    def _tell(self) -> None:
        """Log a change of state; not every flap."""
        state = self.state
        if state == self._told or (state[0] == "down" and self._told[0] == "down"):
            return
        self._told = state
        now = self._node.clock()
        if now - self._lines_since > _LINES_PERIOD_S:
            self._lines, self._lines_since = 0, now
        self._lines += 1
        if self._lines <= _LINES_MAX:
            level = {"up": logging.INFO, "down": logging.WARNING}.get(state[0], logging.ERROR)
            _LOG.log(level, "link with %s is %s: %s", self.region, state[0], state[1] or "both sides agree")

    # -- the way to it

    def prefer(self, endpoint: str) -> None:
        """Try this one first from now on: its leader was there."""
        self._first = self.peer.endpoints.index(endpoint)

    @property
    def endpoints(self) -> list[str]:
        """Where to try, in turn: first what worked last."""
        every = self.peer.endpoints
        return [*every[self._first :], *every[: self._first]]

    async def forward(self, call: Call) -> bytes:
        """See `Links.forward`."""
        if self.severed:
            raise _unreachable(self.region, SEVERED)
        if self.disputed:
            raise _unreachable(self.region, "LINK_PAUSED")
        because = ""
        for endpoint in self.endpoints:
            if not await self._connected(endpoint, call.deadline):
                continue
            try:
                return await self._asked(endpoint, call)
            except Unavailable as error:
                if error.reason in moves.RETRIED:
                    raise
                because = error.reason
        raise _unreachable(self.region, because)

    async def cosign(self, request: wire.CosignRequest) -> wire.CosignReply:
        """Ask the peer, whose leader alone does it, for a cosignature. Raises the eight errors."""
        return wire.CosignReply.FromString(await self._leader_asked(COSIGN, request.SerializeToString()))

    async def adopt(self, request: wire.AdoptRequest) -> wire.AdoptReply:
        """Ask the peer, whose leader alone does it, to take a partition over, or not to. Raises the eight errors."""
        if self.disputed:
            raise _unreachable(self.region, "LINK_PAUSED")
        return wire.AdoptReply.FromString(await self._leader_asked(ADOPT, request.SerializeToString()))

    async def _leader_asked(self, method: str, request: bytes) -> bytes:
        if self.severed:
            raise _unreachable(self.region, SEVERED)
        deadline, because = self._node.clock() + _COSIGN_S, ""
        for endpoint in self.endpoints:
            if not await self._connected(endpoint, deadline):
                continue
            try:
                return await self.ways.ask(endpoint, method, request, _COSIGN_S)
            except Unavailable as error:
                because = error.reason
        raise _unreachable(self.region, because)

    async def _asked(self, endpoint: str, call: Call) -> bytes:
        remaining_s = call.deadline - self._node.clock()
        if remaining_s <= 0:
            raise Unavailable("no time is left to ask the partition's home", reason="DEADLINE")
        request = wire.ForwardRequest(
            method=call.method,
            request=call.request,
            on_behalf_of=call.actor,
            timeout_ms=max(1, int(remaining_s * 1000)),
            terms=packed(self.terms),
        )
        self.forwarded += 1
        try:
            encoded = await self.ways.ask(endpoint, FORWARD, request.SerializeToString(), remaining_s)
            return wire.ForwardReply.FromString(encoded).reply
        except ControlPlaneError as failure:
            if failure.reason == "CONNECTION_LOST":
                raise OutcomeUnknown(
                    f"the connection to {self.region} broke before it had answered",
                    reason=failure.reason,
                    hint="ask again with the same request id",
                ) from failure
            raise
        except DecodeError:
            raise OutcomeUnknown(
                f"the answer of {self.region} cannot be read", reason="FORWARD_BROKEN", hint="ask again"
            ) from None

    async def _connected(self, endpoint: str, deadline: float) -> bool:
        """Whether the connection stands, after a moment's wait. False: a call was certainly never sent.

        Nobody waits for a region that is not heard of at all.
        """
        wait_s = min(_CONNECT_S, deadline - self._node.clock())
        return await self.ways.reached(endpoint, wait_s, patient=bool(self._live))


class Links:
    """All links of a node, by region."""

    def __init__(self, config: RegionConfig, node: Node, ways: Ways) -> None:
        self._node, self._ways = node, ways
        self._links = {peer.region: Link(node, peer, ways) for peer in config.peers}

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links.values())

    def get(self, region: str) -> Link | None:
        """The link with `region`, if it is a peer."""
        return self._links.get(region)

    def sever(self, regions: Collection[str]) -> None:
        """In a drill: let nothing pass between this node and these regions, and everything with the others."""
        for link in self:
            link.sever(severed=link.region in regions)

    def admit(self, region: str) -> None:
        """Let a node of `region` in. Raises `Unavailable` while a drill cuts it off."""
        link = self._links.get(region)
        if link is not None and link.severed:
            raise Unavailable("a drill cut the two regions off from each other", reason=SEVERED)

    async def cosign(self, region: str, request: wire.CosignRequest) -> wire.CosignReply:
        """Ask `region` for a cosignature. Raises the eight errors."""
        link = self._links.get(region)
        if link is None:
            raise _unreachable(region, "PEER_UNKNOWN")
        return await link.cosign(request)

    async def forward(self, call: Call, home: str) -> bytes:
        """Have `home` answer a call of this region's caller; the encoded reply, as the home made it.

        Raises what the home raised; `Unavailable` (HOME_UNREACHABLE, LINK_PAUSED) if it certainly never heard of the
        call, `OutcomeUnknown` if that cannot be said.
        """
        link = self._links.get(home)
        if link is None:
            # Copies of its records stay in the store when the region file does not name it any more.
            raise _unreachable(home, "PEER_UNKNOWN")
        return await link.forward(call)

    async def close(self) -> None:
        """Hang up everywhere."""
        await self._ways.close()

    def report(self) -> list[api.Link]:
        """Every link, for `GetStatus`."""
        views: dict[str, list[api.View]] = {}
        for cursor, age_ms in self._node.views():
            view = api.View(reach=cursor.reach, revision=cursor.revision, age_ms=age_ms, listing=cursor.listing)
            views.setdefault(cursor.peer, []).append(view)
        own = leads(self._node)
        return [_reported(link, views.get(link.region, []), own=own) for link in self]


def _reported(link: Link, views: list[api.View], *, own: bool) -> api.Link:
    if own:
        state, reason = link.state
    elif any(view.age_ms < _FRESH_MS for view in views):
        state, reason = "up", ""
    else:
        state, reason = "down", "nothing fresh was copied from there; the leader knows why"
    return api.Link(
        region=link.region,
        jurisdiction=link.jurisdiction,
        state=state,
        reason=reason,
        views=views,
        exported=link.exported,
    )


def leads(node: Node) -> bool:
    """Whether `node` may plan now."""
    try:
        return node.log.status().ready
    except Unavailable:
        return False


def _unreachable(region: str, because: str) -> Unavailable:
    if because == "LINK_PAUSED":
        return Unavailable(
            f"this region and {region} disagree about the map of regions, so nothing passes between them",
            reason=because,
            hint="cpctl status says about what",
        )
    return Unavailable(
        f"no node of {region}, the partition's home, can answer",
        reason="HOME_UNREACHABLE",
        hint="copies can be read with consistency LOCAL; cpctl status shows the links",
        because=because or "NO_CONNECTION",
    )
