"""Which faults a node takes, how they end, and what they do to its links."""

import asyncio

import pytest

from controlplane import limits
from controlplane.drills import faults
from controlplane.drills.faults import Fault, Faults, Kind
from controlplane.drills.injector import Injector
from controlplane.errors import Invalid, Refused
from controlplane.v1 import drill_pb2 as messages
from controlplane.v1.raft_pb2 import RaftMessage

DRILL, OTHER = "a" * 32, "b" * 32
PEERS = ("n2", "n3")
REGIONS = ("eu-central", "us-east")


def message(**changes):
    fields = {"drill": DRILL, "id": "1" * 32, "kind": messages.FAULT_CUT, "duration_ms": 1000, "reason": "why"}
    return messages.Fault(**{**fields, **changes})


def fault(number, kind=Kind.CUT, *, drill=DRILL, peers=PEERS, duration_ms=1000, delay_ms=0):
    return Fault(drill, f"{number:032x}", kind, duration_ms, "why", peers, delay_ms)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": 0}, "FAULT_UNKNOWN"),
        ({"kind": 99}, "FAULT_UNKNOWN"),
        ({"drill": ""}, "FAULT_NAME_MALFORMED"),
        ({"drill": "A" * 32}, "FAULT_NAME_MALFORMED"),
        ({"id": "../../etc/passwd"}, "FAULT_NAME_MALFORMED"),
        ({"duration_ms": 0}, "OUT_OF_RANGE"),
        ({"duration_ms": limits.FAULT_MS_MAX + 1}, "OUT_OF_RANGE"),
        ({"kind": messages.FAULT_DELAY, "delay_ms": 0}, "OUT_OF_RANGE"),
        ({"kind": messages.FAULT_DELAY, "delay_ms": limits.FAULT_DELAY_MS_MAX + 1}, "OUT_OF_RANGE"),
        ({"kind": messages.FAULT_RESERVE, "duration_ms": limits.RESERVATION_MS_MAX + 1}, "OUT_OF_RANGE"),
        ({"reason": " "}, "REASON_MISSING"),
        ({"reason": "a\nb"}, "TEXT_BAD_CHARACTERS"),
        ({"peers": ["n1"]}, "NODE_UNKNOWN"),
        ({"kind": messages.FAULT_CUT_REGION, "peers": ["n2"]}, "PEER_UNKNOWN"),
    ],
)
def test_what_no_node_takes(changes, reason):
    with pytest.raises(Invalid) as raised:
        faults.read(message(**changes), "somebody", PEERS, REGIONS)
    assert raised.value.reason == reason


def test_a_fault_comes_back_from_its_message():
    read = faults.read(message(), "somebody", PEERS)
    assert (read.kind, read.peers, read.actor) == (Kind.CUT, PEERS, "somebody")
    assert faults.read(read.message(), "somebody", PEERS) == read
    assert faults.read(message(peers=["n3"]), "", PEERS).peers == ("n3",)


def test_one_drill_at_a_time_and_each_fault_once():
    mine = Faults()
    assert mine.admit(fault(1), 0.0)
    assert not mine.admit(fault(1), 0.5)
    with pytest.raises(Refused) as raised:
        mine.admit(fault(2, drill=OTHER), 0.5)
    assert raised.value.reason == "DRILL_IN_PROGRESS"
    assert mine.admit(fault(2, Kind.CUT_IN), 0.5)
    assert [each.id[-1] for each in mine.expire(1.0)] == ["1"]
    assert not mine.admit(fault(1), 1.2)
    assert mine.admit(fault(3, drill=OTHER), 1.5)


def test_an_aborted_drill_breaks_nothing_more():
    mine = Faults()
    mine.admit(fault(1), 0.0)
    assert len(mine.heal("", abort=True)) == 1
    assert mine.aborted == (DRILL,)
    assert not mine.lost_out
    with pytest.raises(Refused) as raised:
        mine.admit(fault(2), 0.1)
    assert raised.value.reason == "DRILL_ABORTED"
    assert mine.admit(fault(3, drill=OTHER), 0.1)


def test_a_reservation_is_prolonged_not_piled_up():
    mine = Faults()
    for number in range(3 * limits.FAULTS_PER_NODE_MAX):
        assert mine.admit(fault(number, Kind.RESERVE), float(number) / 100)
    assert len(mine.active(0.5)) == 1
    assert not mine.lost_out


def test_faults_are_bounded_in_number():
    mine = Faults()
    for number in range(limits.FAULTS_PER_NODE_MAX):
        mine.admit(fault(number), 0.0)
    with pytest.raises(Refused) as raised:
        mine.admit(fault(99), 0.0)
    assert raised.value.reason == "FAULTS_FULL"


