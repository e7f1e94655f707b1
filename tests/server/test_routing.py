"""One node's way to the leader, which does as the test says: what is sent again, and what callers hear if it is not."""

import asyncio
import contextlib
from itertools import chain, repeat

import pytest

from controlplane import limits
from controlplane.errors import OutcomeUnknown, Unavailable
from controlplane.forward import Request, Router
from controlplane.node import Call
from controlplane.replication import LogStatus, Role
from tests.sdk.scripted import eventually, scripted


class Told:
    """A log that says who leads: "a" is this node."""

    def __init__(self):
        self.leader, self.listeners = "", []

    def status(self):
        leads = self.leader == "a"
        role = Role.LEADER if leads else Role.FOLLOWER
        return LogStatus(role, self.leader or None, 1, 0, 0, 0, leads, 0.0, {})

    def on_change(self, listener):
        self.listeners.append(listener)

    def says(self, leader):
        self.leader = leader
        for listener in self.listeners:
            listener()


class Kept(Request):
    """What became of a request."""

    outcome = None

    def answered(self, reply):
        assert self.outcome is None
        self.outcome = reply

    def failed(self, error):
        assert self.outcome is None
        self.outcome = error


def request(body=b"", method="CreateWorkflow", timeout_s=30.0):
    return Kept(Call(method, body, "agent", "prod", asyncio.get_running_loop().time() + timeout_s))


def in_turn(*answers):
    rest = chain(answers, repeat(answers[-1]))
    return lambda _: next(rest)


def silent(_):
    return None


@contextlib.asynccontextmanager
async def routing(*scripts, plan=None):
    """Node "a", which hears of nodes "b" and "c"; they answer as `scripts` say."""
    async with scripted(*scripts) as nodes:
        log = Told()
        peers = {name: node.address for name, node in zip("bc", nodes, strict=False)}
        router = Router("a", plan, log, peers, None, asyncio.get_running_loop().time)
        router.start()
        try:
            await eventually(lambda: all(node.sessions for node in nodes))
            await eventually(lambda: all(each.up for each in router._forwarders.values()))
            yield router, log, nodes
        finally:
            await router.stop()


async def outcome(each):
    await eventually(lambda: each.outcome is not None)
    return each.outcome


async def test_what_broke_off_and_is_not_answered_in_time_may_have_happened():
    async with routing(silent) as (router, log, [leader]):
        log.says("b")
        each = request(timeout_s=1.0)
        router.submit(each)
        await eventually(lambda: leader.seen)
        await leader.stop()
        log.says("")
        error = await outcome(each)
        assert (type(error), error.reason) == (OutcomeUnknown, "FORWARD_BROKEN")


async def test_what_a_silent_leader_was_asked_may_have_happened():
    async with routing(silent) as (router, log, [leader]):
        log.says("b")
        each = request(timeout_s=0.2)
        router.submit(each)
        error = await outcome(each)
        assert leader.seen
        assert (type(error), error.reason) == (OutcomeUnknown, "FORWARD_BROKEN")


async def test_what_was_never_sent_did_not_happen():
    async with routing(silent) as (router, _, _):
        each = request(timeout_s=0.1)
        router.submit(each)
        error = await outcome(each)
        assert (type(error), error.reason) == (Unavailable, "NO_LEADER")


async def test_what_may_not_be_sent_twice_ends_when_it_breaks_off():
    async with routing(silent) as (router, log, [leader]):
        log.says("b")
        each = request(method="TransferRegion", timeout_s=600.0)
        router.submit(each)
        await eventually(lambda: leader.seen)
        await leader.stop()
        error = await outcome(each)
        assert (type(error), error.reason) == (OutcomeUnknown, "FORWARD_BROKEN")


async def test_the_next_leader_is_asked_what_a_silent_one_left():
    async with routing(silent, in_turn(b"yes")) as (router, log, [old, new]):
        log.says("b")
        asked = [request(b"%d" % n) for n in range(5)]
        for each in asked:
            router.submit(each)
        await eventually(lambda: len(old.seen) == 5)
        log.says("c")
        assert [await outcome(each) for each in asked] == [b"yes"] * 5
        assert [operation.request for operation in new.seen] == [b"%d" % n for n in range(5)]


