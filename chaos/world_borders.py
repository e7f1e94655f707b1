"""What must hold between simulated regions, at every moment of a run.

The borders see what every region applied, the first time that any of its nodes does, and every message that leaves one
region for another. They know what records and messages look like, and the law; how copying works they do not.

1. What is here of another region's records is a beginning of what happened there: each transaction that moves a cursor
   brings all that the home wrote up to there, whole, and nothing else. While a listing is under way a record may be
   newer than that, never older than it was, never invented.
2. Nothing pinned, and nothing that the law does not allow, is in a message to another region or in a row there.
3. A grant is written down before the first record leaves.
4. Whom a region's node says that an agent is stopped by is what that region knew at the revision it names: its own
   switches and the stops that it has copies of, but for those excepted one by one.
5. When all is quiet, what each side has written down about what passed fits what the other side has.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol

from chaos.plane_chronicle import Chronicle
from chaos.sim_oracle import Violation
from controlplane.kernel import keys
from controlplane.kernel.machine import Applied, Changed
from controlplane.kernel.store import View
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import Cursor, Grant, Passage, Reach, Stop, StopException, Switch
from controlplane.v1.state_pb2 import Event

Pair = tuple[str, Reach]
"""A home, and a reach of it."""
SHARED = (Reach.JURISDICTION, Reach.GLOBAL)
_SAYING_WHO = ("switch", "exception")
_AGE_SLACK_MS = 2.0


class Region(Protocol):
    """A region as the borders see it."""

    chronicle: Chronicle
    region: str


class Version(NamedTuple):
    """A record after its home's `revision`; None: it was deleted."""

    revision: int
    value: bytes | None


@dataclass(slots=True)
class _Truth:
    """What a home shares with one reach."""

    revisions: list[int] = field(default_factory=list)
    changes: list[dict[bytes, bytes | None]] = field(default_factory=list)
    of: dict[bytes, list[Version]] = field(default_factory=dict)

    def add(self, revision: int, changes: dict[bytes, bytes | None]) -> None:
        self.revisions.append(revision)
        self.changes.append(changes)
        for key, value in changes.items():
            self.of.setdefault(key, []).append(Version(revision, value))

    def between(self, after: int, upto: int) -> Iterator[tuple[int, dict[bytes, bytes | None]]]:
        """Transactions at revisions `after` + 1 … `upto`."""
        first, end = bisect_right(self.revisions, after), bisect_right(self.revisions, upto)
        yield from zip(self.revisions[first:end], self.changes[first:end], strict=True)

    def at(self, key: bytes, revision: int) -> Version:
        """A record as of a revision."""
        versions = self.of.get(key, [])
        n = bisect_right(versions, revision, key=lambda each: each.revision)
        return versions[n - 1] if n else Version(0, None)

    def holds(self, key: bytes, version: Version) -> bool:
        """Whether the record ever was like that."""
        return version in self.of.get(key, [])


@dataclass(slots=True)
class _Copy:
    """What one region holds of a home and reach."""

    cursor: Cursor
    records: dict[bytes, Version] = field(default_factory=dict)
    moves: list[tuple[int, int, bool]] = field(default_factory=list)
    """The region's own revision, the home's up to which the copy goes from then on, and whether it lists."""
    taken: list[int] = field(default_factory=list)
    """Home's revisions that came as transactions."""

    def covers(self, key: bytes, version: Version) -> bool:
        """Whether this is here, or something newer."""
        here = self.records.get(key)
        if here is None or here.value is None:
            return version.value is None or (here is not None and here.revision >= version.revision)
        return here.revision >= version.revision


class _State(NamedTuple):
    """What a switch, stop or exception was from the region's own revision `at` on; `origin` is the home's."""

    at: int
    value: bytes
    origin: int


@dataclass(slots=True)
class _Known:
    """What one region has in its own log that matters to others."""

    open: dict[tuple[str, Reach], bool] = field(default_factory=dict)
    states: dict[bytes, list[_State]] = field(default_factory=dict)
    """Switches, stops and exceptions by key."""
    copies: dict[Pair, _Copy] = field(default_factory=dict)

    def state(self, key: bytes, revision: int) -> _State | None:
        """A record as of the region's own revision."""
        states = self.states.get(key, [])
        n = bisect_right(states, revision, key=lambda each: each.at)
        return states[n - 1] if n else None


