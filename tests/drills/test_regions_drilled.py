"""Drills of several regions, on whole regions in one event loop: what they show, and what they must not hide."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from controlplane import sdk
from controlplane.drills import errands, picture, record, runner
from controlplane.drills.nodes import Nodes
from controlplane.drills.record import Chosen
from controlplane.drills.runner import Runner, There
from controlplane.drills.scenarios import Options
from controlplane.errors import Denied, Invalid, Refused
from controlplane.identity import Identity
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2
from tests.federation.fleet import EAST, FLEET, WEST, running
from tests.federation.test_leaks import CANARY, holds_canary, plant, plant_more
from tests.server.regions import until, write_header

SPEEDS = {
    "recovery_ms",
    "unknown_percent",
    "kill_confirmed_ms",
    "full_replication_ms",
    "caught_up_ms",
    "refused_ms",
    "refused_there_ms",
    "heard_after_healing_ms",
    "freed_ms",
    "acknowledged_writes",
}
"""How fast it was, and how much, is not judged here: the machine may be busy with other things."""


@dataclass
class Desk:
    """Somebody with an operator's certificate in each region of a fleet."""

    fleet: object
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def side(self, region: str, role: str = "operator") -> There:
        """The nodes of a region, and how to connect there."""
        identity = Identity(FLEET, "prod", region, role, "maria")
        signed = self.fleet.authority.sign(identity)
        folder: Path = self.fleet.folder / os.urandom(4).hex()
        signed.save(folder / "crt", folder / "key")
        files = (self.fleet.authority.file, folder / "key", folder / "crt")
        tls = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
        served = self.fleet[region]
        addresses = [f"127.0.0.1:{port}" for port in served.ports[: served.size]]
        nodes = await self.stack.enter_async_context(Nodes(lambda: tls, addresses))

        def connect(given, mirror):
            certificate = {"ca": files[0], "key": files[1], "cert": files[2]}
            return sdk.ControlPlane.connect(
                list(given or addresses), **certificate, mirror=mirror, follow_leader=not given
            )

        return There(nodes, connect)

    async def prepared(self, name: str, options: Options, there: tuple[str, ...] = (), region: str = EAST):
        own, others = await self.side(region), [await self.side(each) for each in there]
        made, problems, looks = await runner.prepare(own.nodes, name, options, others)
        course = runner.new_course(made, options, looks, lambda: 1_700_000_000_000) if made else None
        return own, others, course, problems

    async def run(self, name: str, options: Options, there: tuple[str, ...] = (), meanwhile=None, region: str = EAST):
        """Run a drill of a region; return its course."""
        own, others, course, problems = await self.prepared(name, options, there, region)
        assert not problems
        running_ = Runner(own.nodes, own.connect, course, "test", "", there=others)
        doing = asyncio.create_task(meanwhile(running_)) if meanwhile else None
        await running_.run()
        if doing is not None:
            await doing
        return course


@contextlib.asynccontextmanager
async def desk(tmp_path, **sizes):
    async with running(tmp_path, drilled=True, **sizes) as fleet:
        for region in fleet.regions:
            await fleet.settled(region)
            await until(lambda region=region: all(age_ms < 3_000 for _, age_ms in fleet[region].node.views()))
        made = Desk(fleet)
        async with made.stack:
            yield made


def recorded(course, folder):
    """The record, what its history says once more, and its claims by name."""
    history = folder / "h.jsonl"
    course.recorder.write(history)
    made = record.compose(course, Chosen("test", ""), history.read_bytes(), history.name)
    document, _ = record.opened(record.sealed(made, "", ""))
    checks = record.recheck(document, folder)
    return document, checks, {claim["name"]: claim for claim in document["claims"]}


def failed(claims):
    return {name for name, claim in claims.items() if claim["passed"] is False}


async def test_kill_switches_thrown_on_both_sides_of_a_cut_hold_there_and_then_everywhere(tmp_path):
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        course = await maria.run("kill-under-partition", Options(down_s=3.0, calm_s=0.3), there=(WEST,))
    document, checks, claims = recorded(course, tmp_path)
    assert not course.ended_early
    assert failed(claims) <= SPEEDS
    assert claims["held_while_cut"]["actual"] == claims["held_by_others"]["actual"] == 2
    assert claims["heard_after_healing_ms"]["actual"] is not None
    assert all(claim["passed"] is not None for claim in claims.values())
    assert {check.name for check in checks if not check.passed} <= SPEEDS | {"verdict"}
    assert "us-east" in record.markdown(document)
    # Who writes another end into the record is found out.
    document["setting"]["held_ns"] = document["setting"]["healed_ns"] = document["window"]["end_ns"]
    assert "cut" in {check.name for check in record.recheck(document, tmp_path) if not check.passed}


