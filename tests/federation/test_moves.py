"""Homes that move: nothing acknowledged is lost, nothing goes where it may not, and everybody finds the way."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from controlplane import status
from controlplane.errors import ControlPlaneError, Denied, OutcomeUnknown, Refused, Unavailable
from controlplane.features import moves
from controlplane.features.partitions import system
from controlplane.federation.links import packed
from controlplane.node import AGE_UNKNOWN_MS
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, JURISDICTION, Move, Partition
from tests.federation.fleet import CENTRAL, EAST, WEST, running
from tests.federation.test_calls import forward, forwarded
from tests.server.regions import create, flag, until, write_header

STATE, SHARED, PINNED, STOPS = (f"{WEST}.prod.{each}" for each in ("jurisdiction", "shared", "home-only", "global"))


def move(partition, to="", **more):
    header = api.RequestHeader(reason=more.pop("reason", "because"))
    return api.MovePartitionRequest(header=header, partition=partition, to=to, **more)


def swap(name, version, state, **header):
    return api.CompareAndSwapWorkflowRequest(header=write_header(**header), id=name, version=version, state=state)


def get(name, partition="", consistency=api.LINEARIZABLE):
    return api.GetWorkflowRequest(header=api.RequestHeader(partition=partition, consistency=consistency), id=name)


async def told(caller, method, request, reply):
    return reply.FromString(await caller.call(method, request))


async def patiently(caller, method, request):
    """Ask as the SDK does: again for as long as the call certainly did not happen."""
    async with asyncio.timeout(15):
        while True:
            try:
                return await caller.call(method, request, timeout_s=5)
            except Unavailable:
                await asyncio.sleep(0.02)


async def view(fleet, region, partition):
    async with fleet.caller(region) as operator:
        request = api.ListPartitionsRequest(partition=partition)
        return (await told(operator, "ListPartitions", request, api.ListPartitionsReply)).partitions[0]


def home_of(fleet, region, partition):
    found = fleet[region].node.places.routed(partition)
    return None if found is None else (found.home, found.epoch)


async def everywhere(fleet, partition, home, epoch, regions=None):
    for region in regions or fleet.regions:
        await until(lambda region=region: home_of(fleet, region, partition) == (home, epoch))


async def error_of(call):
    with pytest.raises(ControlPlaneError) as raised:
        await call
    return raised.value


async def test_a_planned_move_loses_nothing_while_clients_write(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(WEST) as at_old, fleet.caller(CENTRAL) as at_new:
        for n in range(300):
            await at_old.call("CreateWorkflow", create(f"w{n}"))
        versions = dict.fromkeys(("a", "b"), 0)
        done = asyncio.Event()

        async def write(caller, name):
            # The second caller's region has another default: it says which partition it means.
            header = {} if caller is at_old else {"partition": STATE}
            await patiently(caller, "CreateWorkflow", create(name, **header))
            versions[name] = 1
            while not done.is_set():
                reply = await patiently(caller, "CompareAndSwapWorkflow", swap(name, versions[name], b"{}", **header))
                versions[name] = api.CompareAndSwapWorkflowReply.FromString(reply).version

        writers = [asyncio.create_task(write(at_old, "a")), asyncio.create_task(write(at_new, "b"))]
        await until(lambda: min(versions.values()) > 5)
        reply = await told(at_old, "MovePartition", move(STATE, CENTRAL), api.MovePartitionReply)
        assert reply.partition.state == "sealed"
        await everywhere(fleet, STATE, CENTRAL, 2, (WEST, CENTRAL))
        seen = dict(versions)
        await until(lambda: all(versions[name] > seen[name] + 5 for name in versions))
        done.set()
        await asyncio.gather(*writers)
        for name, version in versions.items():
            for caller in (at_old, at_new):
                found = await told(caller, "GetWorkflow", get(name, STATE), api.GetWorkflowReply)
                assert (found.header.region, found.header.epoch) == (CENTRAL, 2)
                assert found.workflow.version == version
        listed = api.ListWorkflowsRequest(header=api.RequestHeader(partition=STATE), limit=1000)
        everything = await told(at_new, "ListWorkflows", listed, api.ListWorkflowsReply)
        assert len(everything.workflows) == 302
        # Who names no partition means the one that the region file says, wherever it is.
        await at_old.call("CreateWorkflow", create("after"))
        assert (await told(at_new, "GetWorkflow", get("after", STATE), api.GetWorkflowReply)).workflow.version == 1
        await until(lambda: len(fleet[WEST].held(CENTRAL, JURISDICTION)) == 303)
        # What was there under the former home is removed: nobody could erase it any more.
        for region in (WEST, CENTRAL):
            await until(lambda region=region: fleet[region].held(WEST, JURISDICTION) == {})
        assert fleet[EAST].held(CENTRAL, JURISDICTION) == {}
        assert fleet[EAST].node.places.routed(STATE) is None


async def force(fleet, region, partition, **more):
    """What `cpctl partition move --forced` does: look at what was copied, and take over from there."""
    async with fleet.caller(region) as operator:
        asked = api.ListPartitionsRequest(partition=partition)
        shown = (await told(operator, "ListPartitions", asked, api.ListPartitionsReply)).partitions[0]
        request = move(partition, region, forced=True, attestation="it burnt down", upto=shown.copy.revision, **more)
        await operator.call("MovePartition", request)
        return shown.copy.revision


async def cut_off(fleet, region):
    for other in fleet.regions:
        if other != region:
            await fleet.cut(region, other)
    for other in fleet.regions:
        if other != region:
            await until(lambda other=other: fleet[other].link(region).state == "down")
            await until(lambda other=other: fleet[region].link(other).state == "down")


async def rejoin(fleet, region):
    for other in fleet.regions:
        if other != region:
            await fleet.heal(region, other)


async def quarantine(fleet, region, partition):
    async with fleet.caller(region) as operator:
        found, after, more = [], b"", True
        while more:
            request = api.ListQuarantineRequest(partition=partition, limit=2, after=after)
            reply = await told(operator, "ListQuarantine", request, api.ListQuarantineReply)
            found += reply.changes
            after, more = reply.next, reply.more
        return [(each.name, each.workflow.state or each.flag.description.encode()) for each in found]


def described(name, text, **header):
    request = flag(name, **header)
    request.flag.description = text
    return request


async def get_flag(caller, name, consistency=api.LOCAL, partition=SHARED):
    header = api.RequestHeader(partition=partition, consistency=consistency)
    reply = await caller.call("GetFlag", api.GetFlagRequest(header=header, name=name))
    return api.GetFlagReply.FromString(reply).flag


async def test_a_forced_move_quarantines_what_the_old_home_wrote_too_late(tmp_path):
    there = {"partition": SHARED}
    async with (
        running(tmp_path) as fleet,
        fleet.caller(WEST) as at_old,
        fleet.caller(EAST) as at_new,
        fleet.caller(CENTRAL) as at_third,
    ):
        await at_old.call("SetFlag", described("f", "copied", **there))
        await at_old.call("SetFlag", described("f", "copied too", **there))
        await fleet.settled()
        error = await error_of(force(fleet, EAST, SHARED))
        assert (type(error), error.reason) == (Refused, "HOME_HEARD")
        await cut_off(fleet, WEST)
        # Until it hears of it, the old home goes on: that is what the operator answers for.
        await at_old.call("SetFlag", described("f", "late", **there))
        await at_old.call("SetFlag", described("g", "late too", **there))
        upto = await force(fleet, EAST, SHARED)
        await everywhere(fleet, SHARED, EAST, 2, (EAST, CENTRAL))
        assert await quarantine(fleet, WEST, SHARED) == []
        recorded = await view(fleet, EAST, SHARED)
        assert (recorded.move.forced, recorded.move.upto, recorded.move.attestation) == (True, upto, "it burnt down")
        assert recorded.moved.action == "AdoptPartition"
        await at_new.call("SetFlag", described("f", "goes on", **there))
        assert (await get_flag(at_new, "f")).meta.version == 3
        await rejoin(fleet, WEST)
        await everywhere(fleet, SHARED, EAST, 2)
        await until(lambda: fleet[WEST].node.places.shown(SHARED) is not None)
        assert await quarantine(fleet, WEST, SHARED) == [("f", b"late"), ("g", b"late too")]
        assert (await view(fleet, WEST, SHARED)).quarantined == 2
        await fleet.settled(EAST)
        for caller in (at_old, at_new, at_third):
            for consistency in (api.LOCAL, api.LINEARIZABLE):
                found = await get_flag(caller, "f", consistency)
                assert (found.flag.description, found.meta.version) == ("goes on", 3)
                assert (await error_of(get_flag(caller, "g", consistency))).reason == "FLAG_NOT_FOUND"
        # Nothing that was too late has left, neither then nor since.
        for region in (EAST, CENTRAL):
            assert not any(b"late" in row for row in fleet[region].everything())
        await at_old.call("SetFlag", described("h", "by the way of the new home", **there))
        assert (await get_flag(at_new, "h")).flag.description.startswith("by the way")
        # It goes back as it came, and the quarantine stays.
        await at_new.call("MovePartition", move(SHARED, WEST))
        await everywhere(fleet, SHARED, WEST, 3)
        await at_old.call("SetFlag", described("f", "home again", **there))
        assert (await get_flag(at_old, "f", api.LINEARIZABLE)).meta.version == 4
        assert await quarantine(fleet, WEST, SHARED) == [("f", b"late"), ("g", b"late too")]
        await until(lambda: any(b"home again" in row for row in fleet[CENTRAL].everything()))
        assert (await get_flag(at_third, "f")).meta.version == 4
        assert not any(b"late" in row for row in fleet[CENTRAL].everything())


async def test_a_region_that_comes_back_hears_of_it_from_a_third_one_too(tmp_path):
    there = {"partition": SHARED}
    async with running(tmp_path) as fleet, fleet.caller(WEST) as at_old:
        await at_old.call("SetFlag", described("f", "copied", **there))
        await fleet.settled()
        await cut_off(fleet, WEST)
        await force(fleet, EAST, SHARED)
        await everywhere(fleet, SHARED, EAST, 2, (EAST, CENTRAL))
        await at_old.call("SetFlag", described("f", "late", **there))
        await fleet.heal(WEST, CENTRAL)
        await until(lambda: home_of(fleet, WEST, SHARED) == (EAST, 2))
        error = await error_of(at_old.call("SetFlag", described("f", "later", **there)))
        assert (type(error), error.reason) == (Unavailable, "HOME_UNREACHABLE")
        assert (await error_of(get_flag(at_old, "f"))).reason == "COPY_INCOMPLETE"
        assert await quarantine(fleet, WEST, SHARED) == [("f", b"late")]
        assert (await view(fleet, WEST, SHARED)).state == "left"
        await fleet.heal(WEST, EAST)
        await until(lambda: fleet[WEST].node.places.shown(SHARED) is not None)
        assert (await get_flag(at_old, "f")).flag.description == "copied"


async def test_forced_twice_the_newest_home_is_right(tmp_path):
    there = {"partition": SHARED}
    async with running(tmp_path) as fleet, fleet.caller(WEST) as maria, fleet.caller(EAST) as eve:
        await maria.call("SetFlag", described("f", "one", **there))
        await fleet.settled()
        await cut_off(fleet, WEST)
        await maria.call("SetFlag", described("west", "late", **there))
        await force(fleet, EAST, SHARED)
        await everywhere(fleet, SHARED, EAST, 2, (EAST, CENTRAL))
        await eve.call("SetFlag", described("f", "two", **there))
        await until(lambda: any(b"two" in row for row in fleet[CENTRAL].everything()))
        await fleet.cut(EAST, CENTRAL)
        await until(lambda: fleet[CENTRAL].link(EAST).state == "down")
        await eve.call("SetFlag", described("east", "late", **there))
        await force(fleet, CENTRAL, SHARED)
        await until(lambda: home_of(fleet, CENTRAL, SHARED) == (CENTRAL, 3))
        # The first home hears of the second one first.
        await fleet.heal(WEST, EAST)
        await until(lambda: home_of(fleet, WEST, SHARED) == (EAST, 2))
        await fleet.heal(WEST, CENTRAL)
        await fleet.heal(EAST, CENTRAL)
        await everywhere(fleet, SHARED, CENTRAL, 3)
        assert await quarantine(fleet, WEST, SHARED) == [("west", b"late")]
        assert await quarantine(fleet, EAST, SHARED) == [("east", b"late")]
        assert not any(b"late" in row for row in fleet[CENTRAL].everything())
        for region in fleet.regions:
            await until(lambda region=region: fleet[region].node.places.shown(SHARED) is not None)
            async with fleet.caller(region) as caller:
                assert (await get_flag(caller, "f")).flag.description == "two"


async def test_a_region_that_is_taking_over_hears_from_a_third_one_that_another_did(tmp_path):
    there = {"partition": SHARED}
    async with running(tmp_path, eu_west=1, eu_central=1, us_east=1) as fleet, fleet.caller(WEST) as at_old:
        await at_old.call("SetFlag", described("f", "copied", **there))
        await fleet.settled()
        await cut_off(fleet, WEST)
        await fleet.cut(EAST, CENTRAL)
        await until(lambda: fleet[CENTRAL].link(EAST).state == "down")
        await force(fleet, EAST, SHARED)
        await until(lambda: home_of(fleet, EAST, SHARED) == (EAST, 2))
        mover = fleet[CENTRAL].member.federation.mover
        await mover.stop()
        await force(fleet, CENTRAL, SHARED)
        await fleet.heal(WEST, EAST)
        await until(lambda: home_of(fleet, WEST, SHARED) == (EAST, 2))
        await fleet.heal(WEST, CENTRAL)
        await until(lambda: fleet[CENTRAL].node.places.moves[SHARED].phase == Move.CANCELLED)
        mover.start()
        await fleet.heal(EAST, CENTRAL)
        await everywhere(fleet, SHARED, EAST, 2)


async def test_a_move_can_be_called_off_until_the_new_home_is_one(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        await at_old.call("CreateWorkflow", create("w"))
        await fleet.settled()
        # A target that cannot be asked neither takes over nor lets go.
        await fleet.cut(WEST, CENTRAL)
        await until(lambda: fleet[WEST].link(CENTRAL).state == "down")
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        error = await error_of(at_old.call("CompareAndSwapWorkflow", swap("w", 1, b"{}")))
        assert (type(error), error.reason) == (Unavailable, "PARTITION_MOVING")
        assert (await error_of(at_old.call("GetWorkflow", get("w")))).reason == "PARTITION_MOVING"
        assert (
            await told(at_old, "GetWorkflow", get("w", consistency=api.LOCAL), api.GetWorkflowReply)
        ).workflow.version
        error = await error_of(at_old.call("MovePartition", move(STATE, cancel=True)))
        assert (type(error), error.reason) == (Unavailable, "HOME_UNREACHABLE")
        # The new home's mover is held, so that the one that calls off comes first.
        await fleet[CENTRAL].member.federation.mover.stop()
        await fleet.heal(WEST, CENTRAL)
        await until(lambda: fleet[CENTRAL].node.places.moves.get(STATE) is not None)
        assert (await view(fleet, CENTRAL, STATE)).state == "adopting"
        shown = await patiently(at_old, "MovePartition", move(STATE, cancel=True))
        assert api.MovePartitionReply.FromString(shown).partition.state == "home"
        await at_old.call("CompareAndSwapWorkflow", swap("w", 1, b"{}"))
        assert fleet[CENTRAL].node.places.moves[STATE].phase == Move.CANCELLED
        # Once more is no harm. The epoch that was called off is never begun.
        await at_old.call("MovePartition", move(STATE, cancel=True))
        await fleet[CENTRAL].restart()
        await until(lambda: fleet[WEST].link(CENTRAL).state == "up")
        await patiently(at_old, "MovePartition", move(STATE, CENTRAL))
        await everywhere(fleet, STATE, CENTRAL, 3)
        found = await told(at_old, "GetWorkflow", get("w"), api.GetWorkflowReply)
        assert (found.workflow.version, found.header.epoch) == (2, 3)
        assert (await error_of(at_old.call("MovePartition", move(STATE, cancel=True)))).reason == "NOT_MOVING"


async def test_an_epoch_that_was_declined_for_another_home_is_called_off(tmp_path):
    # Fleets, one node, seed 7117: of two homes that were forced, one gave way while it moved on to a third one.
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        await at_old.call("CreateWorkflow", create("w"))
        await fleet.settled()
        there = fleet[CENTRAL].node
        rival = Partition(id=STATE, home=EAST, epoch=1, reach=JURISDICTION, environment="prod")
        await there.transact(system(CENTRAL), "Decline", lambda tx: moves.decline(tx, rival, 2), timeout_s=5)
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        await until(lambda: fleet[WEST].node.places.moves[STATE].phase == Move.CANCELLED)
        await at_old.call("CompareAndSwapWorkflow", swap("w", 1, b"{}"))
        assert home_of(fleet, WEST, STATE) == (WEST, 1)
        await patiently(at_old, "MovePartition", move(STATE, CENTRAL))
        await everywhere(fleet, STATE, CENTRAL, 3)
        found = await told(at_old, "GetWorkflow", get("w"), api.GetWorkflowReply)
        assert (found.workflow.version, found.header.epoch) == (2, 3)


async def test_what_was_taken_over_for_nothing_is_removed_everywhere(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        for n in range(200):
            await at_old.call("CreateWorkflow", create(f"w{n}"))
        await fleet.settled()
        mover = fleet[CENTRAL].member.federation.mover
        await fleet[CENTRAL].member.federation.mover.stop()
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        await until(lambda: STATE in fleet[CENTRAL].node.places.moves)
        [there] = fleet[CENTRAL].node.places.arriving()
        moving = fleet[CENTRAL].node.places.moves[STATE]
        await mover._all(there, "TakeOver", lambda tx: moves.take_over(tx, moving, frozenset()))
        await until(lambda: len(fleet[WEST].held(CENTRAL, JURISDICTION)) == 200)
        await at_old.call("MovePartition", move(STATE, cancel=True))
        mover.start()
        await until(lambda: fleet[CENTRAL].held(CENTRAL, JURISDICTION) == {})
        await until(lambda: fleet[WEST].held(CENTRAL, JURISDICTION) == {})
        await at_old.call("CompareAndSwapWorkflow", swap("w0", 1, b"{}"))


@pytest.mark.parametrize("crashed", [WEST, CENTRAL])
@pytest.mark.parametrize("phase", ["sealed", "adopting", "adopted"])
async def test_a_crash_at_any_step_delays_and_nothing_else(tmp_path, crashed, phase):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        for n in range(150):
            await at_old.call("CreateWorkflow", create(f"w{n}"))
        await fleet.settled()
        if phase == "sealed":
            await fleet.cut(WEST, CENTRAL)
            await until(lambda: fleet[WEST].link(CENTRAL).state == "down")
        if phase == "adopting":
            await fleet[CENTRAL].member.federation.mover.stop()
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        if phase != "sealed":
            wanted = {"adopting": Move.ADOPTING, "adopted": Move.ADOPTED}[phase]
            found = lambda: fleet[CENTRAL].node.places.moves.get(STATE)  # noqa: E731
            await until(lambda: found() is not None and found().phase == wanted)
        await fleet[crashed].restart()
        await fleet.heal(WEST, CENTRAL)
        if phase == "adopting" and crashed == WEST:
            fleet[CENTRAL].member.federation.mover.start()
        await everywhere(fleet, STATE, CENTRAL, 2)
        reply = await patiently(at_old, "CompareAndSwapWorkflow", swap("w7", 1, b"{}"))
        assert api.CompareAndSwapWorkflowReply.FromString(reply).version == 2
        assert len(fleet[CENTRAL].held(CENTRAL, JURISDICTION)) == 150


async def test_another_leader_goes_on_with_a_move_on_either_side(tmp_path):
    async with running(tmp_path, eu_west=3, eu_central=3) as fleet:
        async with fleet.caller(WEST, node=fleet[WEST].member.name) as at_old:
            for n in range(50):
                await at_old.call("CreateWorkflow", create(f"w{n}"))
            await fleet.settled()
            await fleet.cut(WEST, CENTRAL)
            await at_old.call("MovePartition", move(STATE, CENTRAL), timeout_s=10)
        for region in (WEST, CENTRAL):
            await fleet[region].member.stop()
            await until(
                lambda region=region: any(m.running and m.node.log.status().ready for m in members(fleet, region))
            )
        await fleet.heal(WEST, CENTRAL)
        for member in (*members(fleet, WEST), *members(fleet, CENTRAL)):
            if member.running:
                await until(lambda member=member: member.node.places.routed(STATE).home == CENTRAL)
        async with fleet.caller(WEST, node=fleet[WEST].member.name) as at_old:
            reply = await patiently(at_old, "CompareAndSwapWorkflow", swap("w7", 1, b"{}"))
            assert api.CompareAndSwapWorkflowReply.FromString(reply).version == 2


def members(fleet, region):
    return fleet[region].members.values()


async def test_what_cannot_be_moved_or_may_not_is_refused(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(WEST) as operator, fleet.caller(EAST) as elsewhere:
        for partition, to, reason in (
            (PINNED, CENTRAL, "PARTITION_PINNED"),
            (STOPS, CENTRAL, "PARTITION_HOLDS_STOPS"),
            (STATE, EAST, "TARGET_NOT_LAWFUL"),
            (STATE, WEST, "AT_HOME_ALREADY"),
            (STATE, "ap-south", "PEER_UNKNOWN"),
            (f"{CENTRAL}.prod.shared", EAST, "NOT_AT_HOME"),
        ):
            error = await error_of(operator.call("MovePartition", move(partition, to)))
            assert (type(error), error.reason) == (Refused, reason), partition
        assert (await error_of(operator.call("MovePartition", move("eu-west.prod.none", EAST)))).reason == (
            "PARTITION_UNKNOWN"
        )
        assert (await error_of(operator.call("MovePartition", move(STATE, CENTRAL, reason=" ")))).reason == (
            "REASON_MISSING"
        )
        error = await error_of(elsewhere.call("MovePartition", move(PINNED, EAST, forced=True, attestation="gone")))
        assert error.reason == "PARTITION_UNKNOWN"
        assert "backup" in error.hint
        await fleet.settled()
        await cut_off(fleet, WEST)
        error = await error_of(elsewhere.call("MovePartition", move(SHARED, EAST, forced=True)))
        assert error.reason == "ATTESTATION_MISSING"
        error = await error_of(
            elsewhere.call("MovePartition", move(SHARED, EAST, forced=True, attestation="gone", upto=1))
        )
        assert (type(error), error.reason) == (Refused, "COPY_MOVED")
        assert (await error_of(force(fleet, CENTRAL, f"{CENTRAL}.prod.shared"))).reason == "AT_HOME_ALREADY"


async def test_operators_of_the_target_decide_too(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet:
        fleet[CENTRAL].may_leave = {WEST: ["global"]}
        await fleet[CENTRAL].restart()
        await until(lambda: fleet[WEST].member.federation.links.get(CENTRAL).receives == {GLOBAL})
        async with fleet.caller(WEST) as operator:
            error = await error_of(operator.call("MovePartition", move(STATE, CENTRAL)))
            assert (type(error), error.reason) == (Refused, "TARGET_DOES_NOT_SHARE")
        fleet[WEST].may_leave = {CENTRAL: ["global"]}
        await fleet[WEST].restart()
        async with fleet.caller(WEST) as operator:
            error = await error_of(operator.call("MovePartition", move(STATE, CENTRAL)))
            assert (type(error), error.reason) == (Refused, "MAY_NOT_LEAVE")


@pytest.mark.parametrize("role", ["agent", "approver", "reviewer"])
async def test_only_operators_move(tmp_path, role):
    async with running(tmp_path, eu_west=1) as fleet, fleet.caller(WEST, role) as caller:
        error = await error_of(caller.call("MovePartition", move(STATE, CENTRAL)))
        assert (type(error), error.reason) == (Denied, "ROLE_DENIED")


async def test_a_request_from_before_the_move_is_known_again(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        since = fleet[WEST].node.revision
        first = create("w", since=since)
        before = await told(at_old, "CreateWorkflow", first, api.CreateWorkflowReply)
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        await everywhere(fleet, STATE, CENTRAL, 2)
        again = await told(at_old, "CreateWorkflow", first, api.CreateWorkflowReply)
        assert (again.header.revision, again.header.epoch, again.version) == (before.header.revision, 1, 1)
        asked = api.GetOutcomeRequest(header=api.RequestHeader(request_id=first.header.request_id, since=since))
        outcome = await told(at_old, "GetOutcome", asked, api.GetOutcomeReply)
        assert (outcome.known, outcome.revision) == (api.GetOutcomeReply.COMMITTED, before.header.revision)
        # Who had seen the epoch that is over is told so.
        error = await error_of(at_old.call("CreateWorkflow", create("other", epoch=1)))
        assert (type(error), error.reason) == (OutcomeUnknown, "EPOCH_CHANGED")


async def test_what_callers_abroad_are_told_of_a_partition_that_has_left_is_of_its_reach(tmp_path):
    """They may not have heard of the move yet; a reviewer has to be able to say what left all the same."""
    async with running(tmp_path) as fleet, fleet.caller(WEST) as at_old, fleet.caller(EAST) as maria:
        since = fleet[WEST].node.revision
        first = flag("f", partition=SHARED, since=since)
        await maria.call("SetFlag", first)
        await at_old.call("MovePartition", move(SHARED, CENTRAL))
        await everywhere(fleet, SHARED, CENTRAL, 2)
        header = api.RequestHeader(partition=SHARED, request_id=first.header.request_id, since=since)
        async with fleet.peer(EAST, WEST) as late:
            await forward(late, forwarded(fleet, EAST, WEST, "GetOutcome", api.GetOutcomeRequest(header=header)))
            await forward(late, forwarded(fleet, EAST, WEST, "SetFlag", first))
            new = forwarded(fleet, EAST, WEST, "SetFlag", flag("g", partition=SHARED))
            assert (await error_of(forward(late, new))).reason == "PARTITION_MOVED"
        told = lambda: fleet[WEST].passages(sort="answer", counterparty=EAST)  # noqa: E731
        await until(lambda: sum(each.records for each in told()) == 4)
        assert {each.reach for each in told()} == {GLOBAL}


async def test_a_request_whose_write_was_given_up_is_not_told_that_it_happened(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(WEST) as at_old:
        early = flag("f", partition=SHARED)
        await at_old.call("SetFlag", early)
        await fleet.settled()
        await cut_off(fleet, WEST)
        late = flag("late", partition=SHARED)
        await at_old.call("SetFlag", late)
        await force(fleet, EAST, SHARED)
        await rejoin(fleet, WEST)
        await everywhere(fleet, SHARED, EAST, 2)
        error = await error_of(at_old.call("SetFlag", late))
        assert (type(error), error.reason) == (OutcomeUnknown, "EPOCH_CHANGED")
        # Not even by the same region, once it is the home again: what is there now does not have it.
        await fleet.settled(EAST)
        async with fleet.caller(EAST) as at_new:
            await at_new.call("MovePartition", move(SHARED, WEST))
        await everywhere(fleet, SHARED, WEST, 3)
        assert (await error_of(get_flag(at_old, "late", api.LINEARIZABLE))).reason == "FLAG_NOT_FOUND"
        error = await error_of(at_old.call("SetFlag", late))
        assert (type(error), error.reason) == (OutcomeUnknown, "EPOCH_CHANGED")
        header = api.RequestHeader(request_id=late.header.request_id, partition=SHARED)
        error = await error_of(at_old.call("GetOutcome", api.GetOutcomeRequest(header=header)))
        assert (type(error), error.reason) == (OutcomeUnknown, "EPOCH_CHANGED")
        # What it had written before, and what it writes now, is known.
        assert api.SetFlagReply.FromString(await at_old.call("SetFlag", early)).meta.version == 1
        now = flag("now", partition=SHARED)
        await at_old.call("SetFlag", now)
        assert api.SetFlagReply.FromString(await at_old.call("SetFlag", now)).meta.version == 1


async def test_a_read_that_waits_while_the_home_moves_reads_where_it_is_then(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        await at_old.call("CreateWorkflow", create("w"))
        await fleet.settled()
        node = fleet[WEST].node
        ahead = api.RequestHeader(consistency=api.AT_LEAST, revision=node.revision + 60)
        record = asyncio.create_task(at_old.call("GetWorkflow", api.GetWorkflowRequest(header=ahead, id="w")))
        listed = api.ListEventsRequest(header=ahead, kinds=["workflow"])
        events = asyncio.create_task(told(at_old, "ListEvents", listed, api.ListEventsReply))
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        await everywhere(fleet, STATE, CENTRAL, 2)
        # What it would have read when it was asked is gone.
        await until(lambda: fleet[WEST].held(WEST, JURISDICTION) == {})
        assert not record.done()
        assert not events.done()
        while node.revision < ahead.revision:
            await at_old.call("SetFlag", flag(f"f{node.revision}"))
        async with asyncio.timeout(5):
            found, changes = api.GetWorkflowReply.FromString(await record), (await events).changes
        assert (found.workflow.version, found.header.epoch) == (1, 2)
        assert [(each.name, each.home) for each in changes] == [("w", CENTRAL)]


async def test_whether_a_request_was_made_is_not_denied_by_who_was_its_home_when_that_was_asked(tmp_path, monkeypatch):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        node, asked, gate = fleet[WEST].node, asyncio.Event(), asyncio.Event()

        async def barrier(*, timeout_s):
            asked.set()
            await gate.wait()

        monkeypatch.setattr(node.log, "barrier", barrier)
        header = api.RequestHeader(request_id=b"r" * 16)
        question = asyncio.create_task(at_old.call("GetOutcome", api.GetOutcomeRequest(header=header)))
        await asked.wait()
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        await everywhere(fleet, STATE, CENTRAL, 2)
        monkeypatch.undo()
        gate.set()
        assert isinstance(await error_of(question), Unavailable)


async def test_watchers_are_told_and_find_everything_again(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        await at_old.call("CreateWorkflow", create("w"))
        await fleet.settled()
        request = api.WatchRequest(kinds=["workflow"], snapshot=True)
        watch = at_old.stream("Watch", request)
        while (reply := api.WatchReply.FromString(await watch.read())).kind != api.WatchReply.SYNCED:
            pass
        place = reply.revision
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        assert (await ended(watch)).reason == "PARTITIONS_CHANGED"
        resumed = at_old.stream("Watch", api.WatchRequest(kinds=["workflow"], after_revision=place))
        assert (await ended(resumed)).reason == "PARTITIONS_CHANGED"
        watch = at_old.stream("Watch", request)
        seen = []
        while (reply := api.WatchReply.FromString(await watch.read())).kind != api.WatchReply.SYNCED:
            seen += [(change.name, change.home, change.meta.version) for change in reply.changes]
        assert seen == [("w", CENTRAL, 1)]
        await patiently(at_old, "CompareAndSwapWorkflow", swap("w", 1, b"{}"))
        while (reply := api.WatchReply.FromString(await watch.read())).kind != api.WatchReply.CHANGES:
            pass
        assert [(each.name, each.meta.version) for each in reply.changes] == [("w", 2)]
        watch.cancel()


async def ended(stream):
    with contextlib.suppress(Exception):
        while isinstance(await stream.read(), bytes):
            pass
    return status.from_call(await stream.code(), await stream.details(), await stream.trailing_metadata())


async def test_a_lease_comes_along_and_its_old_fence_does_not(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST, "agent") as agent:
        mine = {"name": "leader", "process": b"p" * 16}
        header = {"partition": STATE}
        campaign = lambda process: api.CampaignRequest(  # noqa: E731
            header=write_header(**header), name="leader", process=process, ttl_ms=60_000
        )
        won = await told(agent, "Campaign", campaign(b"p" * 16), api.CampaignReply)
        async with fleet.caller(WEST) as operator:
            await operator.call("MovePartition", move(STATE, CENTRAL))
        await everywhere(fleet, STATE, CENTRAL, 2)
        old = won.holder.fence
        renewal = api.RenewRequest(header=write_header(**header), fence=old, **mine)
        assert (await error_of(agent.call("Renew", renewal))).reason == "LEASE_LOST"
        other = await told(agent, "Campaign", campaign(b"q" * 16), api.CampaignReply)
        assert not other.elected
        again = await told(agent, "Campaign", campaign(b"p" * 16), api.CampaignReply)
        new = again.holder.fence
        assert again.elected
        assert (new.epoch, old.epoch) == (2, 1)
        # The reaper of the new home watches over it.
        await until(lambda: fleet[CENTRAL].member.controllers._reaper._due)


async def test_the_old_home_can_force_a_move_that_cannot_end(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as at_old:
        await at_old.call("CreateWorkflow", create("w"))
        await fleet.settled()
        await fleet.cut(WEST, CENTRAL)
        await until(lambda: fleet[WEST].link(CENTRAL).state == "down")
        await at_old.call("MovePartition", move(STATE, CENTRAL))
        await force(fleet, WEST, STATE)
        await until(lambda: home_of(fleet, WEST, STATE) == (WEST, 3))
        reply = await patiently(at_old, "CompareAndSwapWorkflow", swap("w", 1, b"{}"))
        assert api.CompareAndSwapWorkflowReply.FromString(reply).version == 2
        await fleet.heal(WEST, CENTRAL)
        await everywhere(fleet, STATE, WEST, 3)


async def test_the_record_of_a_move_is_audited_and_says_who_and_why_at_home_only(tmp_path):
    canary = "kanarienvogel"
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST, name=canary) as at_old:
        await at_old.call("MovePartition", move(STATE, CENTRAL, reason=f"{canary} said so"))
        await everywhere(fleet, STATE, CENTRAL, 2)
        said = await view(fleet, WEST, STATE)
        assert said.move.phase == Move.LEFT
        rows = [row for row in fleet[WEST].everything() if canary.encode() in row]
        assert rows
        assert not any(canary.encode() in row for row in fleet[CENTRAL].everything())


async def test_who_is_not_told_of_the_new_home_does_not_call_an_old_copy_fresh(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(WEST) as at_old, fleet.caller(CENTRAL) as at_third:
        await at_old.call("SetFlag", described("f", "old", partition=SHARED))
        await fleet.settled()
        # The new home's operators let nothing leave for the third region.
        fleet[EAST].may_leave = {CENTRAL: []}
        await fleet[EAST].restart()
        await until(lambda: fleet[WEST].link(EAST).state == "up")
        await patiently(at_old, "MovePartition", move(SHARED, EAST))
        await everywhere(fleet, SHARED, EAST, 2, (WEST, EAST))
        await until(lambda: fleet[CENTRAL].node.abroad.partitions[SHARED].withdrawn)
        header = api.RequestHeader(partition=SHARED, consistency=api.LOCAL)
        read = await told(at_third, "GetFlag", api.GetFlagRequest(header=header, name="f"), api.GetFlagReply)
        assert (read.flag.flag.description, read.header.age_ms) == ("old", AGE_UNKNOWN_MS)
        error = await error_of(at_third.call("SetFlag", flag("g", partition=SHARED)))
        assert (type(error), error.reason) == (Unavailable, "PARTITION_MOVED")
        assert (await error_of(force(fleet, CENTRAL, SHARED))).reason == "HOME_UNKNOWN"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"home": CENTRAL}, "MOVE_MALFORMED"),
        ({"epoch": 5}, "MOVE_MALFORMED"),
        ({"environment": ""}, "MOVE_MALFORMED"),
        ({"environment": "elsewhere"}, "MOVE_MALFORMED"),
        ({"id": "a\0b"}, "NAME_BAD_CHARACTERS"),
        ({"id": PINNED, "reach": HOME_ONLY}, "MOVE_MALFORMED"),
        ({"id": "eu-west.prod.none"}, "COPY_INCOMPLETE"),
        ({"id": f"{CENTRAL}.prod.shared"}, "COPY_INCOMPLETE"),
    ],
)
async def test_only_what_a_peer_is_the_home_of_is_taken_over(tmp_path, changes, reason):
    async with running(tmp_path) as fleet, fleet.peer(WEST, EAST) as peer:
        await fleet.settled()
        terms = packed(fleet[WEST].member.federation.links.get(EAST).terms)
        offered = {"id": SHARED, "home": WEST, "epoch": 1, "reach": GLOBAL, "environment": "prod", **changes}
        request = wire.AdoptRequest(terms=terms, partition=Partition(**offered), epoch=2, sealed=1)
        error = await error_of(peer.call("Adopt", request, service="Federation"))
        assert error.reason == reason
        assert fleet[EAST].node.places.moves == {}


@pytest.mark.parametrize(
    "said",
    [
        {"id": PINNED.replace(WEST, EAST), "reach": GLOBAL},
        {"id": SHARED.replace(WEST, EAST), "reach": JURISDICTION},
        {"id": f"{EAST}.prod.unknown", "reach": JURISDICTION},
    ],
)
async def test_nobody_becomes_the_home_of_what_may_not_be_there_by_calling_off_a_move(tmp_path, said):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(WEST, EAST) as peer:
        await fleet.settled()
        before = dict(fleet[EAST].node.partitions)
        terms = packed(fleet[WEST].member.federation.links.get(EAST).terms)
        claimed = Partition(home=WEST, epoch=7, environment="prod", **said)
        claimed.former.add(home=EAST, epoch=1, upto=1)
        request = wire.AdoptRequest(terms=terms, partition=claimed, epoch=8, sealed=1, cancel=True)
        error = await error_of(peer.call("Adopt", request, service="Federation"))
        assert error.reason == "MOVE_MALFORMED"
        assert fleet[EAST].node.partitions == before
        assert fleet[EAST].node.places.moves == {}


async def test_what_was_declined_before_it_was_known_is_still_found_at_its_home(tmp_path):
    async with running(tmp_path) as fleet, fleet.peer(WEST, EAST) as peer, fleet.caller(EAST) as maria:
        await fleet.settled()
        terms = packed(fleet[WEST].member.federation.links.get(EAST).terms)
        # As when it came home again a moment ago, and is called off before this is known here.
        later = Partition(id=SHARED, home=WEST, epoch=3, reach=GLOBAL, environment="prod")
        request = wire.AdoptRequest(terms=terms, partition=later, epoch=4, sealed=1, cancel=True)
        reply = wire.AdoptReply.FromString(await peer.call("Adopt", request, service="Federation"))
        assert reply.phase == Move.CANCELLED
        await maria.call("CreateWorkflow", create("w", partition=SHARED))
        found = await told(maria, "GetWorkflow", get("w", SHARED), api.GetWorkflowReply)
        assert found.header.region == WEST


async def test_a_home_that_declines_what_a_later_one_offered_lists_what_it_had_written(tmp_path):
    there = {"partition": SHARED}
    async with (
        running(tmp_path, eu_west=1, us_east=1) as fleet,
        fleet.caller(WEST) as at_old,
        fleet.caller(EAST) as at_new,
        fleet.peer(WEST, EAST) as peer,
    ):
        await at_old.call("SetFlag", described("f", "copied", **there))
        await fleet.settled()
        await cut_off(fleet, WEST)
        await force(fleet, EAST, SHARED)
        await until(lambda: home_of(fleet, EAST, SHARED) == (EAST, 2))
        await at_new.call("SetFlag", described("g", "given up", **there))
        # Meanwhile the old home forced a move to itself, planned another one, and calls that off.
        terms = packed(fleet[WEST].member.federation.links.get(EAST).terms)
        later = Partition(id=SHARED, home=WEST, epoch=3, reach=GLOBAL, environment="prod")
        later.former.add(home=WEST, epoch=1, upto=1000)
        request = wire.AdoptRequest(terms=terms, partition=later, epoch=4, sealed=1, cancel=True)
        reply = wire.AdoptReply.FromString(await peer.call("Adopt", request, service="Federation"))
        assert reply.phase == Move.CANCELLED
        assert home_of(fleet, EAST, SHARED) == (WEST, 3)
        assert await quarantine(fleet, EAST, SHARED) == [("f", b"copied"), ("g", b"given up")]


async def test_a_home_does_not_forget_that_it_is_one_for_who_has_not_heard_of_it(tmp_path):
    # Fleets, one node, seed 7420: both were forced, in the same epoch.
    there = {"partition": SHARED}
    async with (
        running(tmp_path, eu_west=1, us_east=1) as fleet,
        fleet.caller(EAST) as at_right,
        fleet.peer(WEST, EAST) as peer,
    ):
        await fleet.settled()
        await cut_off(fleet, WEST)
        await force(fleet, EAST, SHARED)
        await until(lambda: home_of(fleet, EAST, SHARED) == (EAST, 2))
        await at_right.call("SetFlag", described("f", "kept", **there))
        terms = packed(fleet[WEST].member.federation.links.get(EAST).terms)
        other = Partition(id=SHARED, home=WEST, epoch=2, reach=GLOBAL, environment="prod")
        other.former.add(home=WEST, epoch=1, upto=1000)
        request = wire.AdoptRequest(terms=terms, partition=other, epoch=3, sealed=1, cancel=True)
        reply = wire.AdoptReply.FromString(await peer.call("Adopt", request, service="Federation"))
        assert reply.phase == Move.PHASE_UNSPECIFIED
        assert home_of(fleet, EAST, SHARED) == (EAST, 2)
        assert (await get_flag(at_right, "f", api.LINEARIZABLE)).flag.description == "kept"
