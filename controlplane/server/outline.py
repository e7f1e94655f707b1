"""Outlines: what people of other regions may see of a region, and how one is asked for.

An outline says whether a region is well, who leads it and since when, how far its nodes and its copies are behind, and
how many kill switches are engaged, under their opaque ids. It is put together by the region that it is about, on its
leader, and written down there as something that left (`federation.doors`), like any other answer.

1. An outline is made field by field from what the region's own operators see. `SHOWN` and `HELD_BACK` name every field
   of that; one that is in neither, because it is new, is not shown, and a test fails until somebody decides.
2. It belongs to no partition and is the same for all regions, so it is of reach `global`: it goes to a region for which
   the operators let `global` leave, and to no other.
3. Kill switches are told as far as `stop` partitions may be read from there: where nothing may cross borders about
   them, neither their number nor an id does. The environment is a wall as everywhere.
4. Who asks for one asks a node of their own region, which has the other region answer, and adds what it knows itself:
   if the other cannot be asked, that is all there is, and the answer says so.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from controlplane import limits
from controlplane.errors import Denied, NotFound, OutcomeUnknown, Unavailable
from controlplane.features import switches
from controlplane.federation import Federation
from controlplane.geography import check_read
from controlplane.node import Call, Node
from controlplane.server.region import RegionView
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import GLOBAL, Partition, Reach

OUTLINE: Final = "GetOutline"

SHOWN: Final = frozenset(
    {
        "header.age_ms",
        "header.revision",
        "last",
        "links.region",
        "links.state",
        "links.views.age_ms",
        "links.views.listing",
        "links.views.reach",
        "members.connected",
        "members.match",
        "members.name",
        "region.jurisdiction",
        "region.leader",
        "region.leader_age_ms",
        "region.name",
    }
)
"""Fields of `GetStatusReply` that an outline is made from."""

HELD_BACK: Final = frozenset(
    {
        "applied",
        "commit",
        "disk_free_bytes",
        "erasures.due",
        "erasures.pending",
        "erasures.scrubbed",
        "hash",
        "header.break_glass",
        "header.epoch",
        "header.node",
        "header.region",
        "links.exported",
        "links.jurisdiction",
        # It can quote what both sides hold true, and what went wrong inside.
        "links.reason",
        # The count of another region's writes is that region's to show.
        "links.views.revision",
        "live_bytes",
        "members.address",
        "members.heard_ms",
        "members.state",
        "node",
        "quota_bytes",
        "records",
        "region.fleet",
        "region.leader_address",
        "region.term",
        "role",
        "uptime_ms",
        "version",
        "watchers",
    }
)
"""Fields of `GetStatusReply` that stay with the region's own operators."""

_ASK_S = 3.0
"""How long another region is waited for: who looks after regions in trouble wants to hear that one is."""


def outline(status: api.GetStatusReply) -> api.Outline:
    """What of a region's status other regions may see. Pure; kill switches are for the caller to add."""
    about, members = status.region, status.members
    return api.Outline(
        region=about.name,
        jurisdiction=about.jurisdiction,
        leader=about.leader,
        leader_age_ms=about.leader_age_ms,
        revision=status.header.revision,
        age_ms=status.header.age_ms,
        nodes=[_node(each, status.last) for each in members],
        quorum=sum(each.connected for each in members) * 2 > len(members),
        links=[_link(each) for each in status.links],
        isolated=bool(status.links) and all(each.state == "down" for each in status.links),
    )


def _node(member: api.Member, last: int) -> api.OutlineNode:
    # Only a leader knows how far the others are.
    behind = max(0, last - member.match) if member.match else None
    return api.OutlineNode(name=member.name, up=member.connected, behind=behind)


def _link(link: api.Link) -> api.OutlineLink:
    copies = [api.OutlineCopy(reach=view.reach, age_ms=view.age_ms, listing=view.listing) for view in link.views]
    return api.OutlineLink(region=link.region, state=link.state, copies=copies)


class Outlines:
    """Answers GetOutline: of this region, and by way of others of them."""

    def __init__(self, node: Node, region: RegionView, federation: Federation | None) -> None:
        self._node, self._region, self._federation = node, region, federation

    async def ask(self, call: Call) -> bytes:
        """Answer a caller of this region. Raises `Invalid`, `NotFound` (REGION_UNKNOWN), or what the other raised."""
        wanted = call.read(api.GetOutlineRequest).region
        if wanted in ("", self._node.region):
            return self._own(call).SerializeToString()
        link = self._link_with(wanted)
        if self._federation is None or link is None:
            raise NotFound(
                "no peer of this region has that name",
                reason="REGION_UNKNOWN",
                hint="cpctl status lists them",
            )
        brief = call._replace(deadline=min(call.deadline, self._node.clock() + _ASK_S))
        try:
            reply = api.GetOutlineReply.FromString(await self._federation.links.forward(brief, wanted))
        except (Unavailable, OutcomeUnknown) as error:
            reply = api.GetOutlineReply(unreachable=error.details.get("because", error.reason))
            reply.header.CopyFrom(self._region.header())
        except DecodeError:
            raise Unavailable(f"the answer of {wanted} cannot be read", reason="FORWARD_BROKEN") from None
        # Only now: what was heard meanwhile counts.
        reply.link.CopyFrom(self._link_with(wanted) or link)
        return reply.SerializeToString()

    async def tell(self, call: Call) -> bytes:
        """Answer a caller of another region, on the leader. Raises `Denied` or `Invalid`."""
        wanted = call.read(api.GetOutlineRequest).region
        check_read(self._node.atlas, self._as_partition(call), call.region, call.environment)
        if wanted != self._node.region:
            raise Denied("a region tells of itself alone", reason="NOT_AT_HOME")
        return self._own(call).SerializeToString()

    def reach_of(self, call: Call) -> Reach:
        """The reach that an outline for this caller is written down with: the narrowest of what is in it."""
        stops = self._stops_for(call)
        return GLOBAL if stops is None else stops.reach

    def _own(self, call: Call) -> api.GetOutlineReply:
        reply = api.GetOutlineReply(header=self._region.header(), outline=outline(self._region.status()))
        stops = self._stops_for(call)
        if stops is None:
            return reply
        told = reply.outline
        told.stops_told = True
        told.stop_ids.extend(self._node.engaged.stops(stops)[: limits.PAGE_MAX])
        if thrown := self._default(call.environment, switches.SWITCH.name):
            told.switches_engaged = len(self._node.engaged.switches(thrown))
        return reply

    def _stops_for(self, call: Call) -> Partition | None:
        """The partition that tells others of kill switches, if it may tell the caller's region."""
        stops = self._default(call.environment, switches.STOP.name)
        if stops is None:
            return None
        try:
            check_read(self._node.atlas, stops, call.region or self._node.region, call.environment)
        except Denied:
            return None
        return stops

    def _default(self, environment: str, kind: str) -> Partition | None:
        # What was moved here is the default where it came from.
        every = self._node.places.declared.values()
        usual = next((p.id for p in every if p.environment == environment and kind in p.default_for), "")
        return self._node.partitions.get(usual)

    def _as_partition(self, call: Call) -> Partition:
        """What an outline is treated as: something of this region that may be anywhere."""
        return Partition(home=self._node.region, reach=GLOBAL, environment=call.environment)

    def _link_with(self, region: str) -> api.Link | None:
        if self._federation is None:
            return None
        return next((link for link in self._federation.links.report() if link.region == region), None)