async def test_a_cut_that_cuts_nothing_is_found_out(tmp_path):
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        maria.fleet[EAST].member.injector.sever = lambda regions: None
        course = await maria.run("kill-under-partition", Options(down_s=4.0, calm_s=0.3), there=(WEST,))
    _, checks, claims = recorded(course, tmp_path)
    assert failed(claims) - SPEEDS >= {"links_down", "crossed_the_cut", "held_while_cut", "revived"}
    assert {"crossed_the_cut", "verdict"} <= {check.name for check in checks if not check.passed}


async def test_an_abort_heals_and_releases_in_every_region(tmp_path):
    async def aborted(running_):
        await until(lambda: [each for each in running_.course.timeline if each.what == "fault"])
        await asyncio.sleep(0.3)
        nodes = (await maria.side(EAST)).nodes
        await nodes.meet()
        assert not await nodes.heal_all(running_.course.drill, "enough", abort=True)

    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        course = await maria.run(
            "kill-under-partition", Options(down_s=60.0, calm_s=0.3), there=(WEST,), meanwhile=aborted
        )
        assert course.ended_early == "aborted at east1"
        for region in (EAST, WEST):
            side = await maria.side(region)
            async with side.connect((), False) as plane:
                assert not (await plane.list_switches(engaged_only=True)).switches
        await until(lambda: maria.fleet[EAST].link(WEST).state == "up")
    document, _, claims = recorded(course, tmp_path)
    assert document["verdict"] == "failed"
    assert claims["lost_writes"]["passed"]
    assert not course.left


async def test_what_is_not_well_is_not_drilled(tmp_path):
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        with pytest.raises(Invalid) as raised:
            await maria.prepared("region-loss", Options(regions=("mars",)))
        assert raised.value.reason == "PEER_UNKNOWN"
        side = await maria.side(WEST)
        scope = sdk.Scope(kind=sdk.SCOPE_TOOL, name="engaged-there")
        async with side.connect((), False) as plane:
            await plane.engage(scope, reason="test")
            with pytest.raises(Refused, match="1 kill switches are engaged in eu-west"):
                await maria.run("kill-under-partition", Options(down_s=1.0, calm_s=0.3), there=(WEST,))
            await plane.release(scope, reason="test")
        await maria.fleet.cut(WEST, EAST)
        await until(lambda: maria.fleet[EAST].link(WEST).state == "down")
        for name in ("region-loss", "kill-under-partition"):
            *_, problems = await maria.prepared(name, Options(), there=(WEST,))
            assert any("the link with eu-west is down" in problem for problem in problems)


async def planted(maria):
    """Have in eu-west what must not leave it, with nothing engaged."""
    await plant(maria.fleet, 1)
    async with maria.fleet.caller(WEST, name=CANARY) as writer:
        scope = records_pb2.Scope(kind=records_pb2.SCOPE_TENANT, name=f"{CANARY}0")
        await writer.call("ReleaseSwitch", api.ReleaseSwitchRequest(header=write_header(reason=CANARY), scope=scope))


