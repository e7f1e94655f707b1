"""What of the log goes into the region's ledger: one leaf for each entry that wrote an audited record.

Every replica grows the same tree in the same batches that apply entries, so no node has to be asked for what another
one has. The rows lie beside the replicated state: apply neither reads nor hashes them. What a leaf does not name is
covered by the running hash in it, and by the one in the next checkpoint.

Audited are what passed between regions and what was refused to them (`Passage`), the right to hold copies (`Grant`),
kill switches, exceptions from them, break-glass reads, moves of a partition's home, erasures, and that the region
began again from a backup. A content names regions, partitions, reaches, roles, revisions and digests, never a person,
a tenant, a key or a value: what a switch stops is told as a digest of its key, who broke the glass and why as one of
both, and what was erased not at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from google.protobuf.message import DecodeError

from controlplane.features import glass, moves, restorations
from controlplane.kernel import keys
from controlplane.kernel.machine import Changed
from controlplane.kernel.store import Overlay, View
from controlplane.ledger import leaves
from controlplane.ledger.leaves import Content, Leaf, Transfer
from controlplane.ledger.merkle import Frontier, leaf_hash
from controlplane.v1.records_pb2 import (
    BreakGlass,
    Erased,
    Grant,
    Move,
    Passage,
    Reach,
    Restoration,
    StopException,
    Switch,
)
from controlplane.v1.state_pb2 import Event, State

_FRONTIER = keys.LEDGER + b"f"
_LEAF = keys.LEDGER + b"l"
_SALT = keys.LEDGER + b"s"
_NODE = keys.LEDGER + b"n"
_CONTENT = keys.LEDGER + b"c"
_KEY = keys.LEDGER + b"k"
_OPEN_FOR_EVER = ("egress", "ingress", "grant", "break-glass", "move", "erase", "restore")
"""Without these nobody could say what left. Their keys outlive an erased salt, and tell nothing of it; their contents
name no person."""

REACH_WORDS = {Reach.HOME_ONLY: "home-only", Reach.JURISDICTION: "jurisdiction", Reach.GLOBAL: "global"}
"""Reaches as region files write them."""
_DOORS = {
    "copy": "federation",
    "listing": "federation",
    "unconfirmed": "unconfirmed",
    "answer": "agent",
    "outline": "operator",
    "metrics": "metrics",
    "denial": "agent",
}
_DIGEST_BYTES = 32

_AT_MS_MAX = 10**18

Audited = tuple[str, Content]
"""Class and content."""


class Ledger:
    """The tree as one replica has it, and the annex of `machine.apply` that grows it."""

    def __init__(self, view: View) -> None:
        self.reload(view)

    def reload(self, view: View) -> None:
        """Take up the tree that a store holds: at start, and when the store was replaced."""
        self._frontier = frontier_at(view)

    @property
    def size(self) -> int:
        """Leaves so far."""
        return self._frontier.size

    def root(self) -> bytes:
        """The root over all leaves."""
        return self._frontier.root()

    def __call__(self, view: Overlay, state: State, salt: bytes, entry: bytes, changed: Sequence[Changed]) -> None:
        """Add a leaf for an entry, if it wrote anything that is audited. See `machine.Annex`."""
        found = [(*audited, each.event) for each in changed if (audited := audited_in(each.event)) is not None]
        if not found:
            return
        index = self._frontier.size
        opened = []
        # No planner fills an entry beyond this; one that did would not stop the region.
        for n, (name, packed, _) in enumerate(found[: leaves.RECORDS_MAX]):
            opened.append((name, leaves.commitment(salt, n, packed)))
            view.put(_CONTENT + keys.number(index) + n.to_bytes(4, "big"), packed)
        at_ms = min(state.at_ms, _AT_MS_MAX)
        leaf = Leaf(index, state.revision, at_ms, state.hash, leaves.entry_commitment(salt, entry), tuple(opened))
        encoded = leaves.encode(leaf)
        view.put(_LEAF + keys.number(index), encoded)
        view.put(_SALT + keys.number(index), salt)
        for node in self._frontier.append(leaf_hash(encoded)):
            view.put(_node_key(node.level, node.at), node.hash)
        view.put(_FRONTIER, self._frontier.pack())
        for name, _, event in found:
            if name == "erase":
                _destroy_salts(view, event, index)


def frontier_at(view: View) -> Frontier:
    """The frontier of the tree that a store holds."""
    packed = view.get(_FRONTIER)
    return Frontier() if packed is None else Frontier.unpack(packed)


def node_reader(view: View) -> Callable[[int, int], bytes]:
    """What proofs are made from; see `ledger.merkle`. Raises KeyError for a node that is not complete."""

    def read(level: int, at: int) -> bytes:
        found = view.get(_node_key(level, at))
        if found is None:
            raise KeyError((level, at))
        return found

    return read


def leaf_at(view: View, index: int) -> bytes | None:
    """The encoded leaf, or None if there is none."""
    return view.get(_LEAF + keys.number(index))


def opened(view: View, index: int) -> Iterator[tuple[int, str, bytes | None, bytes]]:
    """The audited records of a leaf: number, class, key and canonical content; no key once they were erased."""
    packed = leaf_at(view, index)
    if packed is None:
        return
    salt = view.get(_SALT + keys.number(index))
    for n, (name, _) in enumerate(leaves.decode(packed).open):
        content = view.get(_CONTENT + keys.number(index) + n.to_bytes(4, "big"))
        key = view.get(_record_key(index, n)) if salt is None else leaves.record_key(salt, n)
        yield (n, name, None, b"") if key is None or content is None else (n, name, key, content)


def first_leaf_from(view: View, at_ms: int, size: int) -> int:
    """The first leaf whose entry was planned at `at_ms` (Unix milliseconds) or later; `size` if there is none."""
    return _first(view, size, lambda leaf: leaf.at_ms >= at_ms)


def leaf_of(view: View, revision: int, at_ms: int) -> int | None:
    """The leaf of the entry that wrote `revision` at `at_ms`, if there can be one.

    A leaf does not say where its entry began. What it says of the time may be true of a later entry of the same
    millisecond as well: then this is one leaf too many.
    """
    size = frontier_at(view).size
    index = _first(view, size, lambda leaf: leaf.revision >= revision)
    packed = leaf_at(view, index) if index < size else None
    return index if packed is not None and leaves.decode(packed).at_ms == min(at_ms, _AT_MS_MAX) else None


def _first(view: View, size: int, reached: Callable[[Leaf], bool]) -> int:
    """The first of `size` leaves for which `reached` is true, as it is for all after it; `size` if there is none."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        packed = leaf_at(view, middle)
        if packed is not None and not reached(leaves.decode(packed)):
            low = middle + 1
        else:
            high = middle
    return low


