"""Links between real ports with real certificates: who gets in, in what order, and what a bad peer can do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from controlplane import status
from controlplane.certs import Authority, Life, create_authority
from controlplane.credentials import Pem
from controlplane.errors import ControlPlaneError, Refused
from controlplane.identity import Identity
from controlplane.replication.guard import Malformed
from controlplane.replication.transport import LinkBounds, Transport
from controlplane.v1.peer_pb2 import PeerFrame, PeerHello, RaftBatch, RaftPart
from controlplane.v1.peer_pb2_grpc import PeerStub
from controlplane.v1.raft_pb2 import Append, LogEntry, RaftMessage
from tests.replication.livenodes import FLEET, REGION, signed_by, until

Make = Callable[..., Pem]


@dataclass
class Listener:
    """An owner that writes everything down."""

    name: str
    events: list[str] = field(default_factory=list)
    terms: list[int] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    malformed_at: int = 0
    unwanted: str = ""
    defects: list[BaseException] = field(default_factory=list)
    parts_heard: list[tuple[int, int]] = field(default_factory=list)  # Term, and how many messages were there before.

    def hello(self, peer: str) -> PeerHello:
        return PeerHello(incarnation=f"of {self.name}")

    def meet(self, peer: str, hello: PeerHello) -> None:
        assert hello.incarnation == f"of {peer}"
        if peer == self.unwanted:
            raise Refused("not you", reason="UNWANTED")

    def refused(self, peer: str, error: ControlPlaneError) -> None:
        self.refusals.append(error.reason)

    def defect(self, error: BaseException) -> None:
        self.defects.append(error)

    def up(self, peer: str) -> None:
        self.events.append(f"up {peer}")

    def down(self, peer: str) -> None:
        self.events.append(f"down {peer}")

    def received(self, peer: str, messages: Sequence[RaftMessage]) -> None:
        self.terms += [message.term for message in messages]
        if self.malformed_at in self.terms and self.malformed_at:
            raise Malformed("as told")

    def heard(self, peer: str, term: int) -> None:
        self.parts_heard.append((term, len(self.terms)))


@dataclass
class End:
    transport: Transport
    listener: Listener

    async def stop(self) -> None:
        await self.transport.stop()


async def end(
    name: str,
    credentials: Pem | None,
    peers: Sequence[str] = ("n1", "n2"),
    listen: str = "127.0.0.1:0",
    **bounds: Any,
) -> End:
    listener = Listener(name)
    transport = Transport(
        Identity(FLEET, "all", REGION, "peer", name),
        {peer: "127.0.0.1:1" for peer in peers if peer != name},
        listen,
        credentials,
        listener,
        random=Random(1),
        bounds=LinkBounds(**bounds),
    )
    await transport.start()
    return End(transport, listener)


@contextlib.asynccontextmanager
async def linked(credentials: Make | None, **bounds: Any) -> AsyncIterator[tuple[End, End]]:
    ends = [await end(name, credentials(name) if credentials else None, **bounds) for name in ("n1", "n2")]
    addresses = {each.listener.name: f"127.0.0.1:{each.transport.port}" for each in ends}
    try:
        for each in ends:
            each.transport.dial(addresses)
        await until(
            lambda: all(each.listener.events == [f"up {other}"] for each, other in zip(ends, ("n2", "n1"), strict=True))
        )
        yield ends[0], ends[1]
    finally:
        for each in ends:
            await each.stop()


@pytest.mark.parametrize("secure", [True, False])
async def test_messages_arrive_in_order_both_ways(credentials: Make, secure: bool) -> None:
    async with linked(credentials if secure else None) as (one, two):
        for n in range(1, 301):
            one.transport.send("n2", RaftMessage(term=n))
            two.transport.send("n1", RaftMessage(term=n))
        await until(lambda: one.listener.terms == two.listener.terms == list(range(1, 301)))
        assert one.transport.counters.frames_sent < 300


async def test_a_message_larger_than_a_frame_leaves_in_parts_and_each_is_told(credentials: Make) -> None:
    async with linked(credentials, frame_bytes=1000) as (one, two):
        for n in range(1, 6):
            entry = LogEntry(index=n, payload=os.urandom(200_000 if n == 3 else 400))
            one.transport.send("n2", RaftMessage(term=n, append=Append(entries=[entry])))
        await until(lambda: two.listener.terms == [1, 2, 3, 4, 5])
        # The last one is the message itself.
        assert two.listener.parts_heard == [(3, 2)] * 200
        assert one.transport.counters.messages_sent == two.transport.counters.messages_received == 5
        assert two.transport.counters.frames_malformed == 0


async def test_the_end_of_a_peer_is_news_and_so_is_its_return(credentials: Make) -> None:
    # It is told, and need not be found out by asking whether the peer is still there.
    async with linked(credentials, keepalive_s=600.0, keepalive_timeout_s=600.0) as (one, two):
        port = two.transport.port
        await two.stop()
        await until(lambda: one.listener.events[-1] == "down n2")
        again = await end("n2", credentials("n2"), listen=f"127.0.0.1:{port}")
        again.transport.dial({"n1": f"127.0.0.1:{one.transport.port}"})
        await until(lambda: one.listener.events[-1] == "up n2" and again.listener.events == ["up n1"], 3)
        one.transport.send("n2", RaftMessage(term=7))
        await until(lambda: again.listener.terms == [7])
        await again.stop()


async def test_what_ends_the_dialling_of_a_peer_reaches_the_owner(credentials: Make) -> None:
    async with linked(credentials) as (one, two):

        def explode(peer: str) -> PeerHello:
            raise ZeroDivisionError

        one.listener.hello = explode  # type: ignore[method-assign]
        await two.stop()
        await until(lambda: [type(error) for error in one.listener.defects] == [ZeroDivisionError])


CHILD = """
import asyncio, sys
from pathlib import Path
from tests.replication.test_transport import *

