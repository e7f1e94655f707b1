"""What reviewers read of a region: its ledger, and what this node finds on its own disk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from controlplane import limits, residency
from controlplane.auditor import Auditor
from controlplane.errors import Invalid, NotFound, Unavailable
from controlplane.features import audit
from controlplane.ledger import scan
from controlplane.node import Call, Node
from controlplane.server.region import RegionView
from controlplane.v1 import audit_pb2 as messages

_PAGE_LEAVES = 64
_PAGE_BYTES = limits.MESSAGE_BYTES_MAX // 4
_NODES_MAX = 1024
_PAUSE_S: Final = 0.0005


class Reviewers:
    """Answers from this node's replica. `data` is its folder (None: there is none, and nothing to search)."""

    def __init__(self, node: Node, auditor: Auditor, region: RegionView, data: Path | None) -> None:
        self._node, self._auditor, self._region, self._data = node, auditor, region, data
        self._scanning = False

    async def answer(self, call: Call) -> bytes:
        """Answer a call that has one reply. Raises the eight errors."""
        if call.method == "ScanDisk":
            return (await self._scan(call.read(messages.ScanDiskRequest))).SerializeToString()
        if call.method == "ReadNodes":
            return self._nodes(call.read(messages.ReadNodesRequest)).SerializeToString()
        request = call.read(messages.GetCheckpointRequest)
        await self._node.consistent(request.header, call.deadline)
        return self._checkpoint(request).SerializeToString()

    async def read(self, call: Call) -> AsyncGenerator[bytes, None]:
        """The leaves of a time and their records, opened, in pages."""
        request = call.read(messages.ReadLedgerRequest)
        store, size = self._node.store, self._size(request.size)
        at = max(0, audit.first_leaf_from(store, request.from_ms, size) - 1)
        end = min(size, audit.first_leaf_from(store, request.to_ms + 1, size) + 1)
        while at < end:
            page = messages.ReadLedgerReply(start=at)
            room = _PAGE_BYTES
            while at < end and len(page.leaves) < _PAGE_LEAVES and room > 0:
                room -= self._add(page, at)
                at += 1
            yield page.SerializeToString()
            await asyncio.sleep(0)

    def _add(self, page: messages.ReadLedgerReply, index: int) -> int:
        leaf = audit.leaf_at(self._node.store, index)
        if leaf is None:
            raise NotFound(f"leaf {index} is not here", reason="LEAF_NOT_FOUND")
        page.leaves.append(leaf)
        room = len(leaf)
        for n, name, key, content in audit.opened(self._node.store, index):
            page.records.add(leaf=index, n=n, name=name, key=key or b"", content=content)
            room += len(content)
        return room

    def _size(self, asked: int) -> int:
        if asked > self._auditor.size:
            raise Unavailable(f"this node's ledger has {self._auditor.size} leaves", reason="LEDGER_BEHIND")
        return asked or self._auditor.size

    def _checkpoint(self, request: messages.GetCheckpointRequest) -> messages.GetCheckpointReply:
        size, node = self._size(request.size), self._node
        cosigned = self._auditor.cosigned()
        return messages.GetCheckpointReply(
            header=self._region.header(),
            region=self._region.region(),
            size=size,
            note=self._auditor.note(size),
            cosigned=[
                messages.CosignedCheckpoint(region=each.region, note=each.note)
                for _, each in sorted(cosigned.items())
                if each.size <= size
            ],
            partitions=[
                each for each in node.places.every() if each.home == node.region or each.id in node.places.declared
            ],
        )

    def _nodes(self, request: messages.ReadNodesRequest) -> messages.ReadNodesReply:
        if len(request.nodes) > _NODES_MAX:
            raise Invalid(f"at most {_NODES_MAX} nodes at a time", reason="PAGE_TOO_LARGE")
        read = audit.node_reader(self._node.store)
        try:
            hashes = [read(each.level, each.at) for each in request.nodes]
        except (KeyError, ValueError, OverflowError):
            raise NotFound("no such part of the tree", reason="LEDGER_NODE_NOT_FOUND") from None
        return messages.ReadNodesReply(header=self._region.header(), hashes=hashes)

    async def _scan(self, request: messages.ScanDiskRequest) -> messages.ScanDiskReply:
        """Search the store and all files. One at a time: it reads the whole disk."""
        if self._data is None:
            raise Unavailable("this node has no data folder", reason="NO_DATA_FOLDER")
        if self._scanning:
            raise Unavailable("this node's disk is being searched already", reason="SCAN_UNDER_WAY", hint="ask later")
        node, size, at_ms = self._node, self._auditor.size, time.time_ns() // 1_000_000
        view = node.store.snapshot()
        self._scanning = True
        try:
            files = list(residency.files_below(self._data))
            found = await asyncio.to_thread(residency.search, view, files, node.atlas, _pause)
        except OSError as error:
            raise Unavailable(f"a file cannot be read: {error.strerror}", reason="DISK_UNREADABLE") from error
        finally:
            self._scanning = False
            view.close()
        signer = self._auditor.signed(node.name)
        told = scan.Scan(node.fleet, node.region, node.name, at_ms, size, found.searched, found.foreign)
        return messages.ScanDiskReply(
            header=self._region.header(),
            node=node.name,
            note=b"" if signer is None else scan.sign(told, signer),
            foreign=found.foreign,
            findings=found.described,
        )


def _pause() -> None:
    """Let the event loop's thread have the interpreter."""
    time.sleep(_PAUSE_S)
