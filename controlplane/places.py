"""Where partitions are at home, as a node knows it: the region file, what moves made of it, and what others told.

All of it is read from the store, so every node of a region knows the same at the same revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from controlplane.abroad import Abroad
from controlplane.features import moves, partitions
from controlplane.kernel import keys
from controlplane.kernel.machine import Changed
from controlplane.kernel.store import View
from controlplane.kernel.transaction import scope_of
from controlplane.v1.records_pb2 import Move, Partition
from controlplane.v1.state_pb2 import Event


class Places:
    """Kept up to date by `took`, after `abroad` was; `look` begins anew."""

    def __init__(self, region: str, declared: Sequence[Partition], abroad: Abroad) -> None:
        self.declared: Mapping[str, Partition] = {each.id: each for each in declared}
        """The partitions of the region file, as it says."""
        self.moves: dict[str, Move] = {}
        """The newest move of each partition in which this region took part, by id."""
        self.home: Mapping[str, Partition] = dict(self.declared)
        """The partitions whose home is here, by id: another object after each change."""
        self._region, self._abroad = region, abroad
        self._recorded = scope_of(partitions.system(region)) + keys.text(moves.MOVE.name)
        self._shown: dict[str, Partition] = {}
        self._since: dict[str, int] = {}
        self._revisions: dict[str, int] = {}

    def look(self, view: View) -> list[Partition]:
        """Learn from a store what was learned before; returns what `took` does."""
        self.moves.clear()
        self._since.clear()
        start, end = keys.children(keys.RECORD + self._recorded)
        for _, packed in view.scan(start, end):
            self._take(Event.FromString(packed))
        for name in {*self.moves, *self._abroad.partitions}:
            now = self.routed(name)
            if now is not None and now.epoch > 1:
                self._since[name] = max(self._revisions.get(name, 0), self._abroad.revisions.get(name, 0))
        self.home = self._at_home()
        before, self._shown = self._shown, {}
        for name in self._names():
            shown = self.shown(name)
            if shown is not None:
                self._shown[name] = shown
        return [each for name, each in before.items() if name in self._shown and _differ(each, self._shown[name])]

    def took(self, changed: Iterable[Changed]) -> list[Partition]:
        """Take in what an entry changed; returns what is shown no longer, as another home's has taken its place."""
        # Their watchers are told in this order, which must not differ from process to process.
        names: dict[str, None] = {}
        revision = 0
        for each in changed:
            if each.key.startswith(self._recorded):
                self._take(each.event)
            elif not each.key.startswith(self._abroad.learned):
                continue
            names[keys.decode(each.key).name] = None
            revision = each.event.revision
        return self._changed(names, revision) if names else []

    def routed(self, name: str) -> Partition | None:
        """The partition with the home that it has now."""
        move, told = self.moves.get(name), self._abroad.partitions.get(name)
        own = moves.placed(move) if move is not None else self.declared.get(name)
        if own is None or told is None:
            return own or told
        # What its home tells of it is more than what a move that came to nothing left here.
        return own if moves.newer(own, told) else told

    def shown(self, name: str) -> Partition | None:
        """The partition where its records can be read here; None if there is no such, or its copy is not whole yet."""
        now, told = self.routed(name), self._abroad.partitions.get(name)
        if now is None or now.home == self._region:
            return now
        return told if told is not None and (told.home, told.epoch) == (now.home, now.epoch) else None

    def since(self, name: str) -> int:
        """The revision from which on the partition is shown as it is now: nobody can go on from before."""
        return self._since.get(name, 0)

    def sealed(self, name: str) -> Move | None:
        """The move that keeps this region, the home, from writing."""
        move = self.moves.get(name)
        return move if move is not None and moves.is_sealed(move, self._region) else None

    def arriving(self) -> list[Partition]:
        """Partitions that are being taken over, or were not in the end: there may be records of them."""
        return [
            moves.adopted(move)
            for move in self.moves.values()
            if move.to == self._region and move.phase in (Move.ADOPTING, Move.CANCELLED)
        ]

    def elsewhere(self) -> list[Partition]:
        """Partitions that have moved, to other regions."""
        found = (self.routed(name) for name in {*self.moves, *self._abroad.partitions})
        return [each for each in found if each is not None and each.home != self._region and each.former]

    def every(self) -> list[Partition]:
        """All partitions that are known here, by id."""
        found = (self.routed(name) for name in sorted(self._names()))
        return [each for each in found if each is not None]

    def _take(self, event: Event) -> None:
        name = keys.decode(event.key).name
        self.moves[name] = Move.FromString(event.value)
        self._revisions[name] = event.revision

    def _changed(self, names: Iterable[str], revision: int) -> list[Partition]:
        outdated = []
        for name in names:
            now, before = self.shown(name), self._shown.get(name)
            if now is None:
                continue
            self._shown[name] = now
            if before is not None and _differ(before, now):
                self._since[name] = revision
                outdated.append(before)
        home = self._at_home()
        if home != self.home:
            self.home = home
        return outdated

    def _at_home(self) -> dict[str, Partition]:
        found = {name: self.routed(name) for name in (*self.declared, *self.moves)}
        return {name: each for name, each in found.items() if each is not None and each.home == self._region}

    def _names(self) -> Iterable[str]:
        return dict.fromkeys((*self.declared, *self.moves, *self._abroad.partitions))


def _differ(one: Partition, other: Partition) -> bool:
    return (one.home, one.epoch) != (other.home, other.epoch)