async def main():
    names = ("ca", "certificate", "key", "address")
    ca, certificate, key, address = (Path(sys.argv[1], name).read_bytes() for name in names)
    child = await end("n2", Pem(ca, certificate, key))
    child.transport.dial({"n1": address.decode()})
    print(child.transport.port, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_b15_sigkill_of_a_peer_is_reported_within_milliseconds(tmp_path: Path, credentials: Make) -> None:
    # The kernel tells of the end; nobody has to ask whether the peer is still there.
    one = await end("n1", credentials("n1"), keepalive_s=600.0, keepalive_timeout_s=600.0)
    theirs = credentials("n2")
    contents = {"ca": theirs.authority, "certificate": theirs.certificate, "key": theirs.key}
    for name, content in {**contents, "address": f"127.0.0.1:{one.transport.port}".encode()}.items():
        (tmp_path / name).write_bytes(content)
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(  # noqa: ASYNC220 - it must not die with this loop, and starts at once.
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert child.stdout is not None
    port = await asyncio.to_thread(child.stdout.readline)
    one.transport.dial({"n2": f"127.0.0.1:{port.strip()}"})
    await until(lambda: one.listener.events[:1] == ["up n2"])
    child.kill()
    await until(lambda: one.listener.events[-1] == "down n2")
    child.wait()
    await one.stop()


def hello(name: str = "n2", **changes: Any) -> PeerHello:
    fields = {
        "wire": 1,
        "fleet": FLEET,
        "region": REGION,
        "node": name,
        "to": "n1",
        "process": b"p" * 16,
        "generation": 1,
        "incarnation": f"of {name}",
    }
    return PeerHello(**{**fields, **changes})


async def opened(port: int, credentials: Pem | None, *frames: PeerFrame) -> tuple[Any, Any]:
    """Dial like a peer would, by hand; return the channel and the call after `frames` were written."""
    if credentials is None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    else:
        given = credentials.of_client()
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", given)
    call = PeerStub(channel).Stream(timeout=30)
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
        for frame in frames:
            await call.write(frame)
    return channel, call


async def reason(port: int, credentials: Pem | None, *frames: PeerFrame) -> str:
    """The reason with which the stream is refused; "" if it is not."""
    channel, call = await opened(port, credentials, *frames)
    try:
        if isinstance(await call.read(), PeerFrame):
            return ""
        raise AssertionError("the stream ended without a status")
    except grpc.aio.AioRpcError as error:
        trailers = [(str(name), value) for name, value in error.trailing_metadata() or ()]
        return status.from_call(error.code(), error.details(), trailers).reason
    finally:
        await channel.close()


@contextlib.asynccontextmanager
async def alone(credentials: Make | None, **bounds: Any) -> AsyncIterator[End]:
    one = await end("n1", credentials("n1") if credentials else None, ("n1", "n2", "n3"), **bounds)
    try:
        yield one
    finally:
        await one.stop()


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        ({}, ""),
        ({"region": "elsewhere"}, "PEER_OF_ANOTHER_REGION"),
        ({"fleet": "other"}, "PEER_OF_ANOTHER_REGION"),
        ({"role": "agent", "environment": "prod"}, "PEER_ROLE_REQUIRED"),
        ({"role": "operator", "environment": "prod"}, "PEER_ROLE_REQUIRED"),
        ({"name": "n3"}, "PEER_NAME_MISMATCH"),
        ({"name": "n9"}, "PEER_UNKNOWN"),
        ({"name": "n1"}, "PEER_UNKNOWN"),
    ],
)
async def test_b11_only_the_node_its_certificate_names_gets_in(
    authority: Authority, credentials: Make, identity: dict[str, str], expected: str
) -> None:
    given = {"fleet": FLEET, "environment": "all", "region": REGION, "role": "peer", "name": "n2", **identity}
    # Whom the certificate keeps out is refused before a hello. To write one all the same is to write to a stream that
    # is over, for which gRPC has an error of its own that may come first.
    frames = [PeerFrame(hello=hello())] if expected in ("", "PEER_NAME_MISMATCH") else []
    async with alone(credentials) as one:
        theirs = signed_by(authority, Identity(**given))
        assert await reason(one.transport.port, theirs, *frames) == expected
        assert one.transport.counters.streams_refused == bool(expected)
        assert one.listener.terms == []


