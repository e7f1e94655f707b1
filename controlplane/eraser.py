"""What was erased from the log's state goes from everywhere else too: the region's store, and each node's files.

Theory of operation. An erasure is a record (`features.erasure`), of this region or copied from another one. Every node
keeps in mind which are not swept. The leader looks for what is left of them in its own store, in a thread and in a view
of one moment, for many in one go; it has the log erase that in steps, the last of which says of an erasure that it is
swept. Whoever leads next goes on, or begins again.

When a node has applied that, its own files still hold what was erased: the log's entries, deleted rows, snapshots.
Each node, the leader or not, has them scrubbed then, and says in its status how far it has come. What is recorded of it
lies in its folder, so a node that stopped half-way, or was away, does it when it is back.

1. Nothing that was written after an erasure is touched by it.
2. A copy is swept only when this region has followed its home up to the erasure: nothing older can come any more.
3. A node that says it is scrubbed has no file left that is older than that revision's effects.
4. What was erased long ago costs nothing: it is looked at when a node starts, or takes another state over, in a thread.
   Until that has ended something is said to be pending.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Final, Protocol

from controlplane.errors import ControlPlaneError
from controlplane.features import erasure, federation, moves, partitions
from controlplane.features.erasure import Traces, Unswept, Wanted
from controlplane.kernel import keys
from controlplane.kernel.machine import Applied, Changed
from controlplane.kernel.transaction import scope_of
from controlplane.node import Node
from controlplane.v1.api_pb2 import Erasures
from controlplane.v1.records_pb2 import Partition, Reach
from controlplane.waiting import Feature

_LOG = logging.getLogger(__name__)

RETRY_S: Final = 0.25
"""How soon is tried again what could not be done yet."""
_TIMEOUT_S = 5.0
_PAUSE_MAX_S = 30.0
_PAUSE_S = 0.0005
_AT_ONCE: Final = 64
"""Erasures that are swept in one go."""


class Files(Protocol):
    """A node's folder; `replication.raft.RaftLog` is one."""

    @property
    def scrubbed(self) -> int:
        """The last revision for which `scrub` came to its end."""

    async def scrub(self, revision: int) -> None:
        """Leave nothing in any file that is gone from the state by now, and record `revision` for it durably.

        Raises `Unavailable` if that was not possible yet.
        """