async def test_no_record_of_a_drill_holds_what_is_pinned(tmp_path, caplog):
    """Whoever is handed a record, of this region or of another, reads nothing in it of what must not leave."""
    names = ["region-loss", "kill-under-partition"]
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        await planted(maria)

        async def planting(running_):
            for number in range(20):
                await plant_more(maria.fleet, f"{running_.course.drill}-{number}")

        found = []
        for region, name in [(EAST, names[0]), (EAST, names[1]), (WEST, "region-cut")]:
            there = (WEST,) if name in names else ()
            options = Options(down_s=1.0, calm_s=0.2, copied=f"{WEST}.prod.global" if name == "region-loss" else "")
            course = await maria.run(name, options, there, planting, region)
            assert not course.ended_early
            document, checks, _ = recorded(course, tmp_path)
            found += [json.dumps(document).encode(), record.markdown(document, checks).encode()]
            found += [(tmp_path / "h.jsonl").read_bytes(), picture.draw(course).encode(), repr(course.plan).encode()]
        # Why it is refused is said as well.
        await maria.fleet.cut(WEST, EAST)
        await until(lambda: maria.fleet[EAST].link(WEST).state == "down")
        *_, problems = await maria.prepared("region-loss", Options(), (WEST,))
        found += [problem.encode() for problem in problems]
        assert problems
        assert holds_canary(found) == []
        assert holds_canary(maria.fleet[EAST].everything()) == []
        assert holds_canary(maria.fleet[WEST].everything())
    assert holds_canary([each.getMessage().encode() for each in caplog.records]) == []


async def test_where_nobody_looks_is_not_checked(tmp_path):
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        course = await maria.run("kill-under-partition", Options(down_s=2.0, calm_s=0.3))
    document, checks, claims = recorded(course, tmp_path)
    assert failed(claims) <= SPEEDS
    assert claims[f"stops_in_{WEST}"]["passed"] is None
    assert "held_while_cut" not in claims
    assert f"stops in {WEST}" in record.markdown(document)
    assert "NOT CHECKED" in record.markdown(document, checks)
    assert "not checked" in {finding["kind"] for finding in document["findings"]}
    assert {check.name for check in checks if not check.checked} == {f"stops_in_{WEST}"}


async def test_a_region_that_is_lost_and_comes_back(tmp_path):
    copied = f"{WEST}.prod.global"
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        options = Options(down_s=4.0, calm_s=0.3, copied=copied)
        course = await maria.run("region-loss", options, there=(WEST,))
    _, checks, claims = recorded(course, tmp_path)
    assert not course.ended_early
    assert failed(claims) <= SPEEDS, claims
    assert claims["written_there"]["actual"] > 10
    assert claims["calls_said_unreachable"]["actual"] >= 1
    assert claims["isolated_mode_shown"]["actual"] == "yes"
    assert {check.name for check in checks if not check.passed} <= SPEEDS | {"verdict"}


SHARED = f"{EAST}.prod.shared"
MOVING = Options(down_s=10.0, calm_s=0.3, moved=SHARED)
PAUSES = {"writes_paused_away_ms", "writes_paused_back_ms"}


async def place_of(maria, region):
    side = await maria.side(region)
    async with side.connect((), False) as plane:
        found = (await plane.list_partitions(SHARED)).partitions[0]
    return found.partition.home, found.partition.epoch, found.state


async def test_a_home_that_is_moved_and_moved_back_while_both_sides_write(tmp_path, monkeypatch):
    # Hardly a pause between two reads, or two writes: some are under way when they are to end, and none is given up.
    monkeypatch.setattr(errands, "LOOK_S", 0.001)
    monkeypatch.setattr(errands, "WRITE_S", 0.001)
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        await planted(maria)
        course = await maria.run("move-home", MOVING, there=(WEST,))
        assert not course.ended_early
        assert holds_canary(maria.fleet[EAST].everything()) == []
        assert await place_of(maria, EAST) == (EAST, 3, "home")
        assert await place_of(maria, WEST) == (EAST, 3, "copy")
    document, checks, claims = recorded(course, tmp_path)
    unread = [each for each in course.recorder.history().failures if each.kind == "reads"]
    assert failed(claims) <= SPEEDS | PAUSES, (unread, claims)
    assert claims["epochs_risen"]["actual"] == 2
    assert claims["writes_under_each_home"]["actual"] >= 3
    assert set(claims) >= PAUSES
    assert all(claim["passed"] is not None for claim in claims.values())
    assert {check.name for check in checks if not check.passed} <= SPEEDS | PAUSES | {"verdict"}
    assert not course.left
    page, history = record.markdown(document, checks), (tmp_path / "h.jsonl").read_bytes()
    assert SHARED in page
    assert holds_canary([page.encode(), json.dumps(document).encode(), history, picture.draw(course).encode()]) == []
    assert "is moved to" in picture.draw(course)
    # Who writes another begin of the move into the record is found out.
    document["setting"]["cut_ns"] += 1
    assert "cut" in {check.name for check in record.recheck(document, tmp_path) if not check.passed}


