"""What is left of an attempt to reach a node that did not come off: nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from time import monotonic

import grpc.aio
import pytest

from controlplane.errors import Unavailable
from controlplane.loopback import free_ports
from controlplane.sdk import session
from controlplane.sdk.session import Dialer

Greet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]


@asynccontextmanager
async def listening(greet: Greet | None) -> AsyncIterator[str]:
    """An address where `greet` gets every connection; None: nobody listens."""
    if greet is None:
        yield f"127.0.0.1:{free_ports(1)[0]}"
        return
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """As in a program that makes little garbage: nobody looks for cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def channels() -> int:
    return sum(isinstance(each, grpc.aio.Channel) for each in gc.get_objects())


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize(
    "greet",
    [None, lambda _, writer: writer.close(), lambda *_: None],
    ids=["refused", "hung up on", "not answered"],
)
async def test_no_channel_outlives_a_dial_that_failed(monkeypatch: pytest.MonkeyPatch, greet: Greet | None) -> None:
    monkeypatch.setattr(session, "DIAL_TIMEOUT_S", 0.3)
    before = channels()
    async with listening(greet) as address:
        # As it is done, and with its error kept, as the client keeps the last one.
        dials = [asyncio.create_task(Dialer(None, None, monotonic).dial(address)) for _ in range(3)]
        errors = await asyncio.gather(*dials, return_exceptions=True)
        assert [type(error) for error in errors] == [Unavailable] * 3
        assert channels() == before
        given_up = asyncio.create_task(Dialer(None, None, monotonic).dial(address))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert channels() == before