@pytest.mark.parametrize(
    ("kind", "out", "into"), [(Kind.CUT, {"n2"}, {"n2"}), (Kind.CUT_OUT, {"n2"}, set()), (Kind.CUT_IN, set(), {"n2"})]
)
def test_cuts_have_a_direction_and_peers(kind, out, into):
    mine = Faults()
    mine.admit(fault(1, kind, peers=("n2",)), 0.0)
    assert (mine.lost_out, mine.lost_in) == (out, into)
    mine.admit(fault(2, Kind.CUT, peers=("n3",)), 0.0)
    assert mine.lost_out == out | {"n3"}
    mine.expire(1.0)
    assert (mine.lost_out, mine.lost_in) == (set(), set())


async def test_links_heal_by_the_nodes_own_timer():
    sent = []
    injector = Injector(PEERS, lambda peer, one: sent.append((peer, one.term)), None, asyncio.get_running_loop().time)
    ended = asyncio.Event()
    injector.ended = lambda _: ended.set()
    await injector.inject(fault(1, Kind.CUT, peers=("n2",), duration_ms=100))
    assert not injector.leaving("n2", RaftMessage(term=1))
    assert injector.leaving("n3", RaftMessage(term=1))
    assert not injector.arriving("n2")
    async with asyncio.timeout(5):
        await ended.wait()
    assert injector.leaving("n2", RaftMessage(term=1))
    assert injector.arriving("n2")
    assert not sent


async def test_a_slow_link_keeps_the_order_and_lets_everything_go_when_it_heals():
    sent = []
    injector = Injector(PEERS, lambda peer, one: sent.append((peer, one.term)), None, asyncio.get_running_loop().time)
    await injector.inject(fault(1, Kind.DELAY, peers=("n2",), duration_ms=10_000, delay_ms=2000))
    for term in (1, 2, 3):
        assert not injector.leaving("n2", RaftMessage(term=term))
    assert not sent
    assert injector.heal(DRILL, abort=False)
    assert sent == [("n2", 1), ("n2", 2), ("n2", 3)]
    assert injector.leaving("n2", RaftMessage(term=4))
    await injector.inject(fault(2, Kind.DELAY, peers=("n2",), duration_ms=10_000, delay_ms=30))
    for term in (5, 6):
        injector.leaving("n2", RaftMessage(term=term))
    async with asyncio.timeout(5):
        while len(sent) < 5:  # noqa: ASYNC110 - timers are what is tested.
            await asyncio.sleep(0.005)
    assert sent[-2:] == [("n2", 5), ("n2", 6)]
    injector.stop()


async def test_a_slow_link_holds_back_so_much_and_no_more():
    injector = Injector(PEERS, lambda *_: None, None, asyncio.get_running_loop().time)
    await injector.inject(fault(1, Kind.DELAY, peers=("n2",), duration_ms=10_000, delay_ms=2000))
    for _ in range(limits.FAULT_HELD_MAX + 10):
        injector.leaving("n2", RaftMessage())
    assert len(injector._held["n2"]) == limits.FAULT_HELD_MAX
    injector.stop()


def test_a_region_without_peers_is_cut_off_from_nobody():
    with pytest.raises(Invalid) as raised:
        faults.read(message(kind=messages.FAULT_CUT_REGION), "somebody", PEERS)
    assert raised.value.reason == "PEER_UNKNOWN"
    assert faults.read(message(kind=messages.FAULT_CUT_REGION), "", PEERS, REGIONS).peers == REGIONS


async def test_regions_are_cut_off_until_the_last_fault_on_them_ends():
    told = []
    injector = Injector(PEERS, lambda *_: None, None, asyncio.get_running_loop().time, REGIONS)
    injector.sever = lambda regions: told.append(set(regions))
    await injector.inject(fault(1, Kind.CUT_REGION, peers=REGIONS, duration_ms=60_000))
    await injector.inject(fault(2, Kind.CUT_REGION, peers=("us-east",), duration_ms=60_000))
    await injector.inject(fault(3, duration_ms=60_000))
    assert told == [set(REGIONS)]
    assert injector.faults.lost_in == set(PEERS)
    injector.heal(DRILL, abort=True)
    assert told == [set(REGIONS), set()]
    again = Injector(PEERS, lambda *_: None, None, asyncio.get_running_loop().time, REGIONS)
    over = asyncio.Event()
    again.sever = lambda regions: over.set() if not regions else None
    await again.inject(fault(4, Kind.CUT_REGION, peers=REGIONS, duration_ms=limits.FAULT_MS_MIN))
    # By the node's own timer: nobody asks for it.
    async with asyncio.timeout(5):
        await over.wait()
