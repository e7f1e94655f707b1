"""PURE. Whether a region is well enough to be broken on purpose, and whether it is well again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from controlplane import limits
from controlplane.drills.nodes import Look
from controlplane.drills.scenarios import Facts
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import drill_pb2

VIEW_AGE_MS_MAX: Final = 5_000
"""A copy that is older is not up to date: while all is well, its home says something every second."""
LAG_ENTRIES_MAX: Final = 1000
"""How far a follower may be behind a busy leader and still count as caught up before a drill."""


def facts(looks: Mapping[str, Look]) -> Facts | None:
    """Who leads and who follows, if everyone who answers names the same leader."""
    leaders = {look.status.region.leader for look in looks.values() if look.status is not None}
    leader = leaders.pop() if len(leaders) == 1 else ""
    if leader not in looks:
        return None
    return Facts(leader, tuple(looks), tuple(link.region for link in links(looks)))


def links(looks: Mapping[str, Look]) -> list[api.Link]:
    """What the leader knows of other regions; nothing while nobody says that it leads."""
    leading = (look.status for look in looks.values() if look.status is not None and look.status.role == "leader")
    newest = max(leading, key=lambda status: status.region.term, default=None)
    return [] if newest is None else list(newest.links)


def problems_between(looks: Mapping[str, Look], regions: Collection[str]) -> list[str]:
    """Every reason not to cut these regions off, in words: what is broken already shows nothing."""
    found = []
    for link in links(looks):
        old = [view for view in link.views if view.listing or view.age_ms > VIEW_AGE_MS_MAX]
        if link.region in regions and link.state != "up":
            found.append(f"the link with {link.region} is {link.state}: {link.reason}")
        elif link.region in regions and old:
            found.append(f"the copy of what {link.region} shares is not up to date")
    return found


def problems_of_move(places: Mapping[str, api.PartitionView], here: str) -> list[str]:
    """Every reason not to move a partition away from `here` and back, in words; `places` is what each region says."""
    home = places.get(here)
    if home is None:
        return []
    partition, found = home.partition, []
    if home.state in ("sealed", "adopting"):
        found.append(f"a move of {partition.id} is under way: cpctl partition show")
    elif home.state != "home":
        found.append(f"{partition.id} is at home in {partition.home}, not in {here}: drill it from there")
    if "stop" in partition.default_for:
        found.append(f"{partition.id} is for stops, which stay where they are thrown")
    if len(partition.former) + 2 > limits.HOMES_MAX:
        found.append(f"{partition.id} was moved {len(partition.former)} times, of {limits.HOMES_MAX} at most")
    for region, place in places.items():
        if place.quarantined:
            found.append(f"in {region} records of {partition.id} are in quarantine: cpctl partition quarantine")
        if region != here:
            same = (place.partition.home, place.partition.epoch) == (here, partition.epoch)
            if place.state != "copy" or not same:
                found.append(f"{region} does not see {partition.id} at home in {here}, with a copy that is whole")
    return found


def problems_there(region: str, looks: Mapping[str, Look], *, harmed: bool) -> list[str]:
    """Every reason not to have another region take part, in words; with `harmed` it is to be broken as well."""
    if not harmed:
        silent = (name for name, look in looks.items() if look.status is None)
        found = [f"{name} does not answer at {looks[name].address}" for name in silent]
    else:
        found = problems(looks, nodes_min=1)
    return [f"in {region or 'a region that was named'}: {each}" for each in found]


def caught_up(looks: Mapping[str, Look], regions: Collection[str], healed_ms_ago: int) -> bool:
    """Whether the copies of all that these regions share are of a moment after healing."""
    known = [link for link in links(looks) if link.region in regions]
    return len(known) == len(regions) and all(
        link.state == "up" and all(not view.listing and view.age_ms < healed_ms_ago for view in link.views)
        for link in known
    )


def problems(looks: Mapping[str, Look], drill: str = "", *, nodes_min: int = 3) -> list[str]:
    """Every reason not to begin a drill, in words; empty: the region is steady. `drill` may be reserved already."""
    found = [*_of_nodes(looks, nodes_min), *_of_drills(looks, drill)]
    if not found:
        found = [*_of_agreement(looks), *_of_lag(looks)]
    return found


def behind(looks: Mapping[str, Look], commit: int) -> list[str]:
    """The nodes that do not answer, know no leader, vote not yet, or have not applied entry `commit`."""
    return [
        name
        for name, look in looks.items()
        if look.status is None
        or not look.status.region.leader
        or look.status.applied < commit
        or (look.faults is not None and look.faults.standing not in ("", "member"))
    ]


def contradictions(looks: Iterable[Look]) -> list[str]:
    """Nodes with equal revision and another state: the worst that can be found."""
    hashes: dict[int, dict[str, str]] = {}
    for look in looks:
        if look.status is not None:
            hashes.setdefault(look.status.header.revision, {})[look.status.node] = look.status.hash
    return [
        f"{', '.join(sorted(nodes))} have another state at the same revision {revision}"
        for revision, nodes in hashes.items()
        if len(set(nodes.values())) > 1
    ]


def commit(looks: Mapping[str, Look]) -> int:
    """The newest entry that any node knows to be committed."""
    return max((look.status.commit for look in looks.values() if look.status is not None), default=0)


def _of_nodes(looks: Mapping[str, Look], nodes_min: int) -> Iterator[str]:
    if len(looks) < nodes_min:
        yield "the region has one node: it survives no fault"
    for name, look in looks.items():
        if look.denied:
            yield f"{name} denies: {look.denied}"
        elif look.status is None or look.faults is None:
            yield f"{name} does not answer at {look.address}"
        elif not look.faults.enabled:
            yield f"{name} was not started with --drills (DRILLS_OFF)"
        elif look.faults.standing != "member":
            yield f"{name} is no full member yet ({look.faults.standing})"


def _of_drills(looks: Mapping[str, Look], drill: str) -> Iterator[str]:
    for name, look in looks.items():
        for active in look.faults.faults if look.faults is not None else ():
            if active.fault.drill != drill:
                kind = drill_pb2.FaultKind.Name(active.fault.kind)
                yield f"{name} takes part in drill {active.fault.drill[:8]} of {active.actor} already ({kind})"


def _of_agreement(looks: Mapping[str, Look]) -> Iterator[str]:
    seen = {(look.status.region.leader, look.status.region.term) for look in looks.values() if look.status is not None}
    if len(seen) > 1 or not all(leader for leader, _ in seen):
        yield "the nodes do not agree on a leader: " + ", ".join(
            f"{leader or 'none'} in term {term}" for leader, term in sorted(seen)
        )
    versions = {look.status.version for look in looks.values() if look.status is not None}
    if len(versions) > 1:
        yield f"the nodes run different versions: {', '.join(sorted(versions))}"
    if len({look.faults.config_hash for look in looks.values() if look.faults is not None}) > 1:
        yield "the nodes were started with different region files"
    yield from contradictions(looks.values())


def _of_lag(looks: Mapping[str, Look]) -> Iterator[str]:
    newest = commit(looks)
    for name, look in looks.items():
        assert look.status is not None
        if newest - look.status.applied > LAG_ENTRIES_MAX:
            yield f"{name} is {newest - look.status.applied} entries behind"
        if look.status.region.leader == name:
            for member in look.status.members:
                if not member.connected:
                    yield f"the leader {name} is not connected to {member.name}"
