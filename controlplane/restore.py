"""Make the data folders of a whole region from the journal and store of one node that is stopped, or of a backup.

For the day on which a majority of a region's disks is gone. What comes of it is another life of the region: every
folder has the same content and a new identity, so that no disk of before can take part, and the region goes on at a
revision beyond all that it gave before (`features.restorations`). What only other disks had is lost.

1. The source is copied and never changed. A node that still has it open keeps it.
2. Whatever the journal holds counts, also what was perhaps never acknowledged.
3. The copy is applied to its end and begins again there; then it is copied for each node. What makes a folder one of a
   member's is written last: without it no node starts from a folder that is half done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from controlplane.config import RegionConfig
from controlplane.datadir import found, owner_of, sync_folder, unused
from controlplane.errors import Fatal
from controlplane.features import audit, partitions, restorations
from controlplane.kernel import keys, machine
from controlplane.kernel.machine import RecentEvents, Working
from controlplane.kernel.store import Batch
from controlplane.kernel.transaction import Tx, scope_of
from controlplane.replication.journal import Journal
from controlplane.replication.tail import Meta, Reset
from controlplane.storage import RocksStore
from controlplane.v1.records_pb2 import Partition
from controlplane.v1.state_pb2 import Entry, Outcome, State

_PARTS = ("journal", "store")
_COPY_BYTES = 1 << 20
_CARRIED = 10_000
"""Outcomes in one batch."""


class Why(NamedTuple):
    """What is written down of a restoration. `salt`: 16 random bytes."""

    reason: str
    at_ms: int
    """Now, in Unix milliseconds: no earlier life of the region may have begun later than that."""
    salt: bytes


class Restored(NamedTuple):
    """What was made: the folders, by node; where the source ended, and with which revision the region begins again."""

    folders: Mapping[str, Path]
    after: int
    after_ms: int
    revision: int


def restore(config: RegionConfig, source: Path, out: Path, why: Why) -> Restored:
    """Make a folder for each node of the region below `out`, which must be empty or not there.

    Raises `Fatal` with the next step if that cannot be done; then nothing is left in `out`.
    """
    _check(config, source, out)
    folders = {node.name: out / node.name for node in config.nodes}
    first, *rest = folders.values()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with unused(source):
            _copy(source, first)
        done = _begin_again(config.name, first, why)
        for folder in rest:
            _copy(first, folder)
        found(folders, fleet=config.fleet, region=config.name)
        sync_folder(out)
    except BaseException as error:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise Fatal(f"{error.filename or out}: {error.strerror}. Nothing was restored.") from error
        raise
    return Restored(folders, *done)


def _check(config: RegionConfig, source: Path, out: Path) -> None:
    if missing := [part for part in _PARTS if not (source / part).is_dir()]:
        raise Fatal(
            f"{source} has no {missing[0]}: name the data folder of a stopped node, or a copy of its two parts."
        )
    owner = owner_of(source)
    if owner is not None and (owner.fleet, owner.region) != (config.fleet, config.name):
        raise Fatal(f"{source} belongs to region {owner.region!r} of fleet {owner.fleet!r}, not to {config.name!r}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Fatal(f"{out} is not empty: name a folder that is to be made.")


def _begin_again(region: str, folder: Path, why: Why) -> tuple[int, int, int]:
    with ExitStack() as closing:
        journal = Journal(folder / "journal")
        closing.callback(journal.close)
        store = RocksStore(folder / "store")
        closing.callback(store.close)
        ledger, recent = audit.Ledger(store), RecentEvents()
        recovered, state = journal.recover(), machine.state_of(store)
        if state.index < recovered.boundary_index:
            raise Fatal(
                f"the store ends at entry {state.index}, and the journal begins after {recovered.boundary_index}: they"
                " were not copied together"
            )
        for entry in recovered.entries:
            if entry.index > state.index:
                applied = machine.apply(
                    store, entry.index, entry.term, entry.payload, recent=recent, annex=ledger, state=state
                )
                recent.took(applied)
                state = applied.state
        if scope_of(partitions.system(region)) not in machine.scopes(store):
            raise Fatal(f"it holds nothing of region {region!r}: is it of another one?")
        revision, term = restorations.revision_at(why.at_ms), max(state.term, recovered.term)
        if revision <= state.revision:
            raise Fatal(f"the region was at revision {state.revision} already: is this machine's clock behind?")
        _carry_outcomes(store, state, revision)
        restored = _resume(store, ledger, revision, term, partitions.system(region), why)
        journal.write([Reset(restored.index, term), Meta(term, None)])
        store.sync()
        return state.revision, state.at_ms, restored.revision


def _resume(store: RocksStore, ledger: audit.Ledger, revision: int, term: int, system: Partition, why: Why) -> State:
    """Apply one more entry, with which the region begins again after `revision`; return the state after it."""
    state = machine.state_of(store)
    working = Working(store, state=state)
    working.at_ms, working.salt = max(state.at_ms, why.at_ms), why.salt
    working.skip(revision)
    tx = Tx(working.view, system, revision + 1, actor="", action="Restore", reason=why.reason, at_ms=working.at_ms)
    reply = restorations.restore(tx, state.revision, state.at_ms, working.span)
    txn = tx.seal(None, reply.SerializeToString())
    outcome = working.run(txn)
    if outcome.verdict != Outcome.COMMITTED:
        raise Fatal(f"the region cannot begin again: {outcome.detail}")
    entry = Entry(base=working.base, at_ms=working.at_ms, salt=why.salt, txns=[txn], base_hash=working.base_hash)
    return working.finish(store, state.index + 1, term, machine.pack(entry), ledger).state


def _carry_outcomes(store: RocksStore, state: State, revision: int) -> None:
    """Have what was answered before found where requests are looked up from `revision` on.

    A request that the source knows is answered again as it was, whoever makes it; only others are not known.
    """
    span = state.outcome_span
    to = keys.generation(revision // span)
    for generation in range(max(0, state.revision // span - 1), state.revision // span + 1):
        batch = Batch()
        for row, packed in store.scan(*keys.children(keys.generation(generation))):
            batch.puts[to + row[len(to) :]] = packed
            if len(batch.puts) == _CARRIED:
                store.commit(batch)
                batch = Batch()
        store.commit(batch)


def _copy(source: Path, folder: Path) -> None:
    """Copy journal and store, durably. Raises OSError."""
    for part in _PARTS:
        for parent, _, names in os.walk(source / part, onerror=_give_up):
            to = folder / Path(parent).relative_to(source)
            to.mkdir(parents=True)
            for name in names:
                # RocksDB's own lock, and what it says for people.
                if name != "LOCK" and not name.startswith("LOG"):
                    _copy_file(Path(parent) / name, to / name)
            sync_folder(to)
    sync_folder(folder)


def _give_up(error: OSError) -> None:
    # What cannot be listed would be left out, silently.
    raise error


def _copy_file(source: Path, to: Path) -> None:
    with source.open("rb") as reading, to.open("xb") as writing:
        shutil.copyfileobj(reading, writing, _COPY_BYTES)
        writing.flush()
        os.fsync(writing.fileno())
