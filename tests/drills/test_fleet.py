"""A region of a real fleet that an operator cuts off from the others: it goes on, says so, and catches up by itself."""

import asyncio
import json
import time

import pytest

from chaos.real.workloads.flags import flag
from controlplane import sdk
from controlplane.demo.fleet import JURISDICTIONS
from controlplane.demo.story import connected
from controlplane.loopback import LoopbackFleet, ending
from controlplane.v1 import drill_pb2 as drill
from tests.drills.test_region import SPEEDS, Operator

CUT, OTHER, THIRD = "us-east", "eu-west", "eu-central"
DEADLINE_S = 60


async def until(condition):
    end = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < end, "it did not come to that in time"
        await asyncio.sleep(0.05)


async def links(plane):
    return {link.region: link for link in (await plane.get_status()).links}


async def ended(operator, *arguments, **options):
    return await asyncio.to_thread(operator.ended, *arguments, **options)


@pytest.mark.timeout(240)
async def test_a_region_that_is_cut_off_by_a_drill_and_what_must_not_be_drilled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    fleet = LoopbackFleet(tmp_path, JURISDICTIONS, size=1)
    with ending(fleet.nodes):
        await fleet.join()
        for node in (*fleet.regions[CUT].nodes, *fleet.regions[OTHER].nodes):
            node.argv.append("--drills")
        for region in fleet.regions.values():
            region.start()
        async with asyncio.timeout(DEADLINE_S):
            planes = {
                name: await connected(region.addresses, region.identity("operator", "harness"))
                for name, region in fleet.regions.items()
            }
        try:
            await until(lambda: all_up(planes[CUT]))
            operator = await asyncio.to_thread(Operator, fleet.regions[CUT], tmp_path)
            await _drilled(operator, planes)
            await _ends_by_itself(operator, planes)
            await _lost(operator, fleet.regions[OTHER])
            await _refused(operator, fleet, planes)
        finally:
            await asyncio.gather(*(plane.close() for plane in planes.values()))
            await fleet.close()


async def all_up(plane):
    found = (await links(plane)).values()
    return all(link.state == "up" and link.views and not any(view.listing for view in link.views) for link in found)


async def _drilled(operator, planes):
    """The whole drill, with a switch of another region that was thrown before, and one that is thrown meanwhile."""
    thrown = sdk.Scope(kind=sdk.SCOPE_TOOL, name="before")
    await planes[OTHER].engage(thrown, reason="test")
    await until(lambda: stopped(planes[CUT], "before"))
    arguments = ("drill", "run", "region-cut", "--down", 4, "--calm", 0.7, "--yes", "--json", "--reason", "test")
    running = asyncio.create_task(
        ended(operator, *arguments, "--signing-key", operator.key, "--out", operator.folder / "records")
    )
    await until(lambda: down(planes[CUT], OTHER))
    # Until the other side knows too, a write leaves it, and what became of that nobody can tell.
    await until(lambda: down(planes[OTHER], CUT))
    await planes[OTHER].engage(sdk.Scope(kind=sdk.SCOPE_TOOL, name="meanwhile"), reason="test")
    abroad = [
        planes[caller].set_flag(flag("f", "v"), partition=f"{home}.prod.config", reason="test", timeout_s=1.0)
        for caller, home in ((OTHER, CUT), (CUT, OTHER))
    ]
    refused = await asyncio.gather(*abroad, return_exceptions=True)
    assert all(isinstance(error, sdk.Unavailable) for error in refused), refused
    assert await stopped(planes[CUT], "before")
    assert not await stopped(planes[CUT], "meanwhile")
    assert (await links(planes[OTHER]))[THIRD].state == "up"
    done = await running
    written = json.loads(done.stdout)
    made = written["record"]
    failed = {claim["name"] for claim in made["claims"] if not claim["passed"]}
    assert failed <= SPEEDS, (failed, done.stderr)
    claims = {claim["name"]: claim["actual"] for claim in made["claims"]}
    assert claims["links_down"] == "all"
    assert claims["isolated_mode_shown"] == "yes"
    assert claims["view_age_ms"] >= 1_500
    assert claims["stops_lost"] == 0
    assert claims["caught_up_ms"] is not None
    assert "isolated" in {each["what"] for each in made["timeline"]}
    # It came without being told, before the drill said that everything had.
    assert await stopped(planes[CUT], "meanwhile")
    verified = await ended(operator, "drill", "verify", written["file"], "--trust", operator.trusted, "--json")
    wrong = {check["name"] for check in json.loads(verified.stdout)["checks"] if not check["passed"]}
    assert wrong == (failed | {"verdict"} if failed else set())


