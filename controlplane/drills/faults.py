"""PURE. What a fault is, and which of them are in effect at a node. Times are seconds on the caller's clock."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from controlplane import limits
from controlplane.errors import Invalid, Refused
from controlplane.features import checks
from controlplane.v1 import drill_pb2 as messages

_HEX = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Kind(Enum):
    """What happens to the node, or to its links."""

    RESERVE = messages.FAULT_RESERVE
    KILL = messages.FAULT_KILL
    RESTART = messages.FAULT_RESTART
    PAUSE = messages.FAULT_PAUSE
    REPLACE = messages.FAULT_REPLACE
    CUT_OUT = messages.FAULT_CUT_OUT
    CUT_IN = messages.FAULT_CUT_IN
    CUT = messages.FAULT_CUT
    DELAY = messages.FAULT_DELAY
    CUT_REGION = messages.FAULT_CUT_REGION

    @property
    def word(self) -> str:
        """Its name in logs, plans and records."""
        return self.name.lower().replace("_", "-")


PROCESS_KINDS: Final = frozenset({Kind.KILL, Kind.RESTART, Kind.PAUSE, Kind.REPLACE})
"""What only the process above the node can do."""
LINK_KINDS: Final = frozenset({Kind.CUT_OUT, Kind.CUT_IN, Kind.CUT, Kind.DELAY})
_OUT: Final = frozenset({Kind.CUT_OUT, Kind.CUT})
_IN: Final = frozenset({Kind.CUT_IN, Kind.CUT})


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is broken, for how long, why and by whom."""

    drill: str
    id: str
    kind: Kind
    duration_ms: int
    reason: str
    peers: tuple[str, ...] = ()
    """Nodes, or regions if regions are cut off."""
    delay_ms: int = 0
    actor: str = ""

    def message(self) -> messages.Fault:
        """Return it as it travels."""
        return messages.Fault(
            drill=self.drill,
            id=self.id,
            kind=self.kind.value,
            duration_ms=self.duration_ms,
            peers=self.peers,
            delay_ms=self.delay_ms,
            reason=self.reason,
        )


def read(message: messages.Fault, actor: str, peers: Collection[str], regions: Collection[str] = ()) -> Fault:
    """Check a fault that somebody asks for at a node with these peers, in a region with those. Raises `Invalid`."""
    kind = _kind(message.kind)
    longest = limits.RESERVATION_MS_MAX if kind is Kind.RESERVE else limits.FAULT_MS_MAX
    checks.between(message.duration_ms, limits.FAULT_MS_MIN, longest, "duration_ms")
    if kind is Kind.DELAY:
        checks.between(message.delay_ms, 1, limits.FAULT_DELAY_MS_MAX, "delay_ms")
    return Fault(
        drill=_name(message.drill, "drill"),
        id=_name(message.id, "id"),
        kind=kind,
        duration_ms=message.duration_ms,
        reason=reason_of(message.reason),
        peers=_ends(kind, message.peers, peers, regions),
        delay_ms=message.delay_ms if kind is Kind.DELAY else 0,
        actor=actor,
    )


def reason_of(text: str) -> str:
    """A reason, which nobody may leave out. Raises `Invalid`."""
    if not text.strip():
        raise Invalid("a reason is required", reason="REASON_MISSING", field="reason")
    return checks.free_text(text, "reason")


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise Invalid("there is no such fault", reason="FAULT_UNKNOWN", field="kind") from None


def _name(text: str, what: str) -> str:
    if _HEX.fullmatch(text) is None:
        raise Invalid(f"{what} must be 32 hexadecimal digits", reason="FAULT_NAME_MALFORMED", field=what)
    return text


def _ends(kind: Kind, named: Iterable[str], peers: Collection[str], regions: Collection[str]) -> tuple[str, ...]:
    if kind is Kind.CUT_REGION:
        if not regions:
            raise Invalid("this region has no peers to be cut off from", reason="PEER_UNKNOWN", field="peers")
        return _known(named, regions, "PEER_UNKNOWN")
    return _known(named, peers, "NODE_UNKNOWN") if kind in LINK_KINDS else ()


