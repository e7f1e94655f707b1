"""PURE. The drills there are: what each of them does to a region of this shape, step by step, and what it must show.

A plan is made from who leads and who follows. It names nodes, so it holds only while that leader leads: whoever runs
it makes it anew right before the first fault.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from controlplane import limits
from controlplane.drills import abroad
from controlplane.drills.faults import Kind
from controlplane.errors import Invalid

VERSION: Final = 4
"""Of the set of drills; a record says which one it was made with."""

CALM_S: Final = 3.0
"""How long clients work before the first fault and after the last, if nothing is said."""
OVERLAP_MS: Final = 10_000
"""A region that lost more than it can bear must serve this long after it got it back."""
BEHIND_BYTES: Final = 256 * 1024
"""How far the rejoining node is left behind: past the engine's window of 64 KiB."""
PAST_COMPACTION_BYTES: Final = 40 << 20
"""The same, past what the others keep of their logs: it can only rejoin by a snapshot."""


MOVED_S: Final = 2.0
"""How long clients work on after each move of a home."""
FENCING_DOWN_S: Final = 8.0
"""A paused holder's lease has to end and pass on before it goes on."""


class Until(Enum):
    """What a step waits for, after its faults have had their time."""

    NOTHING = "nothing"
    WELL = "every node answers, agrees on the leader and has caught up"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan is made from."""

    leader: str
    nodes: tuple[str, ...]
    regions: tuple[str, ...] = ()
    """The regions that this one has links with."""
    there: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Other regions in which an operator takes part, with their nodes."""

    @property
    def followers(self) -> tuple[str, ...]:
        """The nodes that do not lead."""
        return tuple(node for node in self.nodes if node != self.leader)

    @property
    def majority(self) -> int:
        """How many nodes decide."""
        return len(self.nodes) // 2 + 1


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose; None: what the drill does if nothing is said."""

    down_s: float | None = None
    calm_s: float = CALM_S
    past_compaction: bool = False
    kill_switch: bool = False
    regions: tuple[str, ...] = ()
    """The regions to be cut off from; empty: all."""
    copied: str = ""
    """A partition at home in the region to be lost, of which there is a copy here."""
    pause_there: bool = False
    """Whether the nodes of the region to be lost are paused, by an operator there."""
    moved: str = ""
    """A partition at home here, whose home is to be moved."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault at one node."""

    node: str
    kind: Kind
    duration_ms: int
    delay_ms: int = 0
    regions: tuple[str, ...] = ()
    at: str = ""
    """The region of the node; empty: this one."""

    @property
    def says(self) -> str:
        """The fault in words."""
        away = f" from {', '.join(self.regions)}" if self.regions else ""
        node = f"{self.node} of {self.at}" if self.at else self.node
        return f"{_DOES[self.kind]} {node}{away} for {self.duration_ms / 1000:g} s"


