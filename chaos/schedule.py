"""A schedule: from one seed, the conditions of a run and a list of timed faults. Pure.

The same format serves every tier: a fault names what happens, when and for how long, and a `salt` from which whoever
carries it out draws its targets. Who leads is only known when the fault strikes.

A *profile* draws every kind of fault under its conditions. A *family* repeats one sequence that chance hardly finds,
with chance in its details, under conditions that suit it (`sim_families.py` carries it out).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from controlplane.replication.guard import Bounds, Timing

FAULTS = (
    "isolate-leader",
    "isolate-any",
    "halves",
    "majority-minority",
    "one-way-from",
    "one-way-to",
    "one-way-mixed",
    "bridge",
    "ring",
    "flap",
    "swizzle",
    "crash",
    "crash-silent",
    "crash-majority",
    "crash-all",
    "power-loss",
    "power-loss-all",
    "pause",
    "slow-link",
    "slow-disk",
    "disk-full",
    "bit-flip",
    "clock-rate",
    "transfer",
    "replace",
)
"""Every kind of fault; each must happen in a run that is large enough."""

# Faults stop this long before the end, so that the run can show that everything heals.
QUIET_S = 28.0
_ENTRY_BYTES_MAX = 8192


class Fault(NamedTuple):
    """One fault: `kind` strikes at `at_s` and lasts `for_s` (where that means something)."""

    at_s: float
    kind: str
    for_s: float
    salt: int


@dataclass(frozen=True, slots=True)
class Conditions:
    """What stays the same during a run. Delays are one-way seconds."""

    timing: Timing
    bounds: Bounds
    delay_s: float
    sync_s: tuple[float, float]  # How long the disk takes for one synced batch, least and most.
    retry_s: float  # Between attempts to connect.
    link_dead_s: float  # A link that heard nothing for this long is closed.
    trim_entries: int  # The log is trimmed when it is longer than this,
    keep_entries: int  # to this.
    snapshot_s: tuple[float, float]  # How long it takes to make or to install a snapshot.
    padding_bytes: int  # Size of a snapshot beyond its records.
    payload_bytes: tuple[int, ...]
    disorder: bool  # Messages overtake each other, come twice, get lost.
    duplicated: float = 0.05  # How many come twice under disorder.


@dataclass(frozen=True, slots=True)
class Schedule:
    """Everything that decides a run."""

    seed: int
    nodes: int
    seconds: float
    profile: str
    conditions: Conditions
    faults: tuple[Fault, ...]


class Family(NamedTuple):
    """A family of schedules: `kinds` strike one after the other, `gap_s` apart, under `shape(random, LAN)`."""

    nodes: int
    kinds: tuple[str, ...]
    gap_s: tuple[float, float]
    shape: Callable[[Random, Conditions], Conditions] = lambda _, lan: lan
    quiet_s: float = 14.0


LAN = Conditions(
    timing=Timing(0.15, 0.3, 0.03),
    bounds=Bounds(entry_bytes_max=_ENTRY_BYTES_MAX),
    delay_s=0.001,
    sync_s=(0.0002, 0.002),
    retry_s=0.2,
    link_dead_s=3.5,
    trim_entries=300,
    keep_entries=15,
    snapshot_s=(0.0, 0.01),
    padding_bytes=0,
    payload_bytes=(0, 40),
    disorder=False,
)
"""Fast links and disks; what families begin with."""

PROFILES = ("lan", "wan", "wild", "wan-wild", "calm")
FAMILIES: dict[str, Family] = {
    # What a region owes those who use it while little or nothing is wrong with it.
    "steady": Family(3, ("follower-away", "leader-dies", "leader-away"), (6.0, 8.0)),
    "stale-acks": Family(5, ("stale-acks",), (8.0, 10.0), lambda _, lan: replace(lan, link_dead_s=6.0)),
    "old-snapshots": Family(
        3,
        ("left-behind",),
        (3.0, 5.0),
        lambda random, lan: replace(
            lan,
            delay_s=random.choice((0.002, 0.01, 0.03)),
            timing=Timing(0.4, 1.4, 0.1),
            trim_entries=20,
            keep_entries=0,
            disorder=True,
            duplicated=0.3,
        ),
    ),
    "double-votes": Family(
        5,
        ("crash", "crash-silent", "crash-two", "isolate-leader", "halves"),
        (1.0, 3.0),
        lambda random, lan: replace(
            lan, delay_s=random.choice((0.005, 0.03)), timing=Timing(0.4, 1.4, 0.1), disorder=True, duplicated=0.5
        ),
    ),
    "old-answers": Family(
        3,
        ("old-answers",),
        (5.0, 7.0),
        lambda _, lan: replace(lan, timing=Timing(0.4, 1.4, 0.1), link_dead_s=6.0, disorder=True),
    ),
    "new-leaders": Family(3, ("read-at-once",), (2.0, 4.0), lambda _, lan: replace(lan, sync_s=(0.01, 0.1))),
    "lost-disk": Family(
        5,
        ("lost-disk",),
        (11.0, 13.0),
        lambda random, lan: replace(
            lan,
            timing=Timing(0.4, 1.4, 0.1),
            bounds=replace(lan.bounds, append_bytes_max=400, appends_in_flight_max=4),
            delay_s=random.choice((0.01, 0.02)),
            payload_bytes=(400,),
            trim_entries=10_000,
        ),
    ),
    "long-entries": Family(3, ("long-entry", "endless-entry"), (4.0, 6.0)),
    # These among all other faults.
    "long-mixed": Family(
        5,
        (*FAULTS, *("long-entry", "endless-entry") * 8),
        (0.5, 4.0),
        lambda random, _: _conditions(random, random.choice(("lan", "wild"))),
        QUIET_S,
    ),
    # All others among all other faults.
    "mixed": Family(
        5,
        (*FAULTS, "stale-acks", "left-behind", "crash-two", "old-answers", "read-at-once", "lost-disk"),
        (0.5, 4.0),
        lambda random, _: _conditions(random, random.choice(("lan", "wild"))),
        QUIET_S,
    ),
}


def make_schedule(seed: int, *, nodes: int, seconds: float = 60.0, profile: str = "lan") -> Schedule:
    """Draw a schedule of a profile or family; the same arguments give the same schedule anywhere."""
    random = Random(f"{seed}/{nodes}/{seconds}/{profile}")
    if family := FAMILIES.get(profile):
        conditions = family.shape(random, LAN)
        faults = tuple(_family_faults(random, family, seconds))
    elif profile in PROFILES:
        conditions = _conditions(random, profile)
        faults = () if profile == "calm" else tuple(_faults(random, seconds))
    else:
        raise ValueError(f"no profile {profile}; there are {', '.join((*PROFILES, *FAMILIES))}")
    return Schedule(seed, nodes, seconds, profile, conditions, faults)


def _family_faults(random: Random, family: Family, seconds: float) -> list[Fault]:
    faults = []
    at_s = random.uniform(2, 3)
    while at_s < seconds - family.quiet_s:
        faults.append(Fault(at_s, random.choice(family.kinds), random.uniform(1, 4), random.getrandbits(32)))
        at_s += random.uniform(*family.gap_s)
    return faults


def _conditions(random: Random, profile: str) -> Conditions:
    delay_s = random.choice((0.0005, 0.005, 0.05, 0.15) if "wan" in profile else (0.0005, 0.002, 0.01, 0.03))
    return Conditions(
        timing=_timing(random, delay_s),
        bounds=Bounds(
            append_bytes_max=random.choice((400, 1500, 65536)),
            # A window of a few small appends cannot carry the load over a long link.
            appends_in_flight_max=random.choice((16, 32) if "wan" in profile else (4, 16)),
            chunk_bytes=random.choice((256, 65536)),
            chunks_in_flight_max=8,
            held_bytes_max=random.choice((60_000, 1 << 28)),
            entry_bytes_max=_ENTRY_BYTES_MAX,
        ),
        delay_s=delay_s,
        sync_s=random.choice(((0.0, 0.0005), (0.001, 0.01), (0.005, 0.05), (0.0, 0.3))),
        retry_s=random.choice((0.2, 0.5)),
        link_dead_s=random.choice((1.0, 3.5)),
        trim_entries=random.choice((20, 60, 300)),
        keep_entries=random.choice((0, 3, 15)),
        snapshot_s=random.choice(((0.0, 0.01), (0.05, 1.0))),
        padding_bytes=random.choice((0, 2000)),
        payload_bytes=random.choice(((0,), (0, 40), (0, 40, 3000))),
        disorder="wild" in profile,
    )


def _timing(random: Random, delay_s: float) -> Timing:
    if delay_s > 0.1:
        return Timing(1.0, 2.0, 0.2)
    if delay_s > 0.01:
        return Timing(0.4, 1.4, 0.1)
    return random.choice((Timing(0.15, 0.3, 0.03), Timing(0.4, 1.4, 0.1)))


def _faults(random: Random, seconds: float) -> list[Fault]:
    faults = []
    at_s = random.uniform(1, 3)
    while at_s < seconds - QUIET_S:
        for_s = random.choice((random.uniform(0.3, 2.5), random.uniform(0.3, 2.5), random.uniform(2, 10)))
        faults.append(Fault(at_s, random.choice(FAULTS), for_s, random.getrandbits(32)))
        at_s += random.choice((random.uniform(0.1, 1), random.uniform(1, 5)))
    return faults
