"""A schedule: from one seed, the conditions of a run and a list of timed faults. Pure.

The same format serves every tier: a fault names what happens, when and for how long, and a `salt` from which whoever
carries it out draws its targets. Who leads is only known when the fault strikes.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    "clock-rate",
    "transfer",
    "replace",
)
"""Every kind of fault; each must happen in a run that is large enough."""

# Faults stop this long before the end, so that the run can show that everything heals.
QUIET_S = 28.0
PROFILES = ("lan", "wan", "wild", "wan-wild", "calm")


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


@dataclass(frozen=True, slots=True)
class Schedule:
    """Everything that decides a run."""

    seed: int
    nodes: int
    seconds: float
    profile: str
    conditions: Conditions
    faults: tuple[Fault, ...]


def make_schedule(seed: int, *, nodes: int, seconds: float = 60.0, profile: str = "lan") -> Schedule:
    """Draw a schedule; the same arguments give the same schedule anywhere."""
    if profile not in PROFILES:
        raise ValueError(f"no profile {profile}; there are {', '.join(PROFILES)}")
    random = Random(f"{seed}/{nodes}/{seconds}/{profile}")
    conditions = _conditions(random, profile)
    faults = () if profile == "calm" else tuple(_faults(random, seconds))
    return Schedule(seed, nodes, seconds, profile, conditions, faults)


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