@dataclass(frozen=True, slots=True)
class Step:
    """Faults that strike at one moment, how long clients work on, and what is waited for then."""

    says: str
    load_s: float
    strikes: tuple[Strike, ...] = ()
    until: Until = Until.NOTHING
    more_s: float = 0.0
    """How long clients work on after that."""
    bulk_bytes: int = 0
    """Bytes that are written through the nodes that are not struck, while the faults last."""
    move: str = ""
    """`abroad.AWAY` or `abroad.BACK`: a home is moved, instead of faults."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One drill in one region."""

    scenario: str
    title: str
    blast: tuple[str, ...]
    steps: tuple[Step, ...]
    rto_target_ms: int
    silence_ms_max: int
    """Stop condition: no write was acknowledged for so long, through any node."""
    unknown_percent_max: int = 5
    fencing: bool = False
    """The lease of a holder behind the leader must pass on, and its old fence be refused."""
    replaced: str = ""
    """The node that must not vote before it has caught up."""
    rejoins: str = ""
    """The node that must come back from a log of its own."""
    by_snapshot: bool = False
    """It can only do so by a snapshot."""
    kill_switch: bool = False
    cut_off: tuple[str, ...] = ()
    """Regions with which nothing passes meanwhile, and of which the copies must catch up."""
    isolated: bool = False
    """They are all there are: the region must say that it is alone."""
    about: str = ""
    """What else has to be shown of several regions: `abroad.STOPS`, `abroad.LOSS` or `abroad.MOVE`."""
    apart: tuple[str, ...] = ()
    """Nodes that are cut off from their own region as well."""
    there: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Other regions in which an operator takes part, with their nodes."""
    to: str = ""
    """The region that a home is moved to, and back from."""
    pause_ms_max: int = 0
    """Stop condition: somebody's writes pause for so long while a home is moved."""

    @property
    def struck(self) -> frozenset[str]:
        """The nodes that are harmed. One that is only cut off from other regions goes on as before."""
        strikes = (strike for step in self.steps for strike in step.strikes if not strike.at)
        return frozenset(strike.node for strike in strikes if strike.kind is not Kind.CUT_REGION)

    @property
    def struck_there(self) -> frozenset[str]:
        """The regions of which nodes are harmed."""
        return frozenset(strike.at for step in self.steps for strike in step.strikes if strike.at)

    @property
    def cut_ms(self) -> int:
        """How long other regions are cut off."""
        strikes = (strike for step in self.steps for strike in step.strikes if strike.kind is Kind.CUT_REGION)
        return max((strike.duration_ms for strike in strikes), default=0)

    @property
    def seconds(self) -> float:
        """How long the steps take at least."""
        return sum(step.load_s + step.more_s for step in self.steps)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A drill by name."""

    name: str
    title: str
    down_s: float
    make: Callable[[Facts, Options, float], Plan]
    nodes_min: int = 3
    """A region needs so many nodes to survive it."""


def plan(name: str, facts: Facts, options: Options = Options()) -> Plan:
    """Plan the drill `name` for a region of this shape. Raises `Invalid` saying which drills, or nodes, there are."""
    scenario = SCENARIOS.get(name)
    if scenario is None:
        raise Invalid(f"there is no drill {name!r}", reason="DRILL_UNKNOWN", hint="cpctl drill list")
    if len(facts.nodes) < scenario.nodes_min:
        raise Invalid("a region of one node survives no fault", reason="REGION_TOO_SMALL", hint="drill three or five")
    down_s = scenario.down_s if options.down_s is None else options.down_s
    made = _framed(scenario.make(facts, options, down_s), options.calm_s)
    if any(strike.duration_ms > limits.FAULT_MS_MAX for step in made.steps for strike in step.strikes):
        raise Invalid(f"no fault lasts longer than {limits.FAULT_MS_MAX // 1000} s", reason="OUT_OF_RANGE")
    if made.fencing and down_s < FENCING_DOWN_S:
        raise Invalid(f"a lease needs {FENCING_DOWN_S:g} s to pass on", reason="OUT_OF_RANGE", hint="--down 10")
    if facts.there and not made.about:
        raise Invalid("no other region takes part in this drill", reason="PEER_UNKNOWN", hint="leave out --there")
    return replace(made, kill_switch=options.kill_switch or made.kill_switch, there=facts.there)


def _framed(made: Plan, calm_s: float) -> Plan:
    before, after = Step("clients work undisturbed", calm_s), Step("clients work undisturbed again", calm_s)
    return replace(made, steps=(before, *made.steps, after))


def _hit(says: str, *strikes: Strike, more_s: float = 0.0, bulk_bytes: int = 0) -> Step:
    longest_s = max(strike.duration_ms for strike in strikes) / 1000
    return Step(says, longest_s, strikes, Until.WELL, more_s, bulk_bytes)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _one_down(node: str) -> str:
    return f"{node} does not serve; clients connected to it go elsewhere"


def _kill_leader(facts: Facts, _: Options, down_s: float) -> Plan:
    strike = Strike(facts.leader, Kind.KILL, _ms(down_s))
    return Plan(
        "kill-leader",
        "The leader's process is killed",
        (_one_down(facts.leader), "no write succeeds until another leader is elected, usually within a second"),
        (_hit("the leader is killed, and started again by its supervisor", strike),),
        rto_target_ms=2_000,
        silence_ms_max=OVERLAP_MS,
    )


def _isolate_leader(facts: Facts, _: Options, down_s: float) -> Plan:
    strike = Strike(facts.leader, Kind.CUT, _ms(down_s))
    return Plan(
        "isolate-leader",
        "The leader is cut off from its peers while clients write on both sides",
        (
            f"{facts.leader} answers clients, but can commit nothing; its clients hear Unavailable or OutcomeUnknown",
            "no write succeeds until the others have elected another leader",
        ),
        (_hit("the leader's links are cut in both directions", strike),),
        rto_target_ms=2_000,
        silence_ms_max=OVERLAP_MS,
    )


def _one_way_loss(facts: Facts, _: Options, down_s: float) -> Plan:
    out = Strike(facts.leader, Kind.CUT_OUT, _ms(down_s))
    back = Strike(facts.leader, Kind.CUT_IN, _ms(down_s))
    return Plan(
        "one-way-loss",
        "Messages get lost in one direction only: from the leader, then to it when it has become a follower",
        (
            f"{facts.leader} is not heard by its peers and another leader is elected",
            f"{facts.leader} hears nothing then, falls behind and must not disturb the others",
        ),
        (
            _hit("what the leader sends is lost", out),
            _hit(f"what is sent to {facts.leader} is lost", back),
        ),
        rto_target_ms=2_000,
        silence_ms_max=OVERLAP_MS,
    )


def _pause_leader(facts: Facts, _: Options, down_s: float) -> Plan:
    strike = Strike(facts.leader, Kind.PAUSE, _ms(down_s))
    return Plan(
        "pause-leader",
        "The leader is paused with a lease holder behind it; when both go on, the old fence must be refused",
        (
            _one_down(facts.leader),
            "its connections stay open and silent: clients notice by their own patience",
            "the holder of the drill's lease loses it to a rival",
        ),
        (_hit("the leader's process is stopped, and continued by its supervisor", strike, more_s=2.0),),
        rto_target_ms=3_000,
        silence_ms_max=OVERLAP_MS,
        fencing=True,
    )


def _majority_loss(facts: Facts, _: Options, down_s: float) -> Plan:
    lost = (facts.leader, *facts.followers)[: facts.majority]
    strikes = tuple(Strike(node, Kind.KILL, _ms(down_s)) for node in lost)
    return Plan(
        "majority-loss",
        "A majority of the nodes is killed at once, the leader among them, and comes back",
        (
            f"{', '.join(lost)} do not serve",
            f"NO WRITE AND NO LINEARIZABLE READ SUCCEEDS for about {down_s:g} s, in the whole region",
            "agents go on with their mirrors: configuration as last known, permission for 5 s",
        ),
        (_hit("a majority is killed, and started again by the supervisors", *strikes),),
        rto_target_ms=_ms(down_s) + OVERLAP_MS,
        silence_ms_max=_ms(down_s) + 3 * OVERLAP_MS,
        # For a good part of the time nobody can be told anything, and nobody writes much.
        unknown_percent_max=15,
    )


def _rolling_restart(facts: Facts, _: Options, down_s: float) -> Plan:
    return Plan(
        "rolling-restart",
        "Every node is restarted in turn, the leader last, while clients work",
        tuple(f"{node} drains, is down for about {down_s:g} s, and comes back" for node in facts.nodes),
        tuple(
            _hit(f"{node} is drained and started again", Strike(node, Kind.RESTART, _ms(down_s)))
            for node in (*facts.followers, facts.leader)
        ),
        rto_target_ms=1_000,
        silence_ms_max=OVERLAP_MS,
    )


def _replace_node(facts: Facts, _: Options, down_s: float) -> Plan:
    node = facts.followers[-1]
    return Plan(
        "replace-node",
        "A node loses its disk and comes back with an empty one: no vote before it has caught up",
        (
            _one_down(node),
            f"the data folder of {node} is put aside, not deleted: remove it afterwards",
            "until it has caught up, the region survives one loss less",
        ),
        (_hit("the node is killed and comes back with --replace", Strike(node, Kind.REPLACE, _ms(down_s))),),
        rto_target_ms=1_000,
        silence_ms_max=OVERLAP_MS,
        replaced=node,
    )


def _divergent_rejoin(facts: Facts, options: Options, down_s: float) -> Plan:
    behind = PAST_COMPACTION_BYTES if options.past_compaction else BEHIND_BYTES
    said = f"{behind >> 20} MiB, past what is kept of the log" if options.past_compaction else f"{behind >> 10} KiB"
    strike = Strike(facts.leader, Kind.CUT, _ms(down_s))
    return Plan(
        "divergent-rejoin",
        f"The leader is cut off with entries of its own, left behind by {said}, and rejoins",
        (
            f"{facts.leader} answers clients, but can commit nothing; what it took alone is discarded when it rejoins",
            f"{said} are written to the drill's own workflow, whose history stays in the store",
        ),
        (_hit("the leader's links are cut, and the others go on", strike, bulk_bytes=behind),),
        rto_target_ms=2_000,
        silence_ms_max=OVERLAP_MS,
        rejoins=facts.leader,
        by_snapshot=options.past_compaction,
    )


def _kill_switch(facts: Facts, options: Options, down_s: float) -> Plan:
    made = _isolate_leader(facts, options, down_s)
    return replace(
        made,
        scenario="kill-switch",
        title="A kill switch is thrown while the leader is cut off; it must hold everywhere",
        kill_switch=True,
    )


def _region_cut(facts: Facts, options: Options, down_s: float) -> Plan:
    regions = _cut_off_from(facts, options)
    away, isolated = ", ".join(regions), set(regions) == set(facts.regions)
    return Plan(
        "region-cut",
        f"The region is cut off from {away}, and goes on with its own work",
        (
            "nothing breaks inside the region: its own reads and writes go on",
            *_apart_from(away),
            f"a kill switch that is thrown meanwhile does not reach the other side for up to {down_s:g} s",
            *(["the region is in isolated mode, and says so"] if isolated else []),
        ),
        (_hit(f"nothing passes between the region and {away}", *_cut_region(facts, regions, down_s)),),
        rto_target_ms=1_000,
        silence_ms_max=OVERLAP_MS,
        cut_off=regions,
        isolated=isolated,
    )


def _kill_under_partition(facts: Facts, options: Options, down_s: float) -> Plan:
    regions, there = _cut_off_from(facts, options), [region for region, _ in facts.there]
    _check_part(there, regions)
    away, isolated = ", ".join(regions), set(regions) == set(facts.regions)
    # With three, one of them can be spared: the others are a majority.
    apart = facts.followers[-1:] if len(facts.nodes) > 2 else ()
    unseen = sorted(set(regions) - set(there))
    return Plan(
        "kill-under-partition",
        f"Kill switches are thrown while the region cannot talk with {away}",
        (
            *_apart_from(away),
            *(f"{node} is cut off from its own region too: its clients hear Unavailable" for node in apart),
            *(f"agents at {node} that ask before they act stop by themselves within 5 s" for node in apart),
            f"what is stopped is the drill's own tenant, here{_and(there)}: nobody else's work",
            *(f"nothing is thrown or looked at in {region}: that side is NOT CHECKED" for region in unseen),
            *(["the region is in isolated mode, and says so"] if isolated else []),
        ),
        (
            _hit(
                f"nothing passes between the region and {away}",
                *_cut_region(facts, regions, down_s),
                *(Strike(node, Kind.CUT, _ms(down_s)) for node in apart),
            ),
        ),
        rto_target_ms=2_000,
        silence_ms_max=OVERLAP_MS,
        cut_off=regions,
        isolated=isolated,
        about=abroad.STOPS,
        apart=apart,
    )


def _region_loss(facts: Facts, options: Options, down_s: float) -> Plan:
    regions = _cut_off_from(facts, options)
    if len(regions) > 1:
        raise Invalid(f"which of {', '.join(regions)} is to be lost?", reason="PEER_UNKNOWN", hint="--peer REGION")
    (lost,) = regions
    _check_part([region for region, _ in facts.there], regions)
    if options.copied and not options.copied.startswith(f"{lost}."):
        raise Invalid(f"{options.copied} is not at home in {lost}", reason="PARTITION_FOREIGN", hint="--copy PARTITION")
    paused = [node for region, nodes in facts.there if region == lost and options.pause_there for node in nodes]
    if options.pause_there and not paused:
        raise Invalid(f"no operator of {lost} takes part", reason="PEER_UNKNOWN", hint="--there CONTEXT")
    return Plan(
        "region-loss",
        f"{lost} is lost, as seen from here; the region goes on, and catches up when it is back",
        (
            "nothing breaks inside the region: its own reads, writes, elections and kill switches go on",
            *_apart_from(lost),
            *(
                [f"IN {lost} NO CALL OF ANYBODY IS ANSWERED for about {down_s:g} s: its nodes are paused"]
                if paused
                else []
            ),
            *([] if paused or not facts.there else [f"{lost} itself goes on"]),
            *([f"the drill's own workflows are written to {options.copied}, as evidence"] if options.copied else []),
        ),
        (
            _hit(
                f"nothing passes between the region and {lost}",
                *_cut_region(facts, regions, down_s),
                *(Strike(node, Kind.PAUSE, _ms(down_s), at=lost) for node in paused),
            ),
        ),
        rto_target_ms=1_000,
        silence_ms_max=OVERLAP_MS,
        kill_switch=True,
        cut_off=regions,
        isolated=set(regions) == set(facts.regions),
        about=abroad.LOSS,
    )


def _move_home(facts: Facts, options: Options, down_s: float) -> Plan:
    there, moved = [region for region, _ in facts.there], options.moved
    if not moved:
        raise Invalid("which partition is to be moved?", reason="PARTITION_MISSING", hint="--move PARTITION")
    if options.kill_switch:
        raise Invalid(
            "no kill switch is thrown in this drill", reason="OUT_OF_RANGE", hint="without --with-kill-switch"
        )
    targets = _cut_off_from(facts, options) if options.regions else tuple(there)
    if len(targets) > 1:
        raise Invalid(f"to which of {', '.join(targets)}?", reason="PEER_UNKNOWN", hint="--peer REGION")
    if not set(targets) & set(there):
        # Where a home is, it has to be asked back: nobody else could do that.
        raise Invalid("no operator takes part where it is moved to", reason="PEER_UNKNOWN", hint="--there CONTEXT")
    _check_part(there, facts.regions)
    (to,) = targets
    unseen = sorted(set(facts.regions) - set(there))
    return Plan(
        "move-home",
        f"The home of {moved} is moved to {to} while clients write to it, and back again",
        (
            f"WRITES AND LINEARIZABLE READS OF {moved} PAUSE twice, for everybody, for as long as its records are "
            f"taken over; after {down_s:g} s the move is called off, or undone",
            f"meanwhile {to} is its home: who wrote what, and why, lies there; what is held under its leases has to be "
            "campaigned for again",
            "who wrote a record before, and its history, can no longer be asked for afterwards",
            f"its epoch is two higher afterwards, and these are two of the {limits.HOMES_MAX} moves that it can have",
            f"if the program that runs this drill dies, {moved} stays where it is, and works there",
            f"the drill's own workflows are written to {moved}, as evidence",
            *(f"nothing is written or read in {region}: that side is NOT CHECKED" for region in unseen),
        ),
        (
            Step(f"the home of {moved} is moved to {to}", MOVED_S, move=abroad.AWAY, until=Until.WELL),
            Step(f"the home of {moved} is moved back from {to}", MOVED_S, move=abroad.BACK, until=Until.WELL),
        ),
        rto_target_ms=1_000,
        silence_ms_max=OVERLAP_MS,
        about=abroad.MOVE,
        to=to,
        pause_ms_max=_ms(down_s),
    )


def _cut_off_from(facts: Facts, options: Options) -> tuple[str, ...]:
    """The regions that were chosen. Raises `Invalid`."""
    if not facts.regions:
        raise Invalid("this region has no links with others", reason="PEER_UNKNOWN", hint="cpctl status shows links")
    regions = tuple(sorted(set(options.regions or facts.regions)))
    if strangers := set(regions) - set(facts.regions):
        known = ", ".join(sorted(facts.regions))
        raise Invalid(
            f"there is no link with {', '.join(sorted(strangers))}; there are links with {known}", reason="PEER_UNKNOWN"
        )
    return regions


def _check_part(there: Sequence[str], regions: Collection[str]) -> None:
    if len({*there}) < len(there):
        raise Invalid("one region cannot take part twice", reason="PEER_UNKNOWN", hint="one --there for each region")
    if strangers := sorted(set(there) - set(regions)):
        raise Invalid(f"{', '.join(strangers)} takes no part in it", reason="PEER_UNKNOWN", hint="--peer REGION")


def _cut_region(facts: Facts, regions: tuple[str, ...], down_s: float) -> list[Strike]:
    return [Strike(node, Kind.CUT_REGION, _ms(down_s), regions=regions) for node in facts.nodes]


def _apart_from(away: str) -> tuple[str, ...]:
    return (
        f"what {away} and this region share is not copied; each side goes on with what it has, which grows old",
        f"calls for partitions at home in {away} fail, and so do theirs for partitions of this region",
    )


def _and(there: Iterable[str]) -> str:
    return "".join(f" and in {region}" for region in there)


_DOES: Final[Mapping[Kind, str]] = {
    Kind.KILL: "kill",
    Kind.RESTART: "drain and restart",
    Kind.PAUSE: "pause",
    Kind.REPLACE: "empty the disk of",
    Kind.CUT: "cut off",
    Kind.CUT_OUT: "lose what leaves",
    Kind.CUT_IN: "lose what reaches",
    Kind.DELAY: "slow the links of",
    Kind.CUT_REGION: "cut off",
    Kind.RESERVE: "reserve",
}

SCENARIOS: Final[Mapping[str, Scenario]] = {
    each.name: each
    for each in (
        Scenario("kill-leader", "kill the leader", 5.0, _kill_leader),
        Scenario("isolate-leader", "cut the leader off, with writers on both sides", 8.0, _isolate_leader),
        Scenario("one-way-loss", "lose messages in one direction", 6.0, _one_way_loss),
        Scenario("pause-leader", "pause the leader; the old fence is refused", 30.0, _pause_leader),
        Scenario("majority-loss", "lose a majority and get it back", 6.0, _majority_loss),
        Scenario("rolling-restart", "restart every node under load", 1.0, _rolling_restart),
        Scenario("replace-node", "replace a node's disk by an empty one", 1.0, _replace_node),
        Scenario("divergent-rejoin", "rejoin with a log that went another way", 10.0, _divergent_rejoin),
        Scenario("kill-switch", "throw a kill switch while the leader is cut off", 8.0, _kill_switch),
        Scenario("region-cut", "cut the region off from others", 8.0, _region_cut, nodes_min=1),
        Scenario(
            "kill-under-partition",
            "throw kill switches in regions that cannot talk with each other",
            12.0,
            _kill_under_partition,
            nodes_min=1,
        ),
        Scenario("region-loss", "lose another region, and get it back", 15.0, _region_loss, nodes_min=1),
        Scenario("move-home", "move a partition's home to another region and back", 10.0, _move_home, nodes_min=1),
    )
}
"""All drills, by name."""