async def test_b11_a_certificate_of_another_authority_or_none_or_an_expired_one_stops_at_tls(
    tmp_path: Path, authority: Authority, credentials: Make
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    peer = Identity(FLEET, "all", REGION, "peer", "n2")
    ours = credentials("n2")
    foreign = signed_by(create_authority(FLEET, tmp_path), peer)
    past = Life(now - datetime.timedelta(days=2), now - datetime.timedelta(days=1))
    async with alone(credentials) as one:
        for given in (
            Pem(ours.authority, foreign.certificate, foreign.key),
            signed_by(authority, peer, past),
            None,
        ):
            assert await reason(one.transport.port, given, PeerFrame(hello=hello())) == "CONNECTION_LOST"
        assert await reason(one.transport.port, ours, PeerFrame(hello=hello())) == ""


async def silent(port: int, credentials: Pem) -> tuple[Any, Any]:
    """Open a stream and say nothing; return its channel and the call, which the server answers or not."""
    channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials.of_client())
    return channel, PeerStub(channel).Stream(timeout=30)


async def test_who_is_no_peer_holds_no_stream(authority: Authority, credentials: Make) -> None:
    """It is refused at once, and not when it has kept a stream from the peers for as long as a hello may take."""
    agent = signed_by(authority, Identity(FLEET, "prod", REGION, "agent", "a1"))
    async with alone(credentials, hello_timeout_s=600.0) as one:
        channel, call = await silent(one.transport.port, agent)
        with pytest.raises(grpc.aio.AioRpcError, match="may not open peer streams"):
            await call.read()
        assert one.transport.counters.streams_refused == 1
        await channel.close()


async def test_of_one_peers_streams_only_the_newest_waits_for_its_hello(credentials: Make) -> None:
    async with alone(credentials, hello_timeout_s=600.0, streams_max=4) as one:
        opened_so_far: list[tuple[Any, Any]] = []
        for count in range(10):
            opened_so_far.append(await silent(one.transport.port, credentials("n3")))
            waiting = opened_so_far[-1][1]
            await until(lambda: one.transport._links["n3"].greeting is not None)
            await until(lambda count=count: one.transport.counters.streams_refused == count)  # type: ignore[misc]
        assert not waiting.done()
        for _, call in opened_so_far[:-1]:
            with pytest.raises(grpc.aio.AioRpcError, match="newer stream"):
                await call.read()
        assert await reason(one.transport.port, credentials("n2"), PeerFrame(hello=hello())) == ""
        for channel, _ in opened_so_far:
            await channel.close()


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (PeerFrame(batch=RaftBatch()), "HELLO_MISSING"),
        (PeerFrame(), "HELLO_MISSING"),
        (PeerFrame(hello=hello(wire=2)), "WIRE_VERSION_UNKNOWN"),
        (PeerFrame(hello=hello(fleet="other")), "PEER_OF_ANOTHER_REGION"),
        (PeerFrame(hello=hello(region="other")), "PEER_OF_ANOTHER_REGION"),
        (PeerFrame(hello=hello(to="n3")), "PEER_NAME_MISMATCH"),
        (PeerFrame(hello=hello(process=b"short")), "HELLO_MALFORMED"),
        (PeerFrame(hello=hello(incarnation="x" * 300)), "HELLO_MALFORMED"),
    ],
)
async def test_a_hello_that_does_not_fit_is_refused_with_a_reason(
    credentials: Make, frame: PeerFrame, expected: str
) -> None:
    async with alone(credentials) as one:
        assert await reason(one.transport.port, credentials("n2"), frame) == expected


