"""Who may see and write what, when regions under different laws know each other. Pure.

Theory of operation. A partition has a home and a reach; the law of its reach says in which regions its records may be
at all. The operators of each region say in its file, for every peer, which reaches may leave for it: that can only
take away from the law, never add to it. An `Atlas` holds both, as one region knows them. Every door of a node asks the
same two questions of it: what may be copied to a peer (`exported`), and may this caller see (`check_read`), without
which nobody may write either. When a link between two regions opens, each side says what it holds true (`terms`), and
both compute from the two statements what the link carries (`agreement`). An atlas is read from a file at start and
never changes, so a restart decides as before.

The rules:

1.  The default is no: a region that the map does not name, a reach that was not declared, an environment that does not
    exist, and a peer for which the file lists nothing get nothing.
2.  The law. `HOME_ONLY`: the home and nobody else. `JURISDICTION`: regions of the home's jurisdiction. `GLOBAL`: every
    region of the map. Home and region must both be in the map, except that a region always knows itself.
3.  An environment is a wall: a caller of one sees and writes nothing of another, wherever.
4.  Seen is gone: what a caller of another region is shown has left for that region. So a read needs what a copy needs:
    the law for the caller's region and also for the region that answers (the record passes through it), and that the
    operators let this reach leave for the caller's region.
5.  Only the home passes a partition on. A region that holds a copy shows it to its own callers and to those of the
    home; others have to ask the home, whose operators decided whether they may.
6.  Who may not read may not write: answers, conflicts and refusals tell what is there. So a write is forwarded only by
    a region whose callers may read the partition.
7.  A link carries only what both sides hold to be true. It is paused as long as the two differ about who they are, in
    which jurisdiction either lies, or whether they are peers; no other link is. The reasons are one text on both sides.
8.  While the jurisdictions are changed file by file, a link carries nothing that the old or the new ones would not let
    it carry: the first file that differs about either end pauses it. If only other regions moved, `same_map` is false
    and the link goes on: by rule 5 nothing that passes over it depends on them. What may leave is said by the sender
    alone, and holds from when its nodes have read it.
9.  What one side says less, the other side cannot add: with fewer regions, peers or reaches in either map, an agreement
    is the same or less.
10. Breaking the glass shows what rules 2 and 4 keep at home to a person of another region: only at the home, only if
    that region is on the map, and never across the wall of rule 3. Whom the operators let do so is not for this module
    (`server.glass`); who has not asked for it is denied as ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from controlplane.errors import Denied, Invalid
from controlplane.identity import ENVIRONMENTS, word_is_valid
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, JURISDICTION, Partition, Reach

SHARED: Final = (JURISDICTION, GLOBAL)
"""The reaches of what may leave its home at all, the narrower first."""

PINNED: Final = frozenset({"PARTITION_PINNED", "JURISDICTION_MISMATCH", "MAY_NOT_LEAVE"})
"""Why a read is denied that would be allowed if the partition reached further."""

_DECLARED = (HOME_ONLY, *SHARED)
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Atlas:
    """The map as one region knows it. It is not checked: what does not make sense is denied where it is asked for."""

    fleet: str
    region: str
    jurisdictions: Mapping[str, str]
    """Region → jurisdiction, for every region of the fleet, this one included."""
    may_leave: Mapping[str, frozenset[Reach]]
    """Peer → reaches of this region's partitions that its operators let leave for it. Its keys are the peers."""

    def knows(self, region: str) -> bool:
        """Whether the map names `region`; a region always knows itself."""
        return region == self.region or region in self.jurisdictions

    def digest(self) -> bytes:
        """A digest of the regions and jurisdictions, equal where two regions know the same ones."""
        lines = "".join(f"{region} {jurisdiction}\n" for region, jurisdiction in sorted(self.jurisdictions.items()))
        return hashlib.sha256(lines.encode()).digest()


