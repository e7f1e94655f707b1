"""What operators ask about partitions: where they are at home, what becomes of a move, and what was given up in one."""

from __future__ import annotations

from itertools import islice

from controlplane import limits
from controlplane.errors import Denied, NotFound, Refused
from controlplane.features import checks, moves
from controlplane.federation import Federation
from controlplane.federation.mover import moved_at
from controlplane.node import AGE_UNKNOWN_MS, Call, Node
from controlplane.server.region import RegionView
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Move, Partition
from controlplane.watch import change_of

_COUNTED_MAX = 1000


class Partitions:
    """Answers from this node's replica; a move is the leader's."""

    def __init__(self, node: Node, region: RegionView, federation: Federation | None) -> None:
        self._node, self._region, self._federation = node, region, federation

    async def answer(self, call: Call) -> bytes:
        """Answer a call that has one reply. Raises the eight errors."""
        if call.method == "MovePartition":
            return (await self._move(call.read(api.MovePartitionRequest), call)).SerializeToString()
        if call.method == "ListQuarantine":
            listed = call.read(api.ListQuarantineRequest)
            await self._node.consistent(listed.header, call.deadline)
            return self._quarantine(listed, call).SerializeToString()
        request = call.read(api.ListPartitionsRequest)
        await self._node.consistent(request.header, call.deadline)
        every = [each for each in self._node.places.every() if each.environment == call.environment]
        if request.partition:
            every = [self._named(request.partition, call)]
        return api.ListPartitionsReply(
            header=self._region.header(), partitions=[self._view(each) for each in every]
        ).SerializeToString()

    async def _move(self, request: api.MovePartitionRequest, call: Call) -> api.MovePartitionReply:
        if self._federation is None:
            raise Refused("this region knows no other", reason="NO_OTHER_REGION")
        checks.free_text(request.header.reason, "header.reason")
        await self._federation.mover.move(call.actor, call.environment, request)
        return api.MovePartitionReply(
            header=self._region.header(), partition=self._view(self._named(request.partition, call))
        )

    def _quarantine(self, request: api.ListQuarantineRequest, call: Call) -> api.ListQuarantineReply:
        checks.between(request.limit, 0, limits.PAGE_MAX, "limit")
        partition = self._named(request.partition, call)
        found = moves.quarantined(self._node.store, self._node.region, partition, request.after)
        reply, room = api.ListQuarantineReply(header=self._region.header()), limits.PAGE_BYTES_MAX
        for event in found:
            if len(reply.changes) == (request.limit or limits.PAGE_DEFAULT) or (reply.changes and room <= 0):
                reply.more = True
                break
            reply.changes.append(change_of(event))
            reply.next = event.key
            room -= len(event.value)
        return reply

    def _named(self, name: str, call: Call) -> Partition:
        found = self._node.places.routed(checks.name(name, "partition"))
        if found is None:
            raise NotFound("no such partition is known here", reason="PARTITION_UNKNOWN", hint="cpctl partition list")
        if found.environment != call.environment:
            raise Denied("the partition belongs to another environment", reason="ENVIRONMENT_MISMATCH")
        return found

    def _view(self, partition: Partition) -> api.PartitionView:
        node, name = self._node, partition.id
        view = api.PartitionView(partition=partition, state=self._state(partition))
        move = node.places.moves.get(name)
        if move is not None:
            view.move.CopyFrom(move)
            view.moved.CopyFrom(moved_at(node, name))
        if self._federation is not None:
            view.waits_for = self._federation.mover.waits_for.get(name, "")
            cursor, age_ms = self._federation.mover.copy_of(partition)
            if cursor is not None:
                view.copy.CopyFrom(
                    api.View(
                        reach=cursor.reach,
                        revision=cursor.revision,
                        age_ms=min(age_ms, AGE_UNKNOWN_MS),
                        listing=cursor.listing,
                    )
                )
        given_up = moves.quarantined(node.store, node.region, partition)
        view.quarantined = sum(1 for _ in islice(given_up, _COUNTED_MAX))
        return view

    def _state(self, partition: Partition) -> str:
        places, name = self._node.places, partition.id
        if name in places.home:
            return "sealed" if places.sealed(name) is not None else "home"
        move = places.moves.get(name)
        if move is not None and move.phase == Move.ADOPTING:
            return "adopting"
        return "copy" if places.shown(name) is not None else "left"
