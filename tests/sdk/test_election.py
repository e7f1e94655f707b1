"""Elections: the holder gives up first, whatever the network and its own pauses do."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.sdk import ControlPlane, LeaseLost, NotElected, OutcomeUnknown, Unavailable
from controlplane.sdk import clock as clocks
from controlplane.sdk.election import MARGIN_SHARE, Term
from controlplane.testing import Plane
from controlplane.v1 import api_pb2 as api

from .scripted import Answer, eventually, scripted

TTL_S = 2.0


@given(
    st.floats(0.5, 600),
    st.lists(st.tuples(st.floats(0, 500), st.floats(0, 100), st.booleans()), max_size=20),
)
def test_a_holder_is_never_sure_when_another_may_be_elected(
    ttl_s: float, renewals: list[tuple[float, float, bool]]
) -> None:
    """However long each question takes: the server counts from when it applied, the holder from before it asked."""
    now = 0.0
    term, server_ends_s = Term(ttl_s, asked_s=now), now + ttl_s
    for pause_s, delay_s, answered in renewals:
        now += pause_s
        asked_s = now
        if now >= server_ends_s:
            assert now >= term.ends_s
            return
        server_ends_s = asked_s + delay_s + ttl_s
        now += delay_s
        if answered:
            term.renewed(asked_s)
        assert term.ends_s < server_ends_s


def test_an_answer_that_comes_late_takes_nothing_back() -> None:
    term = Term(10.0, asked_s=5.0)
    term.renewed(3.0)
    assert term.asked_s == 5.0
    assert term.ends_s == pytest.approx(5.0 + 10.0 * (1 - MARGIN_SHARE))


class Region:
    """Elects whoever asks. Some of its answers come late, which is how far the clock goes on, and some are lost."""

    def __init__(self, *delays: tuple[str, float], lost: tuple[str, ...] = ()) -> None:
        self._lost = list(lost)
        self._delays = list(delays)
        self._late_s = 0.0
        self.asked: list[api.Operation] = []
        self.holder = api.ElectionView(fence=api.Fence(election="e", epoch=1, revision=7))

    def clock(self) -> float:
        return clocks.now() + self._late_s

    def answer(self, operation: api.Operation) -> Answer:
        self.asked.append(operation)
        if self._delays and operation.method == self._delays[0][0]:
            self._late_s += self._delays.pop(0)[1]
        if operation.method == "Campaign":
            self.holder.election.process = api.CampaignRequest.FromString(operation.request).process
        if operation.method in self._lost:
            self._lost.remove(operation.method)
            return None
        if operation.method == "Campaign":
            return api.CampaignReply(holder=self.holder, elected=True).SerializeToString()
        return (
            api.GetElectionReply(holder=self.holder).SerializeToString() if operation.method == "GetElection" else b""
        )


async def test_the_time_of_a_lease_counts_from_before_each_question() -> None:
    """The server may have begun to count as soon as it was asked, however late its answer comes."""
    ttl_s, sure_s = 600.0, 600.0 * (1 - MARGIN_SHARE)
    region = Region(("Campaign", ttl_s / 3 - 0.1), ("Renew", 100.0))
    async with (
        scripted(region.answer) as [node],
        ControlPlane.connect(node.address, insecure=True, mirror=False, clock=region.clock) as cp,
        cp.election("e", ttl_s=ttl_s).campaign() as lease,
    ):
        before_s = lease.remaining_s
        assert before_s <= sure_s - (ttl_s / 3 - 0.1)
        await eventually(lambda: lease.remaining_s > before_s)
        assert lease.remaining_s <= sure_s - 100.0


async def test_a_renewal_without_an_answer_is_asked_again_and_counted_anew() -> None:
    ttl_s = 600.0
    region = Region(("Campaign", ttl_s / 3 - 0.1), ("Renew", ttl_s / 3), lost=("Renew",))
    async with (
        scripted(region.answer) as [node],
        ControlPlane.connect(node.address, insecure=True, mirror=False, clock=region.clock) as cp,
        cp.election("e", ttl_s=ttl_s).campaign() as lease,
    ):
        before_s = lease.remaining_s
        await eventually(lambda: lease.remaining_s > before_s)
        assert [each.method for each in region.asked].count("Renew") == 2


async def test_a_campaign_that_is_won_too_late_goes_on() -> None:
    """When its answer comes, the lease may be over already; to campaign again is to renew it."""
    region = Region(("Campaign", 590.0))
    async with (
        scripted(region.answer) as [node],
        ControlPlane.connect(node.address, insecure=True, mirror=False, clock=region.clock) as cp,
        cp.election("e", ttl_s=600.0).campaign() as lease,
    ):
        assert lease.valid
    campaigns = [api.CampaignRequest.FromString(each.request) for each in region.asked if each.method == "Campaign"]
    assert len(campaigns) > 1
    assert len({each.process for each in campaigns}) == 1


@pytest.mark.parametrize("timeout_s", [None, 0.2])
async def test_what_a_question_won_whose_answer_nobody_heard_is_given_up(timeout_s: float | None) -> None:
    """Or nobody could be elected for ten minutes, by a process that knows nothing of it."""
    region = Region(lost=("Campaign",) * 9)
    async with (
        scripted(region.answer) as [node],
        ControlPlane.connect(node.address, insecure=True, mirror=False) as cp,
    ):
        campaign = asyncio.create_task(cp.election("e", ttl_s=600.0).campaign(timeout_s=timeout_s).__aenter__())
        await eventually(lambda: region.asked)
        if timeout_s is None:
            campaign.cancel()
        with pytest.raises(asyncio.CancelledError if timeout_s is None else NotElected):
            await campaign
    asked = api.CampaignRequest.FromString(region.asked[0].request)
    (given_up,) = (api.ResignRequest.FromString(each.request) for each in region.asked if each.method == "Resign")
    assert (given_up.process, given_up.fence) == (asked.process, region.holder.fence)


async def test_one_at_a_time(shared: Plane) -> None:
    holding = 0

    async def act() -> None:
        nonlocal holding
        async with shared.connect(mirror=False) as cp, cp.election("solo", ttl_s=TTL_S).campaign() as lease:
            assert lease.valid
            holding += 1
            assert holding == 1
            await asyncio.sleep(0)
            holding -= 1

    async with asyncio.timeout(20):
        await asyncio.gather(*(act() for _ in range(8)))


async def test_fences_grow(shared: Plane) -> None:
    async with shared.connect() as cp:
        fences = []
        for _ in range(3):
            async with cp.election("growing").campaign() as lease:
                fences.append((lease.fence.epoch, lease.fence.revision))
        assert fences == sorted(set(fences))


async def test_a_lost_campaign_says_so(shared: Plane) -> None:
    async with shared.connect() as cp, cp.election("taken").campaign():
        with pytest.raises(NotElected):
            async with cp.election("taken").campaign(timeout_s=0.2):
                pytest.fail("elected twice")


async def test_a_campaign_without_a_region_ends_in_time(control_plane: Plane) -> None:
    async with control_plane.connect() as cp:
        await asyncio.to_thread(control_plane.lose_leader)
        began = cp.clock()
        with pytest.raises(NotElected):
            async with cp.election("nobody", ttl_s=30).campaign(timeout_s=0.3):
                pytest.fail("elected by nobody")
        assert cp.clock() - began < 25
        await asyncio.to_thread(control_plane.regain_leader)


async def test_a_campaign_of_a_closed_client_ends_at_once(shared: Plane) -> None:
    async with shared.connect() as cp, shared.connect() as holder, holder.election("closed").campaign():
        waiting = asyncio.create_task(cp.election("closed").campaign().__aenter__())
        await asyncio.sleep(0)
        await cp.close()
        with pytest.raises((Unavailable, OutcomeUnknown)) as closed:
            await waiting
        assert closed.value.reason == "CLIENT_CLOSED"
        with pytest.raises(Unavailable) as closed:
            await cp.election("closed").campaign().__aenter__()
        assert closed.value.reason == "CLIENT_CLOSED"


async def test_a_client_that_is_closed_loses_its_leases(shared: Plane) -> None:
    async with shared.connect() as cp:
        with pytest.raises(LeaseLost):  # noqa: PT012 - it ends the body.
            async with cp.election("left", ttl_s=TTL_S).campaign() as lease:
                await cp.close()
                await asyncio.sleep(60)
        assert lease.refusal is not None
        assert lease.refusal.reason == "CLIENT_CLOSED"


class CountingClock:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return clocks.now()


async def test_a_client_without_room_rests_between_questions(shared: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question fails at once, without a turn of the loop: others run all the same, and it goes on with room."""
    clock, loop = CountingClock(), asyncio.get_running_loop()
    async with ControlPlane.connect(shared.address, insecure=True, mirror=False, clock=clock) as cp:
        monkeypatch.setattr("controlplane.sdk.channel.WAITING_MAX", 0)
        with pytest.raises(NotElected):
            await cp.election("full").campaign(timeout_s=0.3).__aenter__()
        loop.call_later(0.3, monkeypatch.undo)
        async with cp.election("full", ttl_s=TTL_S).campaign() as lease:
            assert lease.valid
            monkeypatch.setattr("controlplane.sdk.channel.WAITING_MAX", 0)
            loop.call_later(TTL_S / 2, monkeypatch.undo)
            asked_s = lease._term.asked_s
            await eventually(lambda: lease._term.asked_s > asked_s)
    assert clock.asked < 2000