class Eraser:
    """One node's part in erasing. Without `files` there is nothing to scrub."""

    def __init__(self, node: Node, files: Files | None = None) -> None:
        self._node, self._files = node, files
        self._system = partitions.system(node.region)
        self._unswept: Unswept | None = None
        self._meanwhile: list[Changed] = []
        """What was applied since a look began."""
        self._looks = 0
        self._scrubbed = 0 if files is None else files.scrubbed
        self._news, self._is_due = asyncio.Event(), asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        """Begin; sweeping is idle unless this node leads."""
        self._node.on_applied(self._took)
        self._node.on_reloaded(self._forget)
        self._node.log.on_change(self._news.set)
        self._forget()
        work = [self._sweep_forever()] if self._files is None else [self._sweep_forever(), self._scrub_forever()]
        self._tasks = tuple(self._node.needs(asyncio.create_task(each, name="eraser")) for each in work)

    async def stop(self) -> None:
        """Stop at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def report(self) -> Erasures:
        """How far this node is. What it has to look for yet counts as one that is pending."""
        due = self._due
        pending = 1 if self._unswept is None else self._unswept.count(self._among())
        return Erasures(pending=pending, due=due, scrubbed=due if self._files is None else self._scrubbed)

    @property
    def _due(self) -> int:
        return 0 if self._unswept is None else self._unswept.due

    def _among(self) -> list[Partition]:
        return [*self._node.partitions.values(), *self._node.abroad.everywhere()]

    def _took(self, applied: Applied) -> None:
        changed = erasure.about_erasures(applied.changed)
        if not changed:
            return
        self._node.forget_past()
        if self._unswept is None:
            self._meanwhile += changed
        else:
            self._unswept.took(self._node.store, changed)
        self._wake()

    def _forget(self) -> None:
        """Look at the store anew: it is another one."""
        self._unswept = None
        self._meanwhile.clear()
        self._looks += 1
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._is_due.set()

    async def _look(self) -> Unswept:
        """What is to be done, by all that is in the store."""
        while self._unswept is None:
            look = self._looks
            self._meanwhile.clear()
            view = self._node.store.snapshot()
            try:
                found = await asyncio.to_thread(Unswept, view, self._node.region, _pause)
            finally:
                view.close()
            if look == self._looks:
                found.took(self._node.store, self._meanwhile)
                self._meanwhile.clear()
                self._unswept = found
                self._is_due.set()
        return self._unswept

    # -- the region's store

    async def _sweep_forever(self) -> None:
        while True:
            unswept = await self._look()
            if self._node.log.status().ready and (chosen := self._chosen(unswept)):
                await self._sweep(chosen)
            with contextlib.suppress(TimeoutError):
                # A partition of another region may become known, and its copy whole.
                async with asyncio.timeout(RETRY_S if unswept else None):
                    await self._news.wait()
            self._news.clear()

    def _chosen(self, unswept: Unswept) -> list[Wanted]:
        """Those that are swept next; of the same in two partitions, one at home here goes before its copy."""
        chosen: dict[str, Wanted] = {}
        for each in unswept.wanted(self._node.region, self._among(), self._complete_upto):
            chosen.setdefault(each.name, each)
            if len(chosen) == _AT_ONCE:
                break
        return [*chosen.values()]

    def _complete_upto(self, partition: Partition) -> int:
        """The revision of a partition's home up to which nothing older can come any more."""
        if partition.home == self._node.region:
            return moves.ALL
        home, word = keys.home_and_reach(scope_of(partition))
        reach: Reach = Reach.Value(word)  # type: ignore[assignment]
        cursor = federation.cursor_at(self._node.store, self._node.region, home, reach)
        return -1 if cursor.listing else cursor.revision

    async def _sweep(self, wanted: Sequence[Wanted]) -> None:
        view = self._node.store.snapshot()
        try:
            found = await asyncio.to_thread(erasure.traces, view, wanted, _pause)
        finally:
            view.close()
        try:
            # All replicas erase the rows of an entry in one turn of their loops, so they go in small parts.
            for step in erasure.sweeping(found):
                await self._transact(step)
        except ControlPlaneError as error:
            self._put_off(error)
            return
        noted = await asyncio.gather(*map(self._note, wanted, found), return_exceptions=True)
        failed = [each for each in noted if each is not None]
        for each in failed:
            if not isinstance(each, ControlPlaneError):
                raise each
        if failed:
            self._put_off(failed[0])

    async def _note(self, wanted: Wanted, left: Traces) -> None:
        for step in erasure.noting(left, wanted):
            await self._transact(step)

    async def _transact(self, step: Feature) -> None:
        await self._node.transact(self._system, "Erase", step, timeout_s=_TIMEOUT_S)

    def _put_off(self, error: BaseException) -> None:
        _LOG.warning("erasures could not be swept, and will be tried again: %s", error)

    # -- this node's files

    async def _scrub_forever(self) -> None:
        assert self._files is not None
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            pause_s = RETRY_S
            while self._scrubbed < (due := self._due):
                try:
                    await self._files.scrub(due)
                    self._scrubbed = due
                except ControlPlaneError as error:
                    # Each attempt may write all files anew.
                    _LOG.warning("files could not be scrubbed, and will be tried again in %s s: %s", pause_s, error)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _PAUSE_MAX_S)


def _pause() -> None:
    """Let the event loop's thread have the interpreter."""
    time.sleep(_PAUSE_S)
