"""A region whose disks are gone begins again from a backup, and its peers with it."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from click.testing import CliRunner

from controlplane import process
from controlplane.__main__ import program
from controlplane.datadir import Start
from controlplane.errors import Fatal, OutcomeUnknown
from controlplane.features import restorations
from controlplane.features.partitions import system
from controlplane.kernel import machine
from controlplane.kernel.transaction import scope_of
from controlplane.restore import Why, restore
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2
from controlplane.v1.records_pb2 import GLOBAL
from tests.federation.fleet import EAST, WEST, running
from tests.federation.test_moves import SHARED, everywhere, move
from tests.server.regions import create, flag, until, write_header


def home(fleet):
    return fleet.folder / WEST


def back_up(fleet, name):
    """What docs/operations.md says: journal and store of a node that is stopped."""
    for part in ("journal", "store"):
        shutil.copytree(home(fleet) / "west2" / part, fleet.folder / name / part)
    return fleet.folder / name


async def declared(fleet):
    await until(lambda: scope_of(system(WEST)) in machine.scopes(fleet[WEST].members["west1"].node.store))


async def begin_again(fleet, backup, at_ms=0):
    """As an operator does it; returns what was made."""
    out = fleet.folder / f"made-{backup.name}-{at_ms}"
    done = restore(fleet[WEST].config, backup, out, Why("the disks burnt", at_ms or process.wall_ms(), bytes(16)))
    shutil.rmtree(home(fleet))
    out.rename(home(fleet))
    await fleet[WEST].start(Start.NORMAL)
    return done


async def campaign(caller, process_id):
    request = api.CampaignRequest(header=write_header(), name="boss", process=process_id, ttl_ms=60_000)
    return api.CampaignReply.FromString(await caller.call("Campaign", request))


async def resign(caller, process_id, fence):
    await caller.call("Resign", api.ResignRequest(header=write_header(), name="boss", process=process_id, fence=fence))


def described(name, text):
    request = flag(name)
    request.flag.description = text
    return request


def flags(fleet, region):
    rows = fleet[region].held(WEST, GLOBAL).values()
    found = (records_pb2.Flag.FromString(value) for _, value in rows if b"\n" in value)
    return {each.name: each.description for each in found if each.variants}


async def test_a_region_begins_again_and_nobody_keeps_what_it_has_forgotten(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet, fleet.caller(WEST) as maria, fleet.caller(EAST) as eve:
        await maria.call("SetFlag", described("changed", "first"))
        await maria.call("SetFlag", described("deleted", "kept"))
        asked = create("of before")
        asked.header.since = 0
        answered = api.CreateWorkflowReply.FromString(await maria.call("CreateWorkflow", asked))
        of_eve = described("eve's", "first")
        of_eve.header.partition = f"{WEST}.prod.global"
        await eve.call("SetFlag", of_eve)
        before = await campaign(maria, b"p" * 16)
        await resign(maria, b"p" * 16, before.holder.fence)
        await fleet.settled()
        await fleet[WEST].stop()
        backup = back_up(fleet, "backup")
        await fleet[WEST].start(Start.NORMAL)
        # What nobody in the region will know of.
        await maria.call("SetFlag", described("changed", "second"))
        await maria.call("SetFlag", described("lost", "x"))
        lost = create("lost")
        lost.header.since = fleet[WEST].node.revision
        await maria.call("CreateWorkflow", lost)
        during = await campaign(maria, b"q" * 16)
        await fleet.settled()
        assert flags(fleet, EAST) == {"changed": "second", "deleted": "kept", "lost": "x", "eve's": "first"}
        last = fleet[WEST].node.revision
        await fleet[WEST].stop()
        done = await begin_again(fleet, backup)
        assert done.after < last < done.revision <= fleet[WEST].node.revision
        await maria.call("SetFlag", described("new", "y"))
        await fleet.settled()
        for region in (WEST, EAST):
            assert flags(fleet, region) == {"changed": "first", "deleted": "kept", "new": "y", "eve's": "first"}
        # No fence of before is as new as one of now; nobody knows what became of a request of before.
        assert (await campaign(maria, b"r" * 16)).holder.fence.revision > during.holder.fence.revision
        # What the backup knows of a request it still does, whoever asks; of others nobody does.
        again = api.CreateWorkflowReply.FromString(await maria.call("CreateWorkflow", asked))
        assert again.version == answered.version
        with pytest.raises(OutcomeUnknown) as caught:
            await maria.call("CreateWorkflow", lost)
        assert caught.value.reason == "OUTCOME_FORGOTTEN"
        await eve.call("SetFlag", of_eve)
        assert flags(fleet, WEST)["eve's"] == "first"
        history = await maria.call("GetFlagHistory", api.GetFlagHistoryRequest(name="changed"))
        assert len(api.GetFlagHistoryReply.FromString(history).versions) == 1
        assert len(fleet[EAST].passages(sort="listing")) >= 1


async def test_nobody_is_revived_by_what_a_home_has_forgotten(tmp_path):
    """Thrown since the backup: "off", which was released in it, and "on", which was engaged."""
    async with running(tmp_path, eu_west=3, us_east=1) as fleet, fleet.caller(WEST) as maria, fleet.caller(EAST) as eve:

        async def throws(method, *tenants):
            for tenant in tenants:
                scope = records_pb2.Scope(kind=records_pb2.SCOPE_TENANT, name=tenant)
                request = getattr(api, f"{method}Request")(header=write_header(reason="it broke, or not"), scope=scope)
                await maria.call(method, request)

        async def stopped(caller):
            found = set()
            for tenant in ("on", "off"):
                asked = api.CheckSwitchesRequest(subject={"tenant": tenant})
                reply = api.CheckSwitchesReply.FromString(await caller.call("CheckSwitches", asked))
                found |= {tenant} if reply.stopped_by else set()
            return found

        async def heard(*tenants):
            async with asyncio.timeout(20):
                while await stopped(eve) != {*tenants}:  # noqa: ASYNC110 - see `until`.
                    await asyncio.sleep(0.01)

        await throws("EngageSwitch", "on", "off")
        await throws("ReleaseSwitch", "off")
        await heard("on")
        await fleet[WEST].stop()
        backup = back_up(fleet, "backup")
        await fleet[WEST].start(Start.NORMAL)
        await throws("EngageSwitch", "off")
        await throws("ReleaseSwitch", "on")
        await heard("off")
        await fleet[WEST].stop()
        await begin_again(fleet, backup)
        # At home it is as it was then; those who heard that something was engaged do not take that for a release.
        assert await stopped(maria) == {"on"}
        await heard("on", "off")
        await maria.call("SetFlag", flag("f"))
        await until(lambda: "f" in flags(fleet, EAST))
        assert await stopped(eve) == {"on", "off"}
        await throws("EngageSwitch", "off")
        await throws("ReleaseSwitch", "on", "off")
        await heard()


async def moved(fleet, at, to, partition, epoch):
    # Which reaches are shared, a region hears when its peer follows it.
    await until(lambda: fleet[at].member.federation.links.get(to).receives)
    async with fleet.caller(at) as operator:
        await operator.call("MovePartition", move(partition, to))
    await everywhere(fleet, partition, to, epoch)


async def listed(caller, partition):
    request = api.ListFlagsRequest(header=api.RequestHeader(partition=partition))
    return [each.flag.name for each in api.ListFlagsReply.FromString(await caller.call("ListFlags", request)).flags]


async def test_homes_that_came_since_go_on_from_the_backup(tmp_path):
    """One had left and come back, of one there is but a copy."""
    theirs = f"{EAST}.prod.shared"
    async with running(tmp_path, eu_west=3, us_east=1) as fleet, fleet.caller(WEST) as maria, fleet.caller(EAST) as eve:
        await maria.call("SetFlag", flag("kept", partition=SHARED))
        await eve.call("SetFlag", flag("theirs", partition=theirs))
        await fleet.settled()
        await fleet.settled(EAST)
        await fleet[WEST].stop()
        backup = back_up(fleet, "backup")
        await fleet[WEST].start(Start.NORMAL)
        await fleet.settled()
        await moved(fleet, WEST, EAST, SHARED, 2)
        await moved(fleet, EAST, WEST, SHARED, 3)
        await moved(fleet, EAST, WEST, theirs, 2)
        await fleet[WEST].stop()
        await begin_again(fleet, backup)
        await everywhere(fleet, SHARED, WEST, 4)
        await everywhere(fleet, theirs, WEST, 3)
        for caller in (maria, eve):
            assert await listed(caller, SHARED) == ["kept"]
            assert await listed(caller, theirs) == ["theirs"]
        await maria.call("SetFlag", flag("new", partition=SHARED))
        await fleet.settled()


async def test_a_disk_of_before_is_a_stranger(tmp_path):
    async with running(tmp_path, eu_west=3) as fleet, fleet.caller(WEST) as maria:
        await maria.call("SetFlag", flag("f"))
        await declared(fleet)
        await fleet[WEST].stop()
        backup = back_up(fleet, "backup")
        shutil.copytree(home(fleet) / "west3", fleet.folder / "old")
        file, out = fleet.folder / "eu-west.toml", fleet.folder / "out"
        file.write_text(fleet[WEST].text())
        arguments = ["--region", file, "--from", backup, "--out", out, "--reason", "it burnt"]
        told = await asyncio.to_thread(CliRunner().invoke, program, ["restore", *map(str, arguments)])
        assert told.exit_code == 0, told.output
        assert f"west2: {out / 'west2'}" in told.output
        shutil.rmtree(home(fleet))
        out.rename(home(fleet))
        await fleet[WEST].start(Start.NORMAL)
        west3 = fleet[WEST].members["west3"]
        await west3.stop()
        shutil.rmtree(home(fleet) / "west3")
        (fleet.folder / "old").rename(home(fleet) / "west3")
        await west3.start(Start.NORMAL)
        await until(west3.node.log.failed.done)
        with pytest.raises(Fatal, match="is not the disk that"):
            west3.node.log.failed.result()
        await maria.call("SetFlag", flag("g"))


async def test_what_cannot_be_restored_says_why_and_leaves_nothing(tmp_path):
    async with running(tmp_path, eu_west=3) as fleet, fleet.caller(WEST) as maria:
        await maria.call("SetFlag", flag("f"))
        await declared(fleet)
        config, folder, out = fleet[WEST].config, home(fleet) / "west1", tmp_path / "out"
        why = Why("it burnt", process.wall_ms(), bytes(16))

        def refused(source, config=config, why=why):
            with pytest.raises(Fatal) as caught:
                restore(config, source, out, why)
            assert not out.exists() or not [*out.iterdir()]
            return str(caught.value)

        assert "in use" in refused(folder)
        await fleet[WEST].stop()
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert "has no journal" in refused(tmp_path / "nothing")
        assert "clock" in refused(folder, why=why._replace(at_ms=0))
        backup = back_up(fleet, "backup")
        shutil.rmtree(backup / "journal")
        shutil.copytree(home(fleet) / "west1" / "store", backup / "journal")
        assert "damaged" in refused(backup)
        other = type(config)(**{**{name: getattr(config, name) for name in config.__slots__}, "name": "eu-north"})
        assert "belongs to region 'eu-west'" in refused(folder, config=other)
        shutil.copytree(folder / "journal", tmp_path / "parts" / "journal")
        shutil.copytree(folder / "store", tmp_path / "parts" / "store")
        assert "holds nothing of region 'eu-north'" in refused(tmp_path / "parts", config=other)
        out.mkdir(exist_ok=True)
        (out / "mine").touch()
        with pytest.raises(Fatal, match="not empty"):
            restore(config, folder, out, why)
        assert (out / "mine").exists()
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_revision_of_a_later_life_is_beyond_all_of_an_earlier_one():
    first, later = (restorations.revision_at(at_ms) for at_ms in (1_700_000_000_000, 1_700_000_001_000))
    assert later - first > 1_000_000
    assert restorations.revision_at(4_000_000_000_000) < 1 << 53