async def test_the_lease_is_renewed(shared: Plane) -> None:
    async with shared.connect() as cp, cp.election("long", ttl_s=0.6).campaign() as lease:
        first = lease.remaining_s
        await asyncio.sleep(1.5)
        assert lease.valid
        assert lease.remaining_s > first / 3
        holder = await cp.election("long").holder()
        assert holder is not None
        assert holder.fence == lease.fence


async def test_without_answers_the_holder_gives_up_first(control_plane: Plane) -> None:
    async with control_plane.connect() as cp:
        began = cp.clock()
        with pytest.raises(LeaseLost):  # noqa: PT012 - it ends the body.
            async with cp.election("cut", ttl_s=TTL_S).campaign() as lease:
                await asyncio.to_thread(control_plane.lose_leader)
                try:
                    await asyncio.sleep(60)
                finally:
                    assert lease.remaining_s == 0.0
                    assert began < lease._term.ends_s < lease._term.asked_s + TTL_S
                    await asyncio.to_thread(control_plane.regain_leader)


async def test_a_pause_is_noticed_at_once(control_plane: Plane) -> None:
    """The clock moves as it does for a process that was stopped: nothing of it ran, and it has to know."""
    async with control_plane.connect() as cp, control_plane.connect() as other:
        with pytest.raises(LeaseLost):  # noqa: PT012 - it ends the body.
            async with cp.election("paused", ttl_s=TTL_S).campaign() as lease:
                assert lease.valid
                control_plane.clock._ahead_s += TTL_S
                assert not lease.valid
                with pytest.raises(LeaseLost):
                    lease.ensure()
                await asyncio.sleep(60)
        assert lease.lost.is_set()
        async with asyncio.timeout(10), other.election("paused", ttl_s=TTL_S).campaign() as next_lease:
            assert next_lease.fence.revision > lease.fence.revision