class Borders:
    """Everything that passed."""

    def __init__(
        self, regions: Mapping[str, Region], jurisdictions: Mapping[str, str], fleet: str, *, roaming: str
    ) -> None:
        """`roaming` is a partition whose home moves: what is in it is judged elsewhere."""
        self._roaming = roaming
        self.counts: Counter[str] = Counter()
        self._regions, self._jurisdictions, self._fleet = regions, jurisdictions, fleet
        self._truth: dict[Pair, _Truth] = defaultdict(_Truth)
        self._known: dict[str, _Known] = defaultdict(_Known)
        self._erased: dict[str, int] = {}
        """By the name of the erasure, its newest revision at home: what was before need not be shown any more."""

    def may_hold(self, region: str, home: str, reach: Reach) -> bool:
        """The law."""
        together = self._jurisdictions.get(home) == self._jurisdictions.get(region)
        return home == region or reach == Reach.GLOBAL or (reach == Reach.JURISDICTION and together)

    def pairs(self) -> Iterator[tuple[str, Pair]]:
        """Every region, with what it has to hold a copy of."""
        for region in self._jurisdictions:
            for home in self._jurisdictions:
                for reach in SHARED:
                    if home != region and self.may_hold(region, home, reach):
                        yield region, (home, reach)

    def holders(self, reach: Reach) -> dict[str, set[str]]:
        """By home, the regions that have what it shares with this reach, itself included."""
        every = list(self._jurisdictions)
        return {home: {region for region in every if self.may_hold(region, home, reach)} for home in every}

    # What regions apply.

    def applied(self, region: str, applied: Applied) -> None:
        """A region has applied an entry."""
        judged = [each for each in applied.changed if keys.decode(each.key).partition != self._roaming]
        for revision, together in groupby(judged, key=lambda each: each.event.revision):
            self._took(region, revision, list(together))

    def _took(self, region: str, revision: int, changed: Sequence[Changed]) -> None:
        own: dict[Reach, dict[bytes, bytes | None]] = {}
        foreign: list[tuple[keys.Key, Changed]] = []
        cursors: list[Cursor] = []
        for each in changed:
            key = keys.decode(each.key)
            value = each.event.value if each.event.HasField("value") else None
            if key.kind in ("switch", "stop", "exception"):
                state = _State(revision, each.event.value, each.event.origin.revision)
                self._known[region].states.setdefault(each.key, []).append(state)
            if key.home != region:
                foreign.append((key, each))
            elif key.kind == "cursor":
                cursors.append(Cursor.FromString(each.event.value))
            elif key.kind == "grant":
                grant = Grant.FromString(each.event.value)
                self._known[region].open[grant.peer, grant.reach] = grant.open
            elif key.reach != "HOME_ONLY" and key.kind not in _SAYING_WHO and not each.quiet:
                own.setdefault(_reach(key.reach), {})[each.key] = value
                self._says(region, key, each)
        for reach, changes in own.items():
            self._truth[region, reach].add(revision, changes)
        if foreign and len(cursors) != 1:
            raise Violation(
                f"CURSOR {region} took {len(foreign)} records at {revision}, and moved {len(cursors)} cursors"
            )
        # Several listings may begin at once.
        for cursor in cursors:
            self._copies(region, revision, foreign, cursor)

    def _says(self, region: str, key: keys.Key, changed: Changed) -> None:
        if key.kind == "erasure":
            self._erased[key.name] = changed.event.revision
        elif key.kind == "stop":
            self._announces(region, key.name, Stop.FromString(changed.event.value).engaged)

    def _announces(self, region: str, identifier: str, engaged: bool) -> None:
        """What others are told of a switch is how it stands."""
        for key, states in self._known[region].states.items():
            found = keys.decode(key)
            if found.kind == "switch" and found.home == region and self.stop_id(found) == identifier:
                if Switch.FromString(states[-1].value).engaged != engaged:
                    raise Violation(f"STOP_INVENTED {region} tells others engaged={engaged} of {found.name}")
                self.counts["stops told" if engaged else "releases told"] += 1
                return
        raise Violation(f"STOP_INVENTED {region} tells others of a switch that nobody threw")

    def stop_id(self, key: keys.Key) -> str:
        """The id under which others know of a switch."""
        environment = key.partition.split(".")[1]
        text = f"controlplane stop v1\0{self._fleet}\0{environment}\0{key.name}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _copies(self, region: str, revision: int, foreign: Sequence[tuple[keys.Key, Changed]], moved: Cursor) -> None:
        for key, _ in foreign:
            reach = _reach(key.reach)
            if not self.may_hold(region, key.home, reach) or key.kind in _SAYING_WHO:
                raise Violation(f"LEAK {region} holds {key.kind} of {key.partition}, which may not be there")
            if (key.home, reach) != (moved.peer, moved.reach):
                raise Violation(
                    f"CURSOR {region} took {key.kind} of {key.partition} at {revision}, and moved no cursor"
                )
        pair = moved.peer, moved.reach
        copy = self._known[region].copies.setdefault(pair, _Copy(Cursor(peer=pair[0], reach=pair[1], epoch=1)))
        before, copy.cursor = copy.cursor, moved
        home = self._regions[moved.peer].chronicle.revision
        if moved.revision < before.revision or moved.revision > home:
            raise Violation(
                f"CURSOR {region} moved from {before.revision} to {moved.revision} of {moved.peer}, which is at {home}"
            )
        for key, each in foreign:
            self._take(region, pair, key, each, listing=before.listing)
        if before.listing:
            self.counts["pages copied"] += 1
            if not moved.listing:
                self.counts["listings finished"] += 1
                self._listed(region, pair, moved.revision)
        elif moved.listing:
            self.counts["listings begun"] += 1
        else:
            self._followed(region, pair, before.revision, moved.revision, [each for _, each in foreign])
        copy.moves.append((revision, moved.revision, moved.listing))

    def _take(self, region: str, pair: Pair, key: keys.Key, each: Changed, *, listing: bool) -> None:
        copy, truth = self._known[region].copies[pair], self._truth[pair]
        value = each.event.value if each.event.HasField("value") else None
        version = Version(each.event.origin.revision, value)
        here = copy.records.get(each.key)
        what = f"{region} took {key.kind} {key.name} of {key.home} at {version.revision}"
        if value is None and listing:
            # It is gone at home; when that was, a listing does not say.
            start = truth.at(each.key, copy.cursor.revision)
            later = truth.of.get(each.key, [])[bisect_right(truth.of.get(each.key, []), start) :]
            if start.value is not None and all(one.value is not None for one in later):
                raise Violation(f"COPY_LOST {what}: deleted, and it is there at home")
        elif not truth.holds(each.key, version):
            raise Violation(f"COPY_INVENTED {what}: it never was like that")
        if here is not None and here.revision > version.revision:
            raise Violation(f"COPY_WENT_BACK {what}, and had {here.revision}")
        if here is not None and here == version:
            raise Violation(f"COPY_TWICE {what}, which it had")
        copy.records[each.key] = version
        self.counts["records copied"] += 1

    def _followed(self, region: str, pair: Pair, before: int, upto: int, taken: Sequence[Changed]) -> None:
        copy = self._known[region].copies[pair]
        strange = [each for each in taken if each.event.origin.revision != upto]
        if strange:
            raise Violation(f"COPY_TORN {region} took {len(strange)} records not of {upto} with {upto} of {pair[0]}")
        for revision, changes in self._truth[pair].between(before, upto):
            left = {key: value for key, value in changes.items() if not self._is_erased(key, revision)}
            if not left:
                continue
            for key, value in left.items():
                version = Version(revision, value)
                if not copy.covers(key, version):
                    raise Violation(
                        f"COPY_LOST {region} went from {before} to {upto} of {pair[0]} without {keys.decode(key).name}"
                        f" of {revision}"
                    )
            self.counts["transactions copied"] += 1
            copy.taken.append(revision)

    def _is_erased(self, key: bytes, revision: int) -> bool:
        return self._erased.get(keys.erasure_name(key), 0) > revision

    def _listed(self, region: str, pair: Pair, revision: int) -> None:
        copy, truth = self._known[region].copies[pair], self._truth[pair]
        for key in {**truth.of, **copy.records}:
            wanted, here = truth.at(key, revision), copy.records.get(key, Version(0, None))
            if self._is_erased(key, wanted.revision):
                continue
            if here.revision < wanted.revision and here.value != wanted.value:
                raise Violation(
                    f"COPY_LISTING {region} listed {pair[0]} as of {revision} without {keys.decode(key).name}"
                )

    # What is on its way.

    def leaves(self, source: str, target: str, message: bytes, *, copies: bool) -> None:
        """A message is handed to the network between two regions."""
        self.counts["messages between regions"] += 1
        for word in self._forbidden(source, target):
            if word in message:
                raise Violation(f"LEAK {source} tells {target} what stays at home: {word!r}")
        if not copies:
            return
        reply = wire.FollowReply.FromString(message)
        records = reply.page.records if reply.HasField("page") else reply.transaction.records
        for each in records:
            key = keys.decode(each.key)
            reach = _reach(key.reach)
            if key.home != source or not self.may_hold(target, source, reach) or key.kind in _SAYING_WHO:
                raise Violation(f"LEAK {source} sends {target} {key.kind} of {key.partition}")
            if not self._known[source].open.get((target, reach)):
                raise Violation(f"GRANT {source} sends {target} {key.kind} before a grant for it is written down")

    def _forbidden(self, source: str, target: str) -> list[bytes]:
        words = [pinned_word(source).encode()]
        if self._jurisdictions[source] != self._jurisdictions[target]:
            words.append(law_word(source).encode())
        return words

    def scan(self, region: str, rows: Mapping[bytes, bytes]) -> None:
        """Look at everything that a node of `region` has on its disk."""
        words = {
            word: other for other in self._jurisdictions if other != region for word in self._forbidden(other, region)
        }
        for key, value in rows.items():
            for word, other in words.items():
                if word in value or word in key:
                    raise Violation(f"LEAK {region} has {word!r} of {other} on its disk: {key[:80]!r}")
            if key[:1] in (keys.RECORD, keys.EVENT):
                home, reach = keys.home_and_reach(key[1:])
                if home != region and not self.may_hold(region, home, _reach(reach)):
                    raise Violation(f"LEAK {region} has a row of {home} and {reach} on its disk")
                actor = Event.FromString(value).actor if home != region else ""
                if actor and actor.split("/")[4] != region:
                    raise Violation(f"LEAK {region} knows who wrote at {home}: {actor}")
        self.counts["rows scanned"] += len(rows)

    # What is answered.

    def stopping(self, region: str, revision: int, environment: str, tenant: str) -> set[str]:
        """Whose stops stop a tenant's agents in `region` as of one of its revisions; its own are called ""."""
        known, name, found = self._known[region], f"tenant:{tenant}", set[str]()
        exceptions = {
            keys.decode(key).name: StopException.FromString(state.value)
            for key in known.states
            if keys.decode(key).kind == "exception" and (state := known.state(key, revision)) is not None
        }
        for key in known.states:
            parts, state = keys.decode(key), known.state(key, revision)
            if state is None or parts.partition.split(".")[1] != environment:
                continue
            if parts.kind == "switch" and parts.name == name and Switch.FromString(state.value).engaged:
                found.add("")
            elif parts.kind == "stop" and parts.home != region and Stop.FromString(state.value).engaged:
                made = exceptions.get(f"{parts.home}/{name}", StopException())
                free = (made.region, made.epoch, made.revision) == (parts.home, parts.epoch, state.origin)
                if self.stop_id(parts._replace(name=name)) == parts.name and not free:
                    found.add(parts.home)
        return found

    # When all is quiet.

    def behind(self, region: str, pair: Pair, now: float, within_s: float) -> str:
        """What a copy lacks of what happened at home longer ago than that; empty: nothing."""
        home = self._regions[pair[0]].chronicle
        copy = self._known[region].copies.get(pair)
        for revision in reversed(self._truth[pair].revisions):
            if copy is not None and not copy.cursor.listing and revision <= copy.cursor.revision:
                return ""
            if home.applied_at(revision) <= now - within_s:
                stands = "nowhere" if copy is None else f"at {copy.cursor.revision}"
                stands += ", listing" if copy is not None and copy.cursor.listing else ""
                return f"{region} stands {stands} of {pair[0]} {Reach.Name(pair[1])}, where {revision} happened"
        return ""

    def copied(self, region: str, pair: Pair) -> None:
        """At the end: the copy is what is at home."""
        truth, copy = self._truth[pair], self._known[region].copies.get(pair)
        here = {} if copy is None else {key: each.value for key, each in copy.records.items() if each.value is not None}
        there = {key: versions[-1].value for key, versions in truth.of.items() if versions[-1].value is not None}
        if here != there:
            differing = sorted({keys.decode(key).name for key, _ in here.items() ^ there.items()})
            raise Violation(f"COPY_DIFFERS {region} of {pair[0]} {Reach.Name(pair[1])} in {differing[:5]}")

    def untold(self, region: str, now: float, within_s: float) -> str:
        """A switch that was thrown longer ago than that, and of which others were told something else; empty: none."""
        known, home = self._known[region], self._regions[region].chronicle
        told = {keys.decode(key).name: states[-1] for key, states in known.states.items() if _is(key, "stop", region)}
        for key, states in known.states.items():
            if _is(key, "switch", region) and home.applied_at(states[-1].at) <= now - within_s:
                engaged = Switch.FromString(states[-1].value).engaged
                others = told.get(self.stop_id(keys.decode(key)))
                if engaged != (others is not None and Stop.FromString(others.value).engaged):
                    return f"{region} has {keys.decode(key).name} engaged={engaged}, and others were told otherwise"
        return ""

    def passages(self, region: str, pair: Pair, here: View, there: View) -> None:
        """At the end: what `region` wrote down as having come in, and the home as having left."""
        came = [each for each in _passages(here, region) if _of(each, Passage.INGRESS, pair[0], pair[1])]
        left = [each for each in _passages(there, pair[0]) if _of(each, Passage.EGRESS, region, pair[1])]
        arrived = {_measure(each) for each in came}
        for each in left:
            if each.sort in ("copy", "listing") and _measure(each) not in arrived:
                raise Violation(
                    f"PASSAGE {pair[0]} says that {each.after}..{each.upto} came to {region}, which does not"
                )
        confirmed = {_measure(each) for each in left if each.sort in ("copy", "listing")}
        spans = [(each.after, each.upto) for each in left]
        for each in came:
            covered = any(after <= each.after and each.upto <= upto for after, upto in _joined(spans))
            if _measure(each) not in confirmed and not covered:
                raise Violation(f"PASSAGE {region} took {each.after}..{each.upto} of {pair[0]}, which left unrecorded")
        copy = self._known[region].copies.get(pair)
        for revision in copy.taken if copy is not None else ():
            if not any(after < revision <= upto for after, upto in spans):
                raise Violation(f"PASSAGE {revision} of {pair[0]} came to {region}, and left unrecorded")
        self.counts["passages compared"] += len(came) + len(left)

    # Ages.

    def served(self, region: str, pair: Pair, revision: int, age_ms: int, now: float) -> None:
        """A copy was shown as of the region's own revision: it is no older than was said."""
        copy = self._known[region].copies.get(pair)
        moves = [] if copy is None else copy.moves
        n = bisect_right(moves, revision, key=lambda each: each[0])
        if not n or moves[n - 1][2]:
            return
        truth, upto = self._truth[pair], moves[n - 1][1]
        first = bisect_right(truth.revisions, upto)
        self.counts["ages of copies checked"] += 1
        if first < len(truth.revisions):
            old_ms = (now - self._regions[pair[0]].chronicle.applied_at(truth.revisions[first])) * 1000
            if age_ms + _AGE_SLACK_MS < old_ms:
                raise Violation(
                    f"COPY_AGE {region} says {age_ms} ms of a copy of {pair[0]} that is {old_ms:.1f} ms old"
                )