@dataclass(frozen=True, slots=True)
class Terms:
    """What one side of a link holds true of both. Constructing one checks it; raises `Invalid` (TERMS_MALFORMED).

    The fields are those of the message `Terms` of `federation.proto`.
    """

    fleet: str
    region: str
    jurisdiction: str
    peer: str
    """The region that these terms are for."""
    peer_jurisdiction: str
    """Where the sender takes it to lie; empty if it is none of the sender's peers."""
    may_leave: tuple[Reach, ...]
    """Reaches of the sender's partitions that may leave for the peer."""
    map_digest: bytes

    def __post_init__(self) -> None:
        words = [self.fleet, self.region, self.jurisdiction, self.peer, self.peer_jurisdiction or "none"]
        _require(all(map(word_is_valid, words)), "names of fleet, regions and jurisdictions are lower-case words")
        _require(self.region != self.peer, "a region has no link with itself")
        _require(len(self.map_digest) == _DIGEST_BYTES, f"a digest has {_DIGEST_BYTES} bytes")
        allowed = shareable(self.jurisdiction, self.peer_jurisdiction) if self.peer_jurisdiction else ()
        in_order = tuple(reach for reach in allowed if reach in self.may_leave)
        _require(self.may_leave == in_order, "a reach may not leave there, or is not in order")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a link between `region` (this side) and `peer` carries. While it is `paused` that is nothing."""

    region: str
    peer: str
    sends: tuple[Reach, ...]
    """Reaches of this side's partitions that the peer may hold."""
    receives: tuple[Reach, ...]
    """Reaches of the peer's partitions that this side may hold."""
    pauses: tuple[str, ...]
    """Why it is paused: sentences, the same and in the same order on both sides. Empty: it is open."""
    same_map: bool
    """Whether both sides know the same regions in the same jurisdictions: if not, a change is under way."""

    @property
    def paused(self) -> bool:
        """Whether nothing may pass in either direction."""
        return bool(self.pauses)

    def mirrored(self) -> Self:
        """The same agreement as the other side has it."""
        return replace(self, region=self.peer, peer=self.region, sends=self.receives, receives=self.sends)


def shareable(one: str, other: str) -> tuple[Reach, ...]:
    """The reaches that the law lets pass between regions of two jurisdictions."""
    return SHARED if one == other else (GLOBAL,)


def lawful(atlas: Atlas, home: str, reach: Reach, region: str) -> bool:
    """Whether a record of a partition with this home and reach may be in `region` at all (rules 1 and 2)."""
    if region == home:
        return atlas.knows(region) and reach in _DECLARED
    one, other = atlas.jurisdictions.get(home), atlas.jurisdictions.get(region)
    return one is not None and other is not None and reach in shareable(one, other)


def exported(atlas: Atlas, peer: str) -> tuple[Reach, ...]:
    """The reaches of this region's partitions that `peer` may hold: by law, and as far as the operators let them go."""
    allowed = atlas.may_leave.get(peer, frozenset())
    return tuple(
        reach
        for reach in SHARED
        if peer != atlas.region and reach in allowed and lawful(atlas, atlas.region, reach, peer)
    )