async def test_a_stolen_lease_ends_the_body_and_its_writes_are_refused(control_plane: Plane) -> None:
    async with control_plane.connect() as cp:
        with pytest.raises(LeaseLost):  # noqa: PT012 - it ends the body.
            async with cp.election("stolen", ttl_s=TTL_S).campaign() as lease:
                reply = await cp.get_election("stolen")
                await cp.resign("stolen", reply.holder.election.process, lease.fence)
                await asyncio.sleep(60)
        assert lease.refusal is not None
        assert lease.refusal.reason == "LEASE_LOST"


async def test_the_body_s_own_errors_pass(shared: Plane) -> None:
    async with shared.connect() as cp:
        with pytest.raises(ZeroDivisionError):
            async with cp.election("errors").campaign():
                raise ZeroDivisionError
        with pytest.raises(TimeoutError):
            async with cp.election("errors").campaign(), asyncio.timeout(0.01):
                await asyncio.sleep(60)
        assert await cp.election("errors").holder() is None


async def test_observers_see_every_holder(shared: Plane) -> None:
    async with shared.connect() as cp, shared.connect() as watcher:
        seen: list[bytes | None] = []

        async def observe() -> None:
            nonlocal seen
            async for holder in watcher.election("observed").observe():
                seen += [holder.election.value if holder else None]

        observing = asyncio.create_task(observe())
        await eventually(lambda: seen == [None])
        for value in (b"one", b"two"):
            async with cp.election("observed", value=value).campaign():
                await eventually(lambda value=value: seen[-1] == value)
        await eventually(lambda: seen == [None, b"one", None, b"two", None])
        observing.cancel()
