"""Three regions of real nodes whose links pass through this process in clear.

A `Tee` stands on each link where the relay of other fleets stands. It has the certificates of both ends: to the one
that calls it is the region called, to that region it is the caller. So it sees every message before it is encrypted,
writes each down, and can hold either direction, cut both, and stop after a page of a listing.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from chaos.leaks_search import HOME, JURISDICTIONS
from controlplane import certs, config, geography, limits, signing
from controlplane.federation.links import ADOPT, COSIGN, FOLLOW, FORWARD, packed
from controlplane.loopback import PINNED, Certificate, LoopbackRegion, Place, Program, free_ports
from controlplane.v1 import federation_pb2 as wire

Hear = Callable[[str, bytes], None]
"""Takes one message that went to a region, in clear."""

READY_S: Final = 60.0
_STOP_S = 20.0
_GONE_S = 5.0
_OPTIONS = [
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 900),
]


class Tee:
    """The link by which nodes of region `one` call a node of `other`: passes messages on, and tells what they were."""

    def __init__(self, port: int, target: str, one: Certificate, other: Certificate, hear: tuple[Hear, Hear]) -> None:
        """`hear` is told what goes to `one`, and what goes to `other`."""
        self.address, self._target = f"127.0.0.1:{port}", target
        self._one, self._other = one, other
        self._to_one, self._to_other = hear
        self._server: grpc.aio.Server | None = None
        self._channel: grpc.aio.Channel | None = None
        self._open = {"one": asyncio.Event(), "other": asyncio.Event()}
        self.release()
        self.hold_after_page = False
        """After a page of a listing that is not the last, nothing goes to `one` until `release`."""
        self.seen: Counter[str] = Counter()
        """Messages to `one` by sort: of copying as they are called there, and "forwarded", "cosigned", "adopted"."""

    async def heal(self) -> None:
        """Carry calls from now on."""
        self.release()
        if self._server is not None:
            return
        server = grpc.aio.server(options=_OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Follow": grpc.stream_stream_rpc_method_handler(self._follow),
            "Forward": grpc.unary_unary_rpc_method_handler(self._unary(FORWARD, "forwarded")),
            "Cosign": grpc.unary_unary_rpc_method_handler(self._unary(COSIGN, "cosigned")),
            "Adopt": grpc.unary_unary_rpc_method_handler(self._unary(ADOPT, "adopted")),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("controlplane.v1.Federation", handlers),))
        ca, key, certificate = _read(self._other)
        secure = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
        server.add_secure_port(self.address, secure)
        self._channel = grpc.aio.secure_channel(self._target, grpc.ssl_channel_credentials(*_read(self._one)), _OPTIONS)
        await server.start()
        self._server = server

    async def cut(self) -> None:
        """End what there is, and take nothing new."""
        server, self._server = self._server, None
        if server is not None and self._channel is not None:
            await server.stop(0)
            await self._channel.close(0)
        self.release()

    def hold(self, towards: str) -> None:
        """Let nothing through to "one" or to "other": what is said meanwhile waits, as it would for TCP."""
        self._open[towards].clear()

    def release(self) -> None:
        """Let everything through again."""
        for event in self._open.values():
            event.set()

    async def _follow(self, _: object, context: Any) -> None:
        assert self._channel is not None
        call: Any = self._channel.stream_stream(FOLLOW)()
        onwards = asyncio.create_task(self._onwards(context, call))
        try:
            with contextlib.suppress(grpc.aio.AioRpcError):
                while (message := await call.read()) is not grpc.aio.EOF:
                    await self._open["one"].wait()
                    self._note(message)
                    await context.write(message)
            await self._end(context, call)
        finally:
            onwards.cancel()
            await asyncio.gather(onwards, return_exceptions=True)
            call.cancel()

    async def _onwards(self, context: Any, call: Any) -> None:
        while isinstance(message := await context.read(), bytes):
            self._to_other("Follow", message)
            await self._open["other"].wait()
            await call.write(message)
        await call.done_writing()

    async def _end(self, context: Any, call: Any) -> None:
        code, text, trailers = await call.code(), await call.details() or "", await call.trailing_metadata() or ()
        self._to_one(f"end of Follow: {code.name}", _told(text, trailers))
        if code is not grpc.StatusCode.OK:
            await context.abort(code, text, tuple((name, value) for name, value in trailers))

    def _note(self, message: bytes) -> None:
        self._to_one("Follow", message)
        reply = wire.FollowReply.FromString(message)
        self.seen[reply.WhichOneof("reply") or ""] += 1
        if self.hold_after_page and reply.HasField("page") and not reply.page.last:
            self.hold_after_page = False
            self.hold("one")

    def _unary(self, method: str, sort: str) -> Any:
        async def handle(request: bytes, context: Any) -> bytes:
            assert self._channel is not None
            self._to_other(method, request)
            await self._open["other"].wait()
            try:
                ask: Any = self._channel.unary_unary(method)
                reply: bytes = await ask(request, timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                text, trailers = error.details() or "", error.trailing_metadata() or ()
                await self._open["one"].wait()
                self._to_one(f"error of {method}", _told(text, trailers))
                await context.abort(error.code(), text, tuple((str(name), value) for name, value in trailers))
                raise AssertionError("abort raises") from error
            await self._open["one"].wait()
            self.seen[sort] += 1
            self._to_one(method, reply)
            return reply

        return handle


class Fleet:
    """The regions of `JURISDICTIONS`, with so many nodes each, and tees on all links.

    Two partitions of `HOME` have planted words in their ids. Use it as a context manager in one event loop; it ends
    every process.
    """

    def __init__(
        self,
        folder: Path,
        named: Mapping[str, str],
        sizes: Mapping[str, int],
        hear: Callable[[str], Hear],
        *,
        drills: bool = False,
    ):
        """`named`: reach → the word in the id of another partition of `HOME`. `hear(link)` hears what goes over it.

        With `drills` all nodes take faults.
        """
        self.folder, self._named = folder, named
        authority = certs.create_authority("demo", folder / "certificates")
        self.regions: dict[str, LoopbackRegion] = {}
        for name, size in sizes.items():
            (folder / name).mkdir()
            self.regions[name] = LoopbackRegion(folder / name, size=size, name=name, authority=authority, drills=drills)
            signing.new(folder / name / "ledger.key")
        self.tees = {
            (one, other): [
                Tee(port, address, self.certificate(one), self.certificate(other, n), (hear(one), hear(other)))
                for n, (port, address) in enumerate(
                    zip(free_ports(sizes[other]), self.regions[other].addresses, strict=True)
                )
            ]
            for one in sizes
            for other in sizes
            if one != other
        }
        self.may_leave: dict[tuple[str, str], Sequence[str]] = {}
        for name in sizes:
            self.describe(name)

    @property
    def nodes(self) -> list[Program]:
        """Every node of every region."""
        return [node for region in self.regions.values() for node in region.nodes]

    def certificate(self, region: str, number: int = 0) -> Certificate:
        """Who a node of a region is."""
        folder, node = self.folder / region / "certificates", self.regions[region].names[number]
        return Certificate(
            ca=self.folder / "certificates" / "authority.crt", cert=folder / f"{node}.crt", key=folder / f"{node}.key"
        )

    def partitions(self, region: str) -> list[Place]:
        """The partitions of a region."""
        every = [
            Place("config", "global", ("flag",)),
            Place("state", "jurisdiction", ("workflow", "election")),
            Place(PINNED, "home-only", ()),
            Place("switches", "home-only", ("switch",)),
            Place("stops", "global", ("stop",)),
        ]
        return every + ([Place(word, reach, ()) for reach, word in self._named.items()] if region == HOME else [])

    def describe(self, name: str) -> None:
        """Write a region's file anew, as `may_leave` has it; its nodes read it when they start."""
        laws = [f"{law} = {_list(regions)}" for law, regions in JURISDICTIONS.items()]
        own = _law_of(name)
        peers = []
        for other in self.regions:
            if other != name:
                lawful = ("jurisdiction", "global") if own == _law_of(other) else ("global",)
                peers += [
                    "[[peer]]",
                    f'region = "{other}"',
                    f"endpoints = {_list([tee.address for tee in self.tees[name, other]])}",
                    f"certificate_names = {_list(self.regions[other].names)}",
                    f"may_leave = {_list(self.may_leave.get((name, other), lawful))}",
                    f'ledger_key = "../{other}/ledger.key.pub"',
                    "",
                ]
        lines = ['ledger_key = "ledger.key"', "", "[jurisdictions]", *laws, "", *peers]
        self.regions[name].describe(own, self.partitions(name), *lines)

    def terms(self, region: str, peer: str) -> wire.Terms:
        """What nodes of a region say to those of another."""
        return packed(geography.terms(config.load(self.regions[region].file).atlas, peer))

    def between(self, one: str, other: str) -> list[Tee]:
        """All links between two regions."""
        return [*self.tees[one, other], *self.tees[other, one]]

    async def heal(self, *tees: Tee) -> None:
        """Have these links carry calls, or all."""
        await asyncio.gather(*(tee.heal() for tee in tees or [tee for each in self.tees.values() for tee in each]))

    async def cut(self, *tees: Tee) -> None:
        """Cut these links."""
        await asyncio.gather(*(tee.cut() for tee in tees))

    def release(self) -> None:
        """Hold nothing back any more, on any link."""
        for tees in self.tees.values():
            for tee in tees:
                tee.hold_after_page = False
                tee.release()

    def start(self, region: str, how: str = "") -> None:
        """Start the nodes of a region that do not run."""
        for node in self.regions[region].nodes:
            if not node.running:
                node.start(*([how] if how else []))

    async def end(self, region: str, *, politely: bool) -> None:
        """End the nodes of a region: by SIGTERM, or by SIGKILL."""
        for node in self.regions[region].nodes:
            if politely:
                await node.stop(timeout_s=_STOP_S)
            else:
                node.send(signal.SIGKILL)
                await node.ended(timeout_s=_GONE_S)

    async def restart(self, region: str, *, politely: bool) -> None:
        """End the nodes of a region, and start them again."""
        await self.end(region, politely=politely)
        self.start(region)

    def empty(self, region: str, number: int) -> None:
        """Lose the disk of a node that does not run."""
        shutil.rmtree(self.regions[region].data_folder(number))

    @contextlib.asynccontextmanager
    async def running(self, *regions: str) -> AsyncIterator[None]:
        """Have links and `regions` up; on the way out all processes are gone and all links cut."""
        await self.heal()
        try:
            for region in regions:
                self.start(region, "--bootstrap")
            yield
        finally:
            for node in self.nodes:
                node.kill()
            await self.cut(*(tee for each in self.tees.values() for tee in each))


def _law_of(region: str) -> str:
    return next(law for law, regions in JURISDICTIONS.items() if region in regions)


def _list(texts: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def _read(certificate: Certificate) -> tuple[bytes, bytes, bytes]:
    return certificate["ca"].read_bytes(), certificate["key"].read_bytes(), certificate["cert"].read_bytes()


def _told(text: str, trailers: Any) -> bytes:
    """What an error says, with all that it carries."""
    return text.encode() + b"".join(
        str(name).encode() + b"=" + (value if isinstance(value, bytes) else str(value).encode())
        for name, value in trailers
    )