async def test_a_stream_without_a_hello_is_closed(credentials: Make) -> None:
    async with alone(credentials, hello_timeout_s=0.1) as one:
        assert await reason(one.transport.port, credentials("n2")) == "INVALID"


async def test_the_owner_may_refuse(credentials: Make) -> None:
    async with alone(credentials) as one:
        one.listener.unwanted = "n2"
        assert await reason(one.transport.port, credentials("n2"), PeerFrame(hello=hello())) == "UNWANTED"


async def test_b12_a_newer_stream_fences_the_older(credentials: Make) -> None:
    async with alone(credentials) as one:
        port, theirs = one.transport.port, credentials("n2")

        async def stream(generation: int, process: bytes = b"p" * 16) -> tuple[Any, Any]:
            frame = PeerFrame(hello=hello(generation=generation, process=process))
            channel, call = await opened(port, theirs, frame)
            assert isinstance(await call.read(), PeerFrame)
            return channel, call

        old_channel, old = await stream(5)
        new_channel, new = await stream(6)
        await new.write(PeerFrame(batch=RaftBatch(messages=[RaftMessage(term=6)])))
        # The server may end the old stream before, during or after this write, and gRPC then raises
        # from the write, from the read, or ends the read; that it ended is what counts.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await old.write(PeerFrame(batch=RaftBatch(messages=[RaftMessage(term=5)])))
            assert await old.read() is grpc.aio.EOF
        await asyncio.wait_for(old.code(), 30)
        await until(lambda: one.listener.terms == [6])
        assert await reason(port, theirs, PeerFrame(hello=hello(generation=5))) == "STREAM_STALE"
        assert await reason(port, theirs, PeerFrame(hello=hello(generation=6))) == "STREAM_STALE"
        next_channel, _ = await stream(1, b"q" * 16)
        for channel in (old_channel, new_channel, next_channel):
            await channel.close()


class Greeted:
    """The server's end of a stream that says one thing, and whose greeting does not get through."""

    def __init__(self, first: PeerFrame) -> None:
        self._first = first
        self.greeting = asyncio.Event()

    async def read(self) -> PeerFrame:
        return self._first

    async def write(self, frame: PeerFrame) -> None:
        self.greeting.set()
        await asyncio.Event().wait()


async def test_b12_an_older_stream_that_comes_while_a_newer_one_is_greeted_is_refused() -> None:
    async with alone(None) as one:
        newer = Greeted(PeerFrame(hello=hello(generation=6)))
        serving = asyncio.create_task(one.transport.serve(newer))
        await asyncio.wait_for(newer.greeting.wait(), 30)
        with pytest.raises(Refused, match="newer stream"):
            await asyncio.wait_for(one.transport.serve(Greeted(PeerFrame(hello=hello(generation=5)))), 30)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


WHOLE = RaftMessage(term=3, append=Append(entries=[LogEntry(payload=b"p" * 300)]))


