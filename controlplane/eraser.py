"""What was erased from the log's state goes from everywhere else too: the region's store, and each node's files.

Theory of operation. An erasure is a record (`features.erasure`), of this region or copied from another one. The leader
looks for what is left of it in its own store, in a thread and in a view of one moment, and has the log erase that in
steps; the last one says that the erasure is swept. Whoever leads next goes on, or begins again.

When a node has applied that, its own files still hold what was erased: the log's entries, deleted rows, snapshots.
Each node, the leader or not, has them scrubbed then, and says in its status how far it has come. What is recorded of it
lies in its folder, so a node that stopped half-way, or was away, does it when it is back.

1. Nothing that was written after an erasure is touched by it.
2. A copy is swept only when this region has followed its home up to the erasure: nothing older can come any more.
3. A node that says it is scrubbed has no file left that is older than that revision's effects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final, Protocol

from controlplane.errors import ControlPlaneError
from controlplane.features import erasure, federation, partitions
from controlplane.features.erasure import Wanted
from controlplane.kernel import keys
from controlplane.kernel.machine import Applied
from controlplane.node import Node
from controlplane.v1.api_pb2 import Erasures
from controlplane.v1.records_pb2 import Reach

_LOG = logging.getLogger(__name__)

RETRY_S: Final = 0.25
"""How soon is tried again what could not be done yet."""
_TIMEOUT_S = 5.0
_PAUSE_MAX_S = 30.0
_PAUSE_S = 0.0005


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
        self._kinds = {kind.name: keys.text(kind.name) for kind in (erasure.ERASURE, erasure.ERASED)}
        self._pending: list[Wanted] = []
        self._due = 0
        self._scrubbed = 0 if files is None else files.scrubbed
        self._outdated = True
        self._news, self._is_due = asyncio.Event(), asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        """Begin; sweeping is idle unless this node leads."""
        self._node.on_applied(self._took)
        self._node.on_reloaded(self._wake)
        self._node.log.on_change(self._news.set)
        self._wake()
        work = [self._sweep_forever()] if self._files is None else [self._sweep_forever(), self._scrub_forever()]
        self._tasks = tuple(self._node.needs(asyncio.create_task(each, name="eraser")) for each in work)

    async def stop(self) -> None:
        """Stop at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def report(self) -> Erasures:
        """How far this node is."""
        self._look()
        scrubbed = self._due if self._files is None else self._scrubbed
        return Erasures(pending=len(self._pending), due=self._due, scrubbed=scrubbed)

    def _took(self, applied: Applied) -> None:
        for changed in applied.changed:
            # A name may look like a kind.
            if any(mark in changed.key for mark in self._kinds.values()) and (
                keys.decode(changed.key).kind in self._kinds
            ):
                self._node.forget_past()
                self._wake()
                return

    def _wake(self) -> None:
        self._outdated = True
        self._news.set()
        self._is_due.set()

    def _look(self) -> None:
        """See in the store what is to be done, if that may have changed."""
        if not self._outdated:
            return
        self._outdated = False
        node = self._node
        among = [*node.partitions.values(), *node.abroad.everywhere()]
        self._pending = erasure.pending(node.store, node.region, among)
        self._due = erasure.due(node.store, node.region)

    # -- the region's store

    async def _sweep_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if self._pending else None):
                    await self._news.wait()
            self._news.clear()
            # A partition of another region may have become known since.
            self._outdated = self._outdated or bool(self._pending)
            self._look()
            for wanted in self._pending:
                if self._node.log.status().ready and self._is_whole(wanted):
                    await self._sweep(wanted)

    def _is_whole(self, wanted: Wanted) -> bool:
        """Whether nothing older than the erasure can come any more."""
        if wanted.at_home:
            return True
        home, word = keys.home_and_reach(wanted.scope)
        reach: Reach = Reach.Value(word)  # type: ignore[assignment]
        cursor = federation.cursor_at(self._node.store, self._node.region, home, reach)
        return not cursor.listing and cursor.revision >= wanted.upto

    async def _sweep(self, wanted: Wanted) -> None:
        node = self._node
        view = node.store.snapshot()
        try:
            found = await asyncio.to_thread(erasure.traces, view, wanted, _pause)
        finally:
            view.close()
        try:
            for step in erasure.steps(found, wanted):
                await node.transact(self._system, "Erase", step, timeout_s=_TIMEOUT_S)
        except ControlPlaneError as error:
            _LOG.warning("an erasure could not be swept, and will be tried again: %s", error)

    # -- this node's files

    async def _scrub_forever(self) -> None:
        assert self._files is not None
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            self._look()
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
                    self._look()


def _pause() -> None:
    """Let the event loop's thread have the interpreter."""
    time.sleep(_PAUSE_S)
