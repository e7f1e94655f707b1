"""What the ledger costs where everything else is cheap: one node in this process, without consensus, TLS or syncing.

Planning, applying and storing are then all there is, so the share of the ledger is larger than in a region.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from google.protobuf.message import Message

from bench import load
from bench.side import CALL_TIMEOUT_S, VALUE, Write
from bench.unledgered import NoLedger
from controlplane.features import audit
from controlplane.node import Call, Node
from controlplane.process import wall_ms
from controlplane.replication.local import LocalLog
from controlplane.storage import RocksStore
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition, Reach, Scope, ScopeKind

_REGION, _ENVIRONMENT = "eu-west", "prod"
_ACTOR = f"controlplane://bench/{_ENVIRONMENT}/{_REGION}/operator/bench"
_WORKERS = 64
_PARTITION = Partition(
    id=f"{_REGION}.{_ENVIRONMENT}.all",
    home=_REGION,
    epoch=1,
    reach=Reach.HOME_ONLY,
    environment=_ENVIRONMENT,
    default_for=["workflow", "switch"],
)


class Alone:
    """A node by itself, and closed loops of writes to it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._with, self._without = node.ledger, NoLedger(node.store)
        self._versions: dict[int, int] = {}
        self._engaged: set[int] = set()

    @property
    def leaves(self) -> int:
        """Of its ledger."""
        return self._with.size

    async def rates(self, *, ledger: bool, seconds: float) -> dict[str, float]:
        """Writes per second with or without the ledger: of workflows, which it ignores, and of audited switches.

        Those of name + "_cpu" are per second of this process on the processor.
        """
        self._node.ledger = self._with if ledger else self._without
        loads: dict[str, Write] = {"writes": self._write, "switches": self._switch}
        rates = {}
        for name, write in loads.items():
            rates[name], rates[f"{name}_cpu"] = await load.costed(
                write, time.process_time, workers=_WORKERS, seconds=seconds, warm_s=0.2
            )
        return rates

    async def _write(self, worker: int) -> None:
        version, header, name = self._versions.get(worker), _header(), f"bench/{worker:06}"
        if version is None:
            first = api.CreateWorkflowRequest(header=header, id=name, state=VALUE)
            packed = await self._call("CreateWorkflow", first)
            self._versions[worker] = api.CreateWorkflowReply.FromString(packed).version
        else:
            next_ = api.CompareAndSwapWorkflowRequest(header=header, id=name, version=version, state=VALUE)
            packed = await self._call("CompareAndSwapWorkflow", next_)
            self._versions[worker] = api.CompareAndSwapWorkflowReply.FromString(packed).version

    async def _switch(self, worker: int) -> None:
        header = _header()
        scope = Scope(kind=ScopeKind.SCOPE_TENANT, name=f"tenant-{worker}")
        if worker in self._engaged:
            await self._call("ReleaseSwitch", api.ReleaseSwitchRequest(header=header, scope=scope))
        else:
            await self._call("EngageSwitch", api.EngageSwitchRequest(header=header, scope=scope))
        self._engaged.symmetric_difference_update({worker})

    async def _call(self, method: str, request: Message) -> bytes:
        deadline = self._node.clock() + CALL_TIMEOUT_S
        return await self._node.submit(Call(method, request.SerializeToString(), _ACTOR, _ENVIRONMENT, deadline))


@asynccontextmanager
async def alone(folder: Path) -> AsyncIterator[Alone]:
    """A node with its store in `folder`."""
    store = RocksStore(folder)
    try:
        node = Node(
            fleet="bench",
            region=_REGION,
            name="n1",
            partitions=[_PARTITION],
            store=store,
            log=LocalLog("n1"),
            clock=asyncio.get_running_loop().time,
            wall_ms=wall_ms,
            entropy=os.urandom,
        )
        await node.start()
        try:
            yield Alone(node)
        finally:
            await node.stop()
    finally:
        store.close()


def leaves_in(folder: Path) -> int:
    """Leaves of the ledger in the store of a node that has ended."""
    store = RocksStore(folder)
    try:
        return audit.frontier_at(store).size
    finally:
        store.close()


def _header() -> api.RequestHeader:
    return api.RequestHeader(request_id=os.urandom(16), reason="benchmark")