def parts(message: RaftMessage = WHOLE, **changes: Any) -> list[PeerFrame]:
    """`message` in two parts, of which the second is changed."""
    data = message.SerializeToString()
    first = RaftPart(term=3, size=len(data), offset=0, data=data[:100])
    second = {"term": 3, "size": len(data), "offset": 100, "data": data[100:], **changes}
    return [PeerFrame(part=first), PeerFrame(part=RaftPart(**second))]


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        (parts(offset=99), 1),
        (parts(offset=101), 1),
        (parts(offset=0), 1),
        (parts(size=1000), 1),
        (parts(term=4), 1),
        (parts(data=b""), 1),
        (parts(data=b"p" * 1000), 1),
        (parts(RaftMessage(term=4, append=WHOLE.append)), 1),
        ([parts()[0], PeerFrame(batch=RaftBatch(messages=[WHOLE]))], 1),
        ([parts()[0], PeerFrame(hello=hello())], 1),
        (parts()[1:], 0),
        ([PeerFrame(part=RaftPart(term=3, size=100_001, data=b"p"))], 0),
        ([PeerFrame(part=RaftPart(term=3, size=1 << 62, data=b"p"))], 0),
        ([PeerFrame(part=RaftPart(term=3))], 0),
        ([PeerFrame(part=RaftPart(term=3, size=50, data=b"\xff" * 50))], 0),
    ],
)
async def test_b11_parts_that_make_no_message_end_the_stream(frames: list[PeerFrame], told: int) -> None:
    async with alone(None, message_bytes_max=100_000) as one:
        channel, call = await opened(one.transport.port, None, PeerFrame(hello=hello()), *frames)
        with contextlib.suppress(grpc.aio.AioRpcError):
            while isinstance(await call.read(), PeerFrame):
                pass
        assert one.transport.counters.frames_malformed == 1
        assert one.listener.terms == []
        assert len(one.listener.parts_heard) == told
        await channel.close()


async def test_a_drill_that_loses_parts_loses_their_message_and_no_more(credentials: Make) -> None:
    @dataclass
    class Deaf:
        left: int

        def leaving(self, peer: str, message: RaftMessage) -> bool:
            return True

        def arriving(self, peer: str) -> bool:
            self.left -= 1
            return self.left < 0

    async with linked(credentials, frame_bytes=1000) as (one, two):
        large = Append(entries=[LogEntry(payload=bytes(5000))])
        two.transport.disturbance = Deaf(left=6)
        for term in (1, 2):
            one.transport.send("n2", RaftMessage(term=term, append=large))
        await until(lambda: two.listener.terms == [2])
        assert two.listener.parts_heard == [(2, 0)] * 5
        assert one.listener.events == ["up n2"]


async def raw_stream(port: int, credentials: Pem, *frames: bytes) -> grpc.StatusCode:
    given = credentials.of_client()
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", given) as channel:
        call = channel.stream_stream("/controlplane.v1.Peer/Stream")(timeout=30)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for frame in frames:
                await call.write(frame)
            while await call.read() is not grpc.aio.EOF:
                pass
        return await call.code()


async def test_b11_garbage_from_a_certified_peer_ends_its_stream_and_nothing_else(credentials: Make) -> None:
    async with linked(credentials) as (one, two):
        first = PeerFrame(hello=hello("n2", process=b"x" * 16)).SerializeToString()
        for garbage in (b"\xff" * 100, b"\x80\x04cos\nsystem\n", os.urandom(1000), b"\x12\xff\xff\xff\xff\x0f"):
            assert await raw_stream(one.transport.port, credentials("n2"), garbage) is not grpc.StatusCode.OK
            await raw_stream(one.transport.port, credentials("n2"), first, garbage)
            first = PeerFrame(hello=hello("n2", process=os.urandom(16))).SerializeToString()
        await until(lambda: one.transport.is_up("n2") and two.transport.is_up("n1"), 5)
        two.transport.send("n1", RaftMessage(term=9))
        await until(lambda: one.listener.terms == [9])