@pytest.mark.parametrize("phase", ["sealed", "moved"])
async def test_a_move_that_is_aborted_leaves_one_home_where_it_was(tmp_path, phase):
    async def aborted(running_):
        places = maria.fleet[EAST].node.places
        if phase == "sealed":
            await until(lambda: SHARED in places.moves)
        else:
            await until(lambda: places.routed(SHARED).home == WEST)
        nodes = (await maria.side(EAST)).nodes
        await nodes.meet()
        assert not await nodes.heal_all(running_.course.drill, "enough", abort=True)

    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        if phase == "sealed":
            # Nobody there takes over.
            await maria.fleet[WEST].member.federation.mover.stop()
        course = await maria.run("move-home", MOVING, there=(WEST,), meanwhile=aborted)
        assert course.ended_early == "aborted at east1"
        home, epoch, state = await place_of(maria, EAST)
        assert (home, state) == (EAST, "home")
        assert epoch == {"sealed": 1, "moved": 3}[phase]
        assert await place_of(maria, WEST) == (EAST, epoch, "copy")
        side = await maria.side(WEST)
        async with side.connect((), False) as plane:
            await plane.create_workflow("afterwards", b"", partition=SHARED, reason="test")
    document, _, claims = recorded(course, tmp_path)
    assert document["verdict"] == "failed"
    assert not course.left
    for name in ("two_homes", "answered_elsewhere", "versions_reused", "local_reads_went_back", "quarantined"):
        assert claims[name]["passed"], name
    assert claims["regions_that_see_it_at_home"]["passed"]


async def test_writes_that_pause_too_long_end_the_drill_and_the_move(tmp_path):
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        await maria.fleet[WEST].member.federation.mover.stop()
        options = Options(down_s=1.5, calm_s=0.3, moved=SHARED)
        course = await maria.run("move-home", options, there=(WEST,))
        assert "was acknowledged for 1.5 s" in course.ended_early
        assert await place_of(maria, EAST) == (EAST, 1, "home")


async def test_a_home_that_cannot_be_moved_or_moved_back_is_not_drilled(tmp_path):
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        for options, there, reason in (
            (Options(), (WEST,), "PARTITION_MISSING"),
            (MOVING, (), "PEER_UNKNOWN"),
        ):
            with pytest.raises(Invalid) as raised:
                await maria.prepared("move-home", options, there)
            assert raised.value.reason == reason
        for moved, why in (
            (f"{WEST}.prod.shared", "is at home in eu-west, not in us-east"),
            (f"{EAST}.prod.none", "us-east knows of no partition"),
            (f"{EAST}.prod.home-only", "eu-west knows of no partition"),
            (f"{EAST}.prod.global", "is for stops"),
        ):
            *_, problems = await maria.prepared("move-home", Options(moved=moved), (WEST,))
            assert any(why in problem for problem in problems), (moved, problems)
        side = await maria.side(EAST)
        await maria.fleet[WEST].member.federation.mover.stop()
        async with side.connect((), False) as plane:
            await plane.move_partition(SHARED, WEST, reason="test")
            *_, problems = await maria.prepared("move-home", MOVING, (WEST,))
            assert any("a move of us-east.prod.shared is under way" in problem for problem in problems)
            await plane.move_partition(SHARED, cancel=True, reason="test")
        # The drill's own load must not stand still with what is moved.
        own, others, course, problems = await maria.prepared("move-home", MOVING, (WEST,))
        assert not problems
        assert any("PAUSE" in line for line in course.plan.blast)
        with pytest.raises(Refused, match="--partition"):
            await Runner(own.nodes, own.connect, course, "test", SHARED, there=others).run()
        await maria.fleet.cut(WEST, EAST)
        await until(lambda: maria.fleet[EAST].link(WEST).state == "down")
        *_, problems = await maria.prepared("move-home", MOVING, (WEST,))
        assert any("the link with eu-west is down" in problem for problem in problems)


async def test_who_is_no_operator_there_cannot_plan_a_move(tmp_path):
    async with desk(tmp_path, eu_west=1, us_east=1) as maria:
        own, there = await maria.side(EAST), await maria.side(WEST, role="agent")
        with pytest.raises(Denied):
            await runner.prepare(own.nodes, "move-home", MOVING, [there])