def audited_in(event: Event) -> tuple[str, bytes] | None:
    """Class and canonical content of what an event tells the ledger, or None if nothing.

    Total: it runs while entries are applied. What no feature wrote is told as what it is, by its digest.
    """
    if not event.HasField("value") or event.HasField("origin"):
        return None
    if _MARKS.search(event.key) is None:
        return None
    kind = keys.decode(event.key).kind
    if kind not in _KINDS:
        return None
    try:
        audited = _KINDS[kind](event)
        return None if audited is None else (audited[0], leaves.canonical(audited[1]))
    except (DecodeError, ValueError):
        unreadable = {"kind": kind, "unreadable": hashlib.sha256(event.value).hexdigest()}
        return "unreadable", leaves.canonical(unreadable)


def _passage(event: Event) -> Audited | None:
    passage = Passage.FromString(event.value)
    if passage.sort == "denial":
        content: Content = {"peer": passage.counterparty, "count": passage.records, "door": "agent"}
        return "denial", content
    name = {Passage.EGRESS: "egress", Passage.INGRESS: "ingress"}.get(passage.direction)
    if name is None:
        return None
    transfer = Transfer(
        peer=passage.counterparty,
        door=_DOORS.get(passage.sort, "federation"),
        reach=REACH_WORDS.get(passage.reach, ""),
        epoch=passage.epoch,
        first=passage.after + 1,
        last=passage.upto,
        count=passage.records,
        digest=passage.digest.ljust(_DIGEST_BYTES, b"\0")[:_DIGEST_BYTES],
    )
    return name, transfer.content()