def check_read(atlas: Atlas, partition: Partition, region: str, environment: str) -> None:
    """Return if a caller of `region` and `environment` may see records of `partition` here. Raises `Denied`.

    Reasons: REGION_UNKNOWN, REACH_UNDECLARED, ENVIRONMENT_MISMATCH, PARTITION_PINNED, JURISDICTION_MISMATCH,
    MAY_NOT_LEAVE, NOT_AT_HOME. Across regions, `region` is that of the forwarding node's certificate.
    """
    if not atlas.knows(region) or not atlas.knows(partition.home):
        raise Denied("the caller's region or the partition's home is not on this region's map", reason="REGION_UNKNOWN")
    if partition.reach not in _DECLARED:
        raise Denied("the partition has no declared reach", reason="REACH_UNDECLARED")
    if environment != partition.environment or environment not in ENVIRONMENTS:
        raise Denied("the partition belongs to another environment", reason="ENVIRONMENT_MISMATCH")
    for place in (region, atlas.region):
        if not lawful(atlas, partition.home, partition.reach, place):
            raise _outside(partition, place)
    if region in (atlas.region, partition.home):
        return
    if partition.home != atlas.region:
        raise Denied(
            f"only {partition.home}, its home, shows this partition to callers of {region}",
            reason="NOT_AT_HOME",
            hint=f"ask a node of {partition.home}",
        )
    if partition.reach not in exported(atlas, region):
        raise Denied(
            f"{atlas.region} lets nothing of reach {Reach.Name(partition.reach)} leave for {region}",
            reason="MAY_NOT_LEAVE",
            hint="`may_leave` of the peer in the region file says what may",
        )


def check_glass(atlas: Atlas, partition: Partition, region: str, environment: str) -> None:
    """Return if a caller of `region` may see records of `partition` here once the glass is broken (rule 10).

    Raises `Denied` with the reasons of `check_read`, but for those in `PINNED`, where this region is the home.
    """
    try:
        check_read(atlas, partition, region, environment)
    except Denied as denial:
        if denial.reason not in PINNED or partition.home != atlas.region:
            raise


def terms(atlas: Atlas, peer: str) -> Terms:
    """What this region holds true of itself and `peer`, for the peer to hear. Raises `Invalid` if it makes no sense."""
    known = peer in atlas.may_leave
    return Terms(
        fleet=atlas.fleet,
        region=atlas.region,
        jurisdiction=atlas.jurisdictions.get(atlas.region, ""),
        peer=peer,
        peer_jurisdiction=atlas.jurisdictions.get(peer, "") if known else "",
        may_leave=exported(atlas, peer),
        map_digest=atlas.digest(),
    )


def agreement(ours: Terms, theirs: Terms) -> Agreement:
    """What a link carries whose two sides have said `ours` and `theirs` (rules 7 to 9).

    Both sides come to the same: `agreement(theirs, ours) == agreement(ours, theirs).mirrored()`.
    """
    # In one order on both sides, so that operators who compare notes read the same sentences.
    one, other = sorted((ours, theirs), key=lambda side: (side.region, side.peer, side.fleet))
    pauses = tuple(_disputes(one, other))
    return Agreement(
        region=ours.region,
        peer=theirs.region,
        sends=() if pauses else ours.may_leave,
        receives=() if pauses else theirs.may_leave,
        pauses=pauses,
        same_map=ours.map_digest == theirs.map_digest,
    )


def _disputes(one: Terms, other: Terms) -> Iterator[str]:
    if one.fleet != other.fleet:
        yield f"{one.region} is of fleet {one.fleet}, {other.region} of fleet {other.fleet}"
    for side, answering in ((one, other), (other, one)):
        if side.peer != answering.region:
            yield f"{side.region} speaks to {side.peer}, but {answering.region} is there"
        elif not side.peer_jurisdiction:
            yield f"{side.region} does not have {side.peer} as a peer"
        elif side.peer_jurisdiction != answering.jurisdiction:
            yield (
                f"{side.region} has {side.peer} in jurisdiction {side.peer_jurisdiction},"
                f" {side.peer} has itself in {answering.jurisdiction}"
            )


def _outside(partition: Partition, region: str) -> Denied:
    if partition.reach == HOME_ONLY:
        return Denied(f"the partition does not leave {partition.home}", reason="PARTITION_PINNED")
    return Denied(
        f"the partition does not leave the jurisdiction of {partition.home}, and {region} lies outside",
        reason="JURISDICTION_MISMATCH",
    )


def _require(valid: bool, problem: str) -> None:
    if not valid:
        raise Invalid(f"terms that cannot be: {problem}", reason="TERMS_MALFORMED")
