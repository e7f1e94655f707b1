"""The other end of a session, on a real socket, that does as the test says: what no healthy region does on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from controlplane import status
from controlplane.errors import ControlPlaneError
from controlplane.v1 import api_pb2 as api

Answer = bytes | ControlPlaneError | None
Script = Callable[[api.Operation], Answer]


class ScriptedNode:
    """Answers each operation as `script` says; None: no answer. `sessions` holds the open streams."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[api.Operation] = []
        self.messages: list[int] = []
        self.region = api.Region(name="eu-west", leader="a")
        self.revision = 1
        self.age_ms = 0
        self.silent = False
        self.streams: list[tuple[Any, int]] = []
        self.sessions: list[Any] = []
        self.opened = 0
        self.port = 0
        self._writing = asyncio.Lock()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve, api.SessionRequest.FromString, api.SessionReply.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("controlplane.v1.Agents", {"Session": handler}),)
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def push(self, reply: api.WatchReply) -> None:
        """Send a message on every watch that is open."""
        for context, number in self.streams:
            await self._write(
                context, self._reply(api.OperationReply(id=number, reply=reply.SerializeToString(), more=True))
            )

    async def lead(self, leader: str, address: str) -> None:
        """Say that another node leads."""
        self.region = api.Region(name="eu-west", leader=leader, leader_address=address)
        for context in self.sessions:
            await self._write(context, self._reply(region=self.region))

    async def _write(self, context: Any, reply: api.SessionReply) -> None:
        """Write one at a time, as gRPC wants it."""
        async with self._writing:
            await context.write(reply)

    def _reply(self, *replies: api.OperationReply, region: api.Region | None = None) -> api.SessionReply:
        return api.SessionReply(replies=replies, region=region, revision=self.revision, age_ms=self.age_ms)

    async def _serve(self, requests: AsyncIterator[api.SessionRequest], context: Any) -> None:
        self.sessions.append(context)
        self.opened += 1
        await self._write(context, self._reply(region=self.region))
        try:
            async for request in requests:
                self.messages.append(len(request.operations))
                if not self.silent:
                    await self._write(context, self._reply(*self._answers(context, request)))
        finally:
            self.sessions.remove(context)
            self.streams = [each for each in self.streams if each[0] is not context]

    def _answers(self, context: Any, request: api.SessionRequest) -> list[api.OperationReply]:
        replies = []
        for operation in request.operations:
            self.seen.append(operation)
            if operation.cancel:
                self.streams = [each for each in self.streams if each != (context, operation.id)]
                continue
            if operation.method == "GetRegion":
                reply = api.GetRegionReply(region=self.region).SerializeToString()
                replies.append(api.OperationReply(id=operation.id, reply=reply))
                continue
            answer = self.script(operation)
            if isinstance(answer, ControlPlaneError):
                replies.append(api.OperationReply(id=operation.id, status=status.encode(answer)))
            elif operation.method == "Watch":
                self.streams.append((context, operation.id))
            elif answer is not None:
                replies.append(api.OperationReply(id=operation.id, reply=answer))
        return replies


async def connected(*nodes: ScriptedNode) -> list[ScriptedNode]:
    """Return the nodes, the one that the client chose first, as soon as the others were let go."""
    await eventually(lambda: sum(len(node.sessions) for node in nodes) == 1)
    return sorted(nodes, key=lambda node: not node.sessions)


@asynccontextmanager
async def scripted(*scripts: Script) -> AsyncIterator[list[ScriptedNode]]:
    """Start one node per script."""
    nodes = [ScriptedNode(script) for script in scripts]
    for node in nodes:
        await node.start()
    try:
        yield nodes
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until a condition of the test's own making holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it is about sockets and other tasks, that set no event here.
            await asyncio.sleep(0.002)


def created(version: int = 1, revision: int = 2) -> bytes:
    """Return the reply to a creation."""
    return api.CreateWorkflowReply(header=api.ReplyHeader(revision=revision), version=version).SerializeToString()