def pinned_word(region: str) -> str:
    """Stands in what may not leave a region."""
    return f"pinned-in-{region}."


def law_word(region: str) -> str:
    """Stands in what may not leave a region's jurisdiction."""
    return f"lawful-with-{region}."


def _reach(name: str) -> Reach:
    found: Reach = Reach.Value(name)  # type: ignore[assignment]  # That it is an int is not said of the generated code.
    return found


def _is(key: bytes, kind: str, home: str) -> bool:
    parts = keys.decode(key)
    return (parts.kind, parts.home) == (kind, home)


def _of(passage: Passage, direction: int, counterparty: str, reach: Reach) -> bool:
    return (passage.direction, passage.counterparty, passage.reach) == (direction, counterparty, reach)


def _measure(passage: Passage) -> tuple[object, ...]:
    return passage.sort, passage.after, passage.upto, passage.records, passage.digest


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that touch, as one."""
    found: list[tuple[int, int]] = []
    for after, upto in sorted(spans):
        if found and after <= found[-1][1]:
            found[-1] = found[-1][0], max(upto, found[-1][1])
        else:
            found.append((after, upto))
    return found


def _passages(view: View, region: str) -> list[Passage]:
    scope = keys.scope(region, *keys.own_place(region), 1)
    rows = view.scan(*keys.children(keys.RECORD + scope + keys.text("passage")))
    return [Passage.FromString(Event.FromString(packed).value) for _, packed in rows]
