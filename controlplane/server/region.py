"""What a node says of its region and of itself."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

from controlplane.config import RegionConfig
from controlplane.errors import Invalid, Unavailable
from controlplane.federation import Federation
from controlplane.node import AGE_UNKNOWN_MS, Call, Node
from controlplane.replication import LogStatus
from controlplane.v1 import api_pb2 as api

VERSION: Final = version("controlplane")


class RegionView:
    """Answers from what this node knows at the moment; only a transfer asks anybody else."""

    def __init__(
        self,
        config: RegionConfig,
        name: str,
        node: Node,
        data: Path | None,
        federation: Federation | None = None,
        erasures: Callable[[], api.Erasures] = api.Erasures,
    ) -> None:
        self._federation, self._erasures = federation, erasures
        self._config, self._name, self._node, self._data = config, name, node, data
        self._addresses = {each.name: each.address for each in config.nodes}
        self._began = node.clock()
        self._led: tuple[str, int] = ("", 0)
        self._led_since = self._began
        self._moment = asyncio.Event()
        self._listeners: set[Callable[[], None]] = set()
        self._stopping = False

    def start(self) -> None:
        """Follow the log."""
        self._node.log.on_change(self._changed)
        self._changed()

    def stop(self) -> None:
        """End every watch of the region."""
        self._stopping = True
        self._wake()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener`, which must not raise or block, whenever the region has another leader or term."""
        self._listeners.add(listener)

    def unsubscribe(self, listener: Callable[[], None]) -> None:
        """Stop calling `listener`."""
        self._listeners.discard(listener)

    def region(self) -> api.Region:
        """The region as this node sees it."""
        leader, term = self._led
        return api.Region(
            fleet=self._config.fleet,
            name=self._config.name,
            jurisdiction=self._config.jurisdiction,
            leader=leader,
            leader_address=self._addresses.get(leader, ""),
            term=term,
            leader_age_ms=int((self._node.clock() - self._led_since) * 1000) if leader else 0,
        )

    @property
    def has_leader(self) -> bool:
        """Whether this node knows a leader, so that it can have any call answered."""
        return bool(self._led[0])

    def answer(self, call: Call) -> bytes:
        """Answer GetRegion or GetStatus. Raises `Invalid` or `Unavailable`."""
        if call.method == "GetRegion":
            call.read(api.GetRegionRequest)
            return api.GetRegionReply(header=self.header(), region=self.region()).SerializeToString()
        call.read(api.GetStatusRequest)
        return self.status().SerializeToString()

    async def watch(self, call: Call) -> AsyncGenerator[bytes, None]:
        """Answer WatchRegion: the region now, and again after each change; what lies between two reads is skipped."""
        call.read(api.WatchRegionRequest)
        while not self._stopping:
            moment = self._moment
            yield api.WatchRegionReply(header=self.header(), region=self.region()).SerializeToString()
            await moment.wait()
        raise Unavailable("the node is stopping", reason="STOPPING", hint="watch at another node")

    async def transfer(self, call: Call) -> bytes:
        """Answer TransferRegion on the leader. Raises `Invalid` or `Unavailable`."""
        request = call.read(api.TransferRegionRequest)
        if not self._node.log.status().ready:
            raise Unavailable("this node does not lead the region", reason="NOT_LEADER")
        if request.target and request.target not in self._addresses:
            nodes = ", ".join(self._addresses)
            raise Invalid(f"there is no such node; the nodes are {nodes}", reason="NODE_UNKNOWN", field="target")
        if request.target == self._name:
            raise Invalid(f"{self._name} leads already", reason="LEADS_ALREADY", field="target")
        timeout_s = max(0.0, call.deadline - self._node.clock())
        leader = await self._node.log.transfer(request.target or None, timeout_s=timeout_s)
        term = self._node.log.status().term
        return api.TransferRegionReply(header=self.header(), leader=leader, term=term).SerializeToString()

    def header(self) -> api.ReplyHeader:
        """What this node has at the moment."""
        node = self._node
        return api.ReplyHeader(
            revision=node.revision, region=self._config.name, age_ms=node.fresh_ms(), node=self._name
        )

    def status(self) -> api.GetStatusReply:
        """Everything that this region's own operators are told."""
        found = self._node.status()
        return api.GetStatusReply(
            header=self.header(),
            region=self.region(),
            node=self._name,
            role=found.log.role.value,
            commit=found.log.commit,
            applied=found.log.applied,
            last=found.log.last,
            hash=found.hash.hex(),
            members=[self._member(name, found.log) for name in self._addresses],
            records=found.records,
            live_bytes=found.live_bytes,
            quota_bytes=found.quota_bytes,
            watchers=found.watchers,
            uptime_ms=int((self._node.clock() - self._began) * 1000),
            version=VERSION,
            links=self._federation.links.report() if self._federation is not None else (),
            disk_free_bytes=shutil.disk_usage(self._data).free if self._data is not None else 0,
            erasures=self._erasures(),
        )

    def _member(self, name: str, log: LogStatus) -> api.Member:
        member = api.Member(name=name, address=self._addresses[name])
        peer = log.peers.get(name)
        if peer is not None:
            member.connected, member.match, member.state = peer.connected, peer.match, peer.state
            member.heard_ms = AGE_UNKNOWN_MS if peer.heard_s == float("inf") else int(peer.heard_s * 1000)
        elif name == self._name:
            member.connected, member.match = True, log.last
        return member

    def _changed(self) -> None:
        try:
            found = self._node.log.status()
        except Unavailable:
            return
        led = (found.leader or "", found.term)
        if led != self._led:
            self._led, self._led_since = led, self._node.clock()
            self._wake()

    def _wake(self) -> None:
        moment, self._moment = self._moment, asyncio.Event()
        moment.set()
        for listener in tuple(self._listeners):
            listener()
