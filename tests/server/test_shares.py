"""What callers share of one node: turns of the loop are few for each, and messages are measured at no great cost."""

import asyncio
import random
import time

import pytest

from controlplane import limits
from controlplane.server.shares import Turns, fields
from controlplane.v1 import api_pb2 as api


async def test_few_operations_are_begun_in_one_turn_and_nobody_overtakes(monkeypatch):
    monkeypatch.setattr(limits, "OPERATIONS_PER_TURN_MAX", 5)
    turns, loop, number, begun = Turns(), asyncio.get_running_loop(), 0, []

    def turn():
        nonlocal number
        number += 1
        loop.call_soon(turn)

    async def caller(name):
        for _ in range(20):
            await turns.take()
            begun.append((number, name))

    turn()
    await asyncio.gather(*(caller(name) for name in range(7)))
    per_turn = [sum(at == each for at, _ in begun) for each in {at for at, _ in begun}]
    assert max(per_turn) == 5
    last = [max(place for place, (_, name) in enumerate(begun) if name == each) for each in range(7)]
    # The first one takes what a turn has, and after that one for each of the others'.
    assert max(last) - min(last) <= 7 * 5 + 7


async def test_whoever_gives_up_waiting_takes_no_turn(monkeypatch):
    monkeypatch.setattr(limits, "OPERATIONS_PER_TURN_MAX", 1)
    turns = Turns()
    await turns.take()
    waiting = [asyncio.create_task(turns.take()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting[1:])
        await turns.take()


@pytest.mark.parametrize("number", [0, 1, 127, 128, 1000])
def test_fields_are_counted_as_they_are_decoded(number):
    chance = random.Random(number)
    sizes = [chance.choice([0, 1, 100, 200, 20_000]) for _ in range(number)]
    operations = [api.Operation(id=chance.getrandbits(64), request=bytes(size)) for size in sizes]
    # What later versions may add, of each kind, is counted too.
    unknown = b"\x10\x80\x01" + b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x82\x7d\x03abc"
    encoded = api.SessionRequest(operations=operations).SerializeToString()
    assert fields(encoded, 4096) == number
    assert fields(encoded + unknown, 4096) == number + 4
    assert len(api.SessionRequest.FromString(encoded + unknown).operations) == number
    assert fields(encoded, 10) == min(number, 11)


@pytest.mark.parametrize("garbage", [b"\xff", b"\x0a", b"\x0a\xff", b"\x0b", b"\x08\xff\xff", b"\x0a\x00", b"\x00"])
def test_counting_the_fields_of_garbage_ends_soon(garbage):
    encoded = garbage * (limits.MESSAGE_BYTES_MAX // len(garbage))
    began = time.process_time()
    assert fields(encoded, limits.OPERATIONS_PER_SESSION_MAX) <= limits.OPERATIONS_PER_SESSION_MAX + 1
    assert time.process_time() - began < 1