def _grant(event: Event) -> Audited:
    grant = Grant.FromString(event.value)
    return "grant", {
        "peer": grant.peer,
        "jurisdiction": grant.jurisdiction,
        "reach": REACH_WORDS.get(grant.reach, ""),
        "open": grant.open,
    }


def _switch(event: Event) -> Audited:
    switch = Switch.FromString(event.value)
    return "switch", {"switch": _hidden(event.key), "engaged": switch.engaged, "revision": event.revision}


def _exception(event: Event) -> Audited:
    exception = StopException.FromString(event.value)
    return "exception", {
        "exception": _hidden(event.key),
        "region": exception.region,
        "epoch": exception.epoch,
        "revision": exception.revision,
    }


def _glass(event: Event) -> Audited:
    read = BreakGlass.FromString(event.value)
    content = {
        "way": "out" if read.direction == Passage.EGRESS else "in",
        "peer": read.counterparty,
        "role": "".join(read.actor.split("/")[5:6]),
        "reach": REACH_WORDS.get(read.reach, ""),
        "epoch": read.epoch,
        "revision": read.revision,
        "digest": read.digest.hex(),
        "who_and_why": glass.who_and_why(read),
    }
    return "break-glass", {**content, "partition": read.partition} if read.partition else content


def _erased(event: Event) -> Audited:
    return "erase", {"leaves": list(Erased.FromString(event.value).leaves)}


def _destroy_salts(view: Overlay, event: Event, before: int) -> None:
    """Destroy the salts of the leaves that an erasure names; it may name what is not there."""
    for index in Erased.FromString(event.value).leaves:
        salt = view.get(_SALT + keys.number(index)) if index < before else None
        packed = leaf_at(view, index) if salt is not None else None
        if salt is None or packed is None:
            continue
        for n, (name, _) in enumerate(leaves.decode(packed).open):
            if name in _OPEN_FOR_EVER:
                view.put(_record_key(index, n), leaves.record_key(salt, n))
        view.delete(_SALT + keys.number(index))


def _record_key(index: int, n: int) -> bytes:
    return _KEY + keys.number(index) + n.to_bytes(4, "big")


def _move(event: Event) -> Audited:
    move = Move.FromString(event.value)
    return "move", {
        "partition": move.partition.id,
        "reach": REACH_WORDS.get(move.partition.reach, ""),
        "from": move.partition.home,
        "former_epoch": move.partition.epoch,
        "to": move.to,
        "epoch": move.epoch,
        "phase": Move.Phase.Name(move.phase).lower(),
        "forced": move.forced,
        "upto": move.upto,
        "age_ms": move.age_ms,
        "attested": moves.attested(move),
    }


def _restored(event: Event) -> Audited:
    restoration = Restoration.FromString(event.value)
    return "restore", {
        "after": restoration.after,
        "after_ms": restoration.after_ms,
        "revision": restoration.revision,
    }


def _hidden(key: bytes) -> str:
    return hashlib.sha256(b"controlplane ledger key v1\0" + key).hexdigest()


def _node_key(level: int, at: int) -> bytes:
    return _NODE + bytes([level]) + keys.number(at)


_KINDS: Mapping[str, Callable[[Event], Audited | None]] = {
    "passage": _passage,
    "grant": _grant,
    "switch": _switch,
    "exception": _exception,
    glass.GLASS.name: _glass,
    "erased": _erased,
    "move": _move,
    restorations.RESTORATION.name: _restored,
}
_MARKS = re.compile(b"|".join(re.escape(keys.text(kind)) for kind in _KINDS))
