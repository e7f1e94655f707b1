"""Copying under a log that fails, whole processes, and what is shown of links."""

from __future__ import annotations

import asyncio
import io
import socket

import pytest
from rich.console import Console

from controlplane import limits, process
from controlplane.cli import shapes
from controlplane.cli.region import _status
from controlplane.config import split_address
from controlplane.datadir import Start
from controlplane.errors import ControlPlaneError, Refused
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2
from controlplane.v1.records_pb2 import GLOBAL
from tests.federation.fleet import CENTRAL, EAST, WEST, Fleet, running
from tests.node.harness import ScriptedLog
from tests.server.regions import create, flag, until, write_header


async def test_a_log_that_discards_delays_or_loses_the_lead_skips_and_repeats_nothing(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(WEST) as maria:
        await fleet.settled()
        log = ScriptedLog()
        fleet[EAST].members["east1"].log = log
        await fleet[EAST].restart()

        async def write(prefix, count=20):
            for n in range(count):
                await maria.call("SetFlag", flag(f"{prefix}{n}"))

        async def next_with(action):
            """The next entry that carries something to do with `action`."""
            while True:
                attempt = await asyncio.wait_for(log.appends.get(), 20)
                if action in attempt.entry:
                    return attempt
                attempt.commit()

        for how in ("discard", "unknown", "late"):
            await fleet.settled()
            log.automatic = False
            writing = asyncio.create_task(write(how))
            attempt = await next_with(b"TakeCopy")
            if how == "discard":
                attempt.discard()
            else:
                attempt.unknown()
            log.automatic = True
            if how == "late":
                # It was agreed on after all, when others had been planned already: those are planned again.
                log.commit(attempt.entry)
            await writing
        await fleet.settled()
        log.lose()
        await write("lost")
        log.lead()
        await fleet.settled()
        assert len(fleet[EAST].held(WEST, GLOBAL)) == 80


async def test_a_call_whose_answer_was_lost_on_the_way_happens_once(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST) as maria:
        await fleet.settled()
        log = ScriptedLog()
        fleet[WEST].members["west1"].log = log
        await fleet[WEST].restart()
        await until(lambda: fleet[EAST].link(WEST).state == "up")
        log.automatic = False
        request = flag("once", partition=f"{WEST}.prod.global")
        call = asyncio.create_task(maria.call("SetFlag", request, timeout_s=15))
        while b"SetFlag" not in (attempt := await asyncio.wait_for(log.appends.get(), 20)).entry:
            attempt.commit()
        await fleet.cut(WEST, EAST)
        attempt.commit()
        log.automatic = True
        await until(lambda: fleet[EAST].link(WEST).state == "down")
        # It may have happened, so nobody says that it did not, however often the home is found unreachable meanwhile.
        finished, _ = await asyncio.wait([call], timeout=0.5)
        assert not finished
        await fleet.heal(WEST, EAST)
        reply = api.SetFlagReply.FromString(await call)
        assert (reply.header.region, reply.meta.version) == (WEST, 1)
        await fleet.settled()


async def test_copies_leave_room_for_kill_switches(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "QUOTA_RESERVED_BYTES", 40_000)
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await fleet[EAST].stop()
        fleet[EAST].quota_bytes = 10_000
        async with fleet.caller(WEST) as maria:
            for n in range(300):
                await maria.call("SetFlag", flag(f"f{n}"))
        await fleet[EAST].start()
        await until(lambda: "STORE_FULL" in fleet[EAST].link(WEST).reason)
        async with fleet.caller(EAST) as maria:
            with pytest.raises(Refused) as raised:
                await maria.call("SetFlag", flag("own"))
            assert raised.value.reason == "STORE_FULL"
            scope = records_pb2.Scope(kind=records_pb2.SCOPE_TENANT, name="t")
            engaged = api.EngageSwitchRequest(header=write_header(reason="it broke"), scope=scope)
            assert api.EngageSwitchReply.FromString(await maria.call("EngageSwitch", engaged)).changed
        # With more room, it goes on where it stood.
        fleet[EAST].quota_bytes = limits.QUOTA_BYTES
        await fleet[EAST].restart()
        await fleet.settled()


async def test_the_status_shows_links_copies_and_isolation(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria:
        await fleet.settled()
        await fleet.settled(CENTRAL)

        async def shown():
            document = shapes.status(api.GetStatusReply.FromString(await maria.call("GetStatus")))
            text = io.StringIO()
            Console(file=text, width=200).print(_status(document))
            return document, text.getvalue()

        await until(lambda: all(view.age_ms < 60_000 for view in fleet[EAST].link(WEST).views))
        document, text = await shown()
        assert not document["isolated"]
        assert "isolated" not in text
        links = {link["region"]: link for link in document["links"]}
        assert links[WEST]["state"] == links[CENTRAL]["state"] == "up"
        assert links[WEST]["exported"] == ["global"]
        assert [view["reach"] for view in links[WEST]["views"]] == ["global"]
        assert links[WEST]["views"][0]["age_ms"] < 60_000
        for other in (WEST, CENTRAL):
            await fleet.cut(EAST, other)
        await until(lambda: all(fleet[EAST].link(other).state == "down" for other in (WEST, CENTRAL)))
        document, text = await shown()
        assert document["isolated"]
        assert "goes on with its own work" in text
        await maria.call("CreateWorkflow", create("own"))


async def test_the_metrics_name_regions_and_reaches_alone(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(WEST) as maria:
        await maria.call("SetFlag", flag("f"))
        await fleet.settled()
        await until(lambda: ("transactions_total", WEST, "global", "ingress") in fleet[EAST].metrics())
        found = fleet[EAST].metrics()
        assert found["link_up", WEST] == 1
        assert found["paused", WEST] == 0
        assert found["view_age_seconds", WEST, "global"] >= 0
        labels = {label for name, *labels in found for label in labels}
        assert labels <= {WEST, CENTRAL, "global", "jurisdiction", "ingress", "egress"}


async def test_nodes_of_which_none_leads_say_what_they_know(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=3) as fleet:
        await fleet.settled()
        others = [m for m in fleet[EAST].members.values() if not m.node.log.status().ready]
        await until(lambda: all(m.federation.links.report()[0].state == "up" for m in others))
        await fleet.cut(WEST, EAST)
        await until(lambda: all(m.federation.links.report()[0].state == "down" for m in others))


async def test_whole_processes(tmp_path):
    fleet = Fleet(tmp_path, {WEST: 1, EAST: 1})
    stopping = asyncio.Event()
    for name in (WEST, EAST):
        fleet[name].load()
        fleet[name].config.file.write_text(fleet[name].text())
        for relay in fleet.ways(*((name, EAST) if name == WEST else (name, WEST))):
            await relay.heal()
    running_both = [
        asyncio.create_task(
            process.serve(region.config, region.node_names[0], tmp_path / name, Start.BOOTSTRAP, stopping)
        )
        for name, region in fleet.regions.items()
    ]
    header = api.RequestHeader(partition=f"{WEST}.prod.global", consistency=api.LOCAL)

    async def copied(reader):
        assert not any(task.done() for task in running_both)
        try:
            await reader.call("GetFlag", api.GetFlagRequest(header=header, name="f"), timeout_s=2)
        except ControlPlaneError:
            return False
        return True

    try:
        async with fleet.caller(WEST) as maria, fleet.caller(EAST) as reader, asyncio.timeout(40):
            await until(lambda: _listens(fleet[WEST].config.nodes[0].address))
            await maria.call("SetFlag", flag("f"), timeout_s=20)
            while not await copied(reader):  # noqa: ASYNC110 - another process copies.
                await asyncio.sleep(0.05)
            there = flag("g", partition=f"{WEST}.prod.global")
            assert api.SetFlagReply.FromString(await reader.call("SetFlag", there)).header.region == WEST
    finally:
        stopping.set()
        async with asyncio.timeout(15):
            await asyncio.gather(*running_both)
        await fleet.stop()


def _listens(address):
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(split_address(address)) == 0