async def _ends_by_itself(operator, planes):
    """One region alone, by a fault whose operator says nothing more."""
    fault = drill.Fault(
        drill="e" * 32, id="7" * 32, kind=drill.FAULT_CUT_REGION, duration_ms=1_500, peers=[OTHER], reason="test"
    )
    await asyncio.to_thread(
        operator.ask, 0, "InjectFault", drill.InjectFaultRequest(fault=fault), drill.InjectFaultReply
    )
    await until(lambda: down(planes[CUT], OTHER))
    assert (await links(planes[CUT]))[THIRD].state == "up"
    assert "drill" in (await links(planes[CUT]))[OTHER].reason
    await until(lambda: all_up(planes[CUT]))
    assert not (await asyncio.to_thread(operator.faults, 0)).faults


async def _lost(operator, lost):
    """Another region whose nodes are paused by its own operator, and where that one looks before and after."""
    identity = await asyncio.to_thread(lost.identity, "operator", "there")
    context = ["context", "set", "there", "--address", lost.addresses[0], "--authority", identity["ca"]]
    await ended(operator, *context, "--certificate", identity["cert"], "--key", identity["key"])
    arguments = ["drill", "run", "region-loss", "--peer", OTHER, "--there", "there", "--pause-there", "--down", 2]
    arguments += ["--copy", f"{OTHER}.prod.config", "--calm", 0.5, "--yes", "--json", "--reason", "test"]
    done = await ended(
        operator, *arguments, "--signing-key", operator.key, "--out", operator.folder / "records", timeout_s=100
    )
    written = json.loads(done.stdout)
    failed = {claim["name"] for claim in written["record"]["claims"] if not claim["passed"]}
    assert failed <= SPEEDS | {"caught_up_ms"}, (failed, done.stderr)
    assert "pause n1 of eu-west for 2 s" in {each["says"] for each in written["record"]["timeline"]}
    verified = await ended(operator, "drill", "verify", written["file"], "--trust", operator.trusted, "--json")
    wrong = {check["name"] for check in json.loads(verified.stdout)["checks"] if not check["passed"]}
    assert wrong == (failed | {"verdict"} if failed else set())


async def _refused(operator, fleet, planes):
    """Not where no link is, nor where one is down already."""
    stranger = await ended(operator, "drill", "plan", "region-cut", "--peer", "mars-north", "--json")
    assert stranger.returncode == 2, stranger
    assert "PEER_UNKNOWN" in stranger.stderr + stranger.stdout
    planned = await ended(operator, "drill", "plan", "region-cut", "--peer", OTHER, "--json")
    assert planned.returncode == 0, planned
    assert OTHER in str(json.loads(planned.stdout)["plan"]["blast_radius"])
    await fleet.cut_off(THIRD)
    await until(lambda: down(planes[CUT], THIRD))
    refused = await ended(
        operator, "drill", "run", "region-cut", "--yes", "--reason", "test", "--signing-key", operator.key
    )
    assert refused.returncode == 5, refused
    assert f"the link with {THIRD} is down" in refused.stderr
    # What is degraded elsewhere does not matter.
    assert (await ended(operator, "drill", "plan", "region-cut", "--peer", OTHER)).returncode == 0


async def down(plane, region):
    return (await links(plane))[region].state == "down"


async def stopped(plane, tool):
    return bool((await plane.check_switches(sdk.Subject(tools=[tool]))).stopped_by)
