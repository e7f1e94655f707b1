"""A log of one node: no peers, no elections, no journal. For `controlplane dev` and for tests.

With a store to keep it in, an entry is on disk before it is applied: it is put there beside the state, synced, and only
then handed to the machine, which may answer and show what it applied at once. If the process or the machine it runs on
stops in between, the next start applies it. Without one nothing outlives the process. Each start is a term of its own,
so that the role, term and readiness look like those of a region.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from controlplane.errors import Unavailable
from controlplane.kernel.store import Batch, Store
from controlplane.replication import LogStatus, Machine, Role

_PENDING = b"m/pending"
"""A key of the machine's store, outside of its state: index (8 bytes) and bytes of the newest entry."""


class Durable(Store, Protocol):
    """A store that can be made durable; `storage.RocksStore` is one."""

    def sync(self) -> None:
        """Make everything committed before this call durable. Called from a thread."""


class LocalLog:
    """A `Log` of the node `name` alone; durable if given the `store` that the machine commits to."""

    def __init__(self, name: str, store: Durable | None = None) -> None:
        self._name = name
        self._store = store
        self._machine: Machine | None = None
        self._term = 0
        self._listeners: list[Callable[[], None]] = []
        self._one = asyncio.Lock()

    async def start(self, machine: Machine) -> None:
        """See `Log`."""
        index, term = machine.applied
        self._term = term + 1
        self._machine = machine
        pending = self._store.get(_PENDING) if self._store is not None else None
        if pending is not None and int.from_bytes(pending[:8], "big") == index + 1:
            index += 1
            machine.apply(index, term, pending[8:])
        machine.apply(index + 1, self._term, b"")
        await self._sync()
        self._changed()

    async def stop(self) -> None:
        """See `Log`."""
        async with self._one:
            if self._machine is not None:
                self._machine = None
                await self._sync()

    async def append(self, entry: bytes, *, timeout_s: float) -> int:
        """See `Log`. The wait for the disk is not cut short by `timeout_s`: it ends, or the process does."""
        async with self._one:
            index = self._running().applied[0] + 1
            if self._store is not None:
                self._store.commit(Batch(puts={_PENDING: index.to_bytes(8, "big") + entry}))
                await self._sync()
            self._running().apply(index, self._term, entry)
            return index

    async def barrier(self, *, timeout_s: float) -> None:
        """See `Log`."""
        self._running()

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        """See `Log`; always `Unavailable`."""
        raise Unavailable("there is no other node", reason="TRANSFER_IMPOSSIBLE")

    def status(self) -> LogStatus:
        """See `Log`."""
        applied = self._running().applied[0]
        return LogStatus(
            role=Role.LEADER,
            leader=self._name,
            term=self._term,
            commit=applied,
            applied=applied,
            last=applied,
            ready=True,
            fresh_s=0.0,
            peers={},
        )

    def on_change(self, listener: Callable[[], None]) -> None:
        """See `Log`."""
        self._listeners.append(listener)

    def _running(self) -> Machine:
        if self._machine is None:
            raise Unavailable("this node's log is not running", reason="LOG_NOT_RUNNING")
        return self._machine

    async def _sync(self) -> None:
        if self._store is not None:
            await asyncio.to_thread(self._store.sync)

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