async def test_b11_plain_bytes_on_the_port_do_no_harm(credentials: Make) -> None:
    async with linked(credentials) as (one, two):
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\x80\x02cos\nsystem\n(S'true'\ntR."):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.transport.port)
            writer.write(garbage)
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(5):
                    await writer.drain()
                    await reader.read()
            writer.close()
        two.transport.send("n1", RaftMessage(term=9))
        await until(lambda: one.listener.terms == [9])
        assert one.listener.events == ["up n2"]


async def test_a_malformed_message_closes_the_link_which_then_comes_back(credentials: Make) -> None:
    async with linked(credentials) as (one, two):
        one.listener.malformed_at = 13
        two.transport.send("n1", RaftMessage(term=13))
        await until(lambda: one.listener.events[:3] == ["up n2", "down n2", "up n2"])
        assert one.transport.counters.frames_malformed == 1


async def test_a_frame_over_the_bound_ends_the_stream(credentials: Make) -> None:
    async with alone(credentials, message_bytes_max=10_000) as one:
        big = RaftMessage(term=1, append=Append(entries=[LogEntry(payload=bytes(20_000))]))
        frames = [PeerFrame(hello=hello()), PeerFrame(batch=RaftBatch(messages=[big]))]
        code = await raw_stream(one.transport.port, credentials("n2"), *(frame.SerializeToString() for frame in frames))
        assert code is not grpc.StatusCode.OK
        assert one.listener.terms == []


async def test_a_peer_that_stops_reading_costs_a_bounded_amount(credentials: Make) -> None:
    async with linked(credentials, waiting_bytes_max=2_000_000) as (one, two):
        await stop_reading(one, two)
        message = RaftMessage(term=1, append=Append(entries=[LogEntry(payload=bytes(100_000))]))
        link = one.transport._links["n2"]
        largest = 0
        for _ in range(400):
            one.transport.send("n2", message)
            largest = max(largest, link.waiting_bytes)
            await asyncio.sleep(0)
        assert largest <= 2_100_000
        assert one.transport.counters.messages_dropped > 200
        await until(lambda: one.listener.events[-1] == "down n2", 5)
        # Once it reads again, the link holds.
        del two.transport._hear
        await until(lambda: one.listener.events[-1] == "up n2")
        broken = one.transport.counters.links_broken
        for n in range(1, 4):
            one.transport.send("n2", RaftMessage(term=n))
            await until(lambda n=n: two.listener.terms[-1:] == [n])  # type: ignore[misc]
        assert one.transport.counters.links_broken == broken


async def test_what_waits_for_a_peer_is_bounded_in_number(credentials: Make) -> None:
    async with linked(credentials, waiting_count_max=50) as (one, _):
        for n in range(1, 52):
            one.transport.send("n2", RaftMessage(term=n))
        assert one.transport.counters.messages_dropped == 51
        await until(lambda: one.listener.events[1:] == ["down n2", "up n2"])


async def test_a_peer_that_says_nothing_is_left_and_dialled_again(credentials: Make) -> None:
    one, two = [await end(name, credentials(name), hello_timeout_s=0.3) for name in ("n1", "n2")]
    serve, silent = two.transport.serve, asyncio.Event()

    async def hang(context: Any) -> None:
        two.transport.serve = serve  # type: ignore[method-assign]
        silent.set()
        await asyncio.Event().wait()

    two.transport.serve = hang  # type: ignore[method-assign]
    try:
        one.transport.dial({"n2": f"127.0.0.1:{two.transport.port}"})
        await until(silent.is_set)
        two.transport.dial({"n1": f"127.0.0.1:{one.transport.port}"})
        await until(lambda: one.listener.events[:1] == ["up n2"])
    finally:
        await one.stop()
        await two.stop()


async def test_a_peer_that_is_not_wanted_is_not_spoken_to(credentials: Make) -> None:
    one, two = [await end(name, credentials(name)) for name in ("n1", "n2")]
    one.listener.unwanted = "n2"
    try:
        one.transport.dial({"n2": f"127.0.0.1:{two.transport.port}"})
        await until(lambda: one.transport.counters.streams_refused > 0)
        one.transport.send("n2", RaftMessage(term=1))
        assert one.transport.counters.messages_dropped == 1
    finally:
        await one.stop()
        await two.stop()


async def stop_reading(one: End, two: End) -> None:
    """Have `two` answer the next stream of `one` and then never read from it."""

    async def hang(link: Any, mine: Any, context: Any) -> None:
        await mine.replaced

    two.transport._hear = hang  # type: ignore[method-assign]
    inbound = two.transport._links["n1"].inbound
    assert inbound is not None
    inbound.replaced.set_result(None)
    await until(lambda: one.listener.events[-1] == "down n2")
    await until(lambda: one.listener.events[-1] == "up n2")


async def test_without_credentials_only_loopback_is_allowed() -> None:
    for address in ("192.0.2.1:7000", "example.org:7000", "[2001:db8::1]:7000"):
        with pytest.raises(ValueError, match="loopback"):
            Transport(
                Identity(FLEET, "all", REGION, "peer", "n1"),
                {"n2": address},
                "127.0.0.1:0",
                None,
                Listener("n1"),
                random=Random(1),
            )


async def test_a_taken_port_is_an_error_with_its_address(credentials: Make) -> None:
    async with alone(credentials) as one:
        with pytest.raises(ControlPlaneError, match=f"127.0.0.1:{one.transport.port}"):
            await end("n2", credentials("n2"), listen=f"127.0.0.1:{one.transport.port}")