@pytest.mark.parametrize(
    "reason", ["NOT_LEADER", "NOT_LEADING", "NO_LEADER", "ENTRY_DISCARDED", "LOG_NOT_RUNNING", "STOPPING"]
)
async def test_what_another_attempt_can_cure_is_asked_again(reason):
    async with routing(in_turn(Unavailable("not now", reason=reason), b"yes")) as (router, log, _):
        log.says("b")
        each = request()
        router.submit(each)
        assert await outcome(each) == b"yes"


@pytest.mark.parametrize("reason", ["OUTCOME_FORGOTTEN", "EPOCH_CHANGED", "INTERNAL"])
async def test_a_doubt_that_nothing_cures_is_told(reason):
    async with routing(in_turn(OutcomeUnknown("who knows", reason=reason), b"yes")) as (router, log, [leader]):
        log.says("b")
        each = request()
        router.submit(each)
        assert (await outcome(each)).reason == reason
        assert len(leader.seen) == 1


async def test_in_doubt_it_is_asked_again_whatever_says_that_nobody_can_be_asked():
    answers = OutcomeUnknown("who knows", reason="LOG_TIMEOUT"), Unavailable("busy", reason="OVERLOADED"), b"yes"
    async with routing(in_turn(*answers)) as (router, log, _):
        log.says("b")
        each = request()
        router.submit(each)
        assert await outcome(each) == b"yes"


async def test_a_plan_whose_outcome_is_unknown_leaves_a_doubt():
    def plan(_):
        log.says("")
        done = asyncio.get_running_loop().create_future()
        done.set_exception(OutcomeUnknown("no answer", reason="LOG_TIMEOUT"))
        return done

    async with routing(plan=plan) as (router, log, _):
        log.says("a")
        each = request(timeout_s=0.1)
        router.submit(each)
        assert isinstance(await outcome(each), OutcomeUnknown)


async def test_stopping_ends_what_waits_and_what_comes_after():
    async with routing() as (router, _, _):
        waiting, late = request(), request()
        router.submit(waiting)
        await router.stop()
        router.submit(late)
        assert [each.outcome.reason for each in (waiting, late)] == ["STOPPING"] * 2


async def test_what_waits_keeps_its_order_however_often_it_is_looked_at():
    planned = []

    def plan(call):
        planned.append(call.request)
        return asyncio.get_running_loop().create_future()

    async with routing(plan=plan) as (router, log, _):
        for n in range(5):
            router.submit(request(b"%d" % n))
        log.says("")
        log.says("a")
        assert planned == [b"%d" % n for n in range(5)]


async def test_what_is_forwarded_together_fits_its_messages():
    async with routing(in_turn(b"yes")) as (router, log, [leader]):
        log.says("b")
        asked = [request(bytes(limits.REQUEST_BYTES_MAX)) for _ in range(10)]
        for each in asked:
            router.submit(each)
        assert [await outcome(each) for each in asked] == [b"yes"] * 10
        assert len(leader.seen) == 10


async def test_what_waits_for_the_leader_s_answer_is_bounded_and_kill_switches_have_room(monkeypatch):
    monkeypatch.setattr(limits, "QUEUE_CALLS_MAX", 3)
    async with routing(silent) as (router, log, [leader]):
        log.says("b")
        asked = [request() for _ in range(5)]
        stops = [request(method="EngageSwitch") for _ in range(4)]
        for each in (*asked, *stops):
            router.submit(each)
        assert [each.outcome and each.outcome.reason for each in asked] == [None] * 3 + ["OVERLOADED"] * 2
        assert [each.outcome and each.outcome.reason for each in stops] == [None] * 3 + ["OVERLOADED"]
        await eventually(lambda: len(leader.seen) == 6)
