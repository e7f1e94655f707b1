"""Links that take their time: what the benchmark puts between regions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from subprocess import PIPE

import pytest

from controlplane.loopback import Relay, free_ports

DELAY_S = 0.05


@asynccontextmanager
async def echo(delay_s: float) -> AsyncIterator[Relay]:
    """An echo behind an open relay; it hangs up after "bye"."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(1 << 16):
            writer.write(chunk)
            await writer.drain()
            if chunk == b"bye":
                break
        writer.close()

    behind, before = free_ports(2)
    server = await asyncio.start_server(serve, "127.0.0.1", behind)
    relay = Relay(before, f"127.0.0.1:{behind}", delay_s)
    await relay.heal()
    try:
        yield relay
    finally:
        await relay.cut()
        server.close()


async def connected(relay: Relay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = relay.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_each_direction_takes_the_delay():
    async with echo(DELAY_S) as relay:
        reader, writer = await connected(relay)
        for _ in range(3):
            began = time.monotonic()
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            assert time.monotonic() - began >= 2 * DELAY_S
        writer.close()


@pytest.mark.parametrize("delay_s", [0.0, DELAY_S])
async def test_everything_arrives_in_order_and_delays_do_not_add_up(delay_s: float):
    sent = b"".join(number.to_bytes(4, "big") for number in range(1 << 20))
    async with echo(delay_s) as relay:
        reader, writer = await connected(relay)
        began = time.monotonic()
        received = asyncio.create_task(reader.readexactly(len(sent)))
        for at in range(0, len(sent), 1 << 16):
            writer.write(sent[at : at + (1 << 16)])
            await writer.drain()
        assert await received == sent
        # One chunk after the other, each there and back, would take 64 times as long as this.
        assert time.monotonic() - began < 64 * 2 * DELAY_S
        writer.close()


async def test_the_end_of_a_connection_comes_after_what_was_said_before_it():
    async with echo(DELAY_S) as relay:
        reader, writer = await connected(relay)
        writer.write(b"bye")
        assert await reader.read() == b"bye"
        writer.close()


async def test_what_is_under_way_when_a_link_is_cut_is_lost():
    async with echo(DELAY_S) as relay:
        reader, writer = await connected(relay)
        writer.write(b"ping")
        await reader.readexactly(4)
        writer.write(b"lost")
        await writer.drain()
        await relay.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(4)
        writer.close()


async def test_a_cut_does_not_wait_for_who_was_just_being_let_through():
    behind, before = free_ports(2)
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(3600), "127.0.0.1", behind)
    relay = Relay(before, f"127.0.0.1:{behind}")
    async with silent, asyncio.timeout(30):
        for turns in range(12):
            await relay.heal()
            reader, writer = await asyncio.open_connection("127.0.0.1", before)
            for _ in range(turns):
                await asyncio.sleep(0)
            await relay.cut()
            # Nothing is left of it: the other end hears of the cut, too.
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()


def test_two_processes_are_given_different_ports(tmp_path):
    asking = "import sys; from controlplane import loopback; loopback._PORTS = range(28_000, 28_400); "
    asking += "print(*loopback.free_ports(int(sys.argv[1])), flush=True); sys.stdin.read()"

    def process(count):
        argv, env = [sys.executable, "-c", asking, str(count)], {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.Popen(argv, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)

    with process(200) as one:
        first = {*one.stdout.readline().split()}
        with process(100) as other:
            second, _ = other.communicate(timeout=30)
        with process(250) as greedy:
            _, problem = greedy.communicate(timeout=30)
        one.communicate(timeout=30)
    assert (len(first), len({*second.split()} - first)) == (200, 100)
    assert "no 250 free ports" in problem
    with process(250) as later:
        assert len(later.communicate(timeout=30)[0].split()) == 250