def _known(named: Iterable[str], known: Collection[str], reason: str) -> tuple[str, ...]:
    chosen = tuple(sorted(set(named)))
    for peer in chosen:
        if peer not in known:
            names = ", ".join(sorted(known))
            raise Invalid(f"there is no such peer; the peers are {names}", reason=reason, field="peers")
    return chosen or tuple(sorted(known))


class Faults:
    """The faults in effect at one node, and what they mean for its links with nodes and regions."""

    def __init__(self) -> None:
        self._active: dict[str, tuple[Fault, float]] = {}
        self._known: deque[str] = deque(maxlen=limits.FAULTS_REMEMBERED_MAX)
        self._aborted: deque[str] = deque(maxlen=limits.FAULTS_REMEMBERED_MAX)
        self.lost_out: frozenset[str] = frozenset()
        self.lost_in: frozenset[str] = frozenset()
        self.delay_s: dict[str, float] = {}
        self.cut_off: frozenset[str] = frozenset()
        """Regions with which nothing passes."""

    @property
    def aborted(self) -> tuple[str, ...]:
        """Drills whose faults are refused here from now on."""
        return tuple(self._aborted)

    @property
    def next_end_s(self) -> float | None:
        """When the next fault ends, if there is any."""
        return min((end for _, end in self._active.values()), default=None)

    def active(self, now: float) -> list[tuple[Fault, float]]:
        """The faults in effect, each with the seconds that it still lasts."""
        return [(fault, end - now) for fault, end in self._active.values() if end > now]

    def admit(self, fault: Fault, now: float) -> bool:
        """Take `fault` from now on; False if it was known already. Raises `Refused`."""
        if fault.id in self._known:
            return False
        self.expire(now)
        self._check(fault)
        if fault.kind is Kind.RESERVE:
            self._active = {each: kept for each, kept in self._active.items() if kept[0].kind is not Kind.RESERVE}
        self._active[fault.id] = (fault, now + fault.duration_ms / 1000)
        self._known.append(fault.id)
        self._derive()
        return True

    def end(self, fault: Fault) -> None:
        """End one fault, which stays known."""
        self._active.pop(fault.id, None)
        self._derive()

    def withdraw(self, fault: Fault) -> None:
        """Forget a fault that could not be put into effect."""
        self.end(fault)
        self._known.remove(fault.id)

    def expire(self, now: float) -> list[Fault]:
        """End what has lasted long enough; return it."""
        return self._end([fault for fault, end in self._active.values() if end <= now])

    def heal(self, drill: str, *, abort: bool) -> list[Fault]:
        """End the faults of a drill (empty: of all), and with `abort` take no more of its; return what ended."""
        ended = self._end([fault for fault, _ in self._active.values() if drill in ("", fault.drill)])
        if abort:
            drills = {fault.drill for fault in ended} | ({drill} if drill else set())
            self._aborted.extend(sorted(drills - set(self._aborted)))
        return ended

    def _check(self, fault: Fault) -> None:
        if fault.drill in self._aborted:
            raise Refused("this drill was aborted", reason="DRILL_ABORTED", hint="begin a new one: cpctl drill run")
        for other, _ in self._active.values():
            if other.drill != fault.drill:
                raise Refused(
                    "another drill is under way at this node",
                    reason="DRILL_IN_PROGRESS",
                    hint="cpctl drill watch follows it, cpctl drill abort ends it",
                    drill=other.drill,
                )
        if len(self._active) >= limits.FAULTS_PER_NODE_MAX:
            raise Refused("too many faults at this node", reason="FAULTS_FULL", hint="wait until some have ended")

    def _end(self, faults: list[Fault]) -> list[Fault]:
        for fault in faults:
            del self._active[fault.id]
        self._derive()
        return faults

    def _derive(self) -> None:
        faults = [fault for fault, _ in self._active.values()]
        self.lost_out = frozenset(peer for fault in faults if fault.kind in _OUT for peer in fault.peers)
        self.cut_off = frozenset(peer for fault in faults if fault.kind is Kind.CUT_REGION for peer in fault.peers)
        self.lost_in = frozenset(peer for fault in faults if fault.kind in _IN for peer in fault.peers)
        self.delay_s = {
            peer: fault.delay_ms / 1000 for fault in faults if fault.kind is Kind.DELAY for peer in fault.peers
        }
