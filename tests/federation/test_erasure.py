"""What was erased at home is in no store and no file of a region that held a copy, however it heard of it."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from chaos.leaks_search import Searched, words
from controlplane import limits
from controlplane.errors import Denied
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import JURISDICTION, Passage
from tests.federation.fleet import CENTRAL, WEST, Fleet, Region, Spy, running
from tests.server.regions import create, flag, until, write_header

PARTITION = f"{WEST}.prod.jurisdiction"
CANARY = words(Random("abroad")).pinned


def erase(name: str) -> api.EraseRecordRequest:
    header = write_header(partition=PARTITION, reason="asked to")
    return api.EraseRecordRequest(header=header, kind="workflow", name=name)


def are_done(region: Region) -> bool:
    """Whether every node of a region has erased something, and has nothing left to do."""
    reports = [member.server.eraser.report() for member in region.members.values()]
    return all(not report.pending and 0 < report.due <= report.scrubbed for report in reports)


def found(region: Region) -> list[str]:
    searched = Searched(region.name, {"canary": CANARY})
    searched.files(region.fleet.folder / region.name)
    for row in region.everything():
        searched.look("rows", "store", row)
    assert searched.sizes["rows"] > 0
    return [finding.place for finding in searched.findings]


async def copied(fleet: Fleet) -> None:
    """Have it written twice, copied, and in the tables of those who copied it."""
    async with fleet.caller(WEST) as operator:
        await operator.call("CreateWorkflow", create("person", CANARY.encode()))
        swap = api.CompareAndSwapWorkflowRequest(header=write_header(), id="person", version=1, state=CANARY.encode())
        await operator.call("CompareAndSwapWorkflow", swap)
    await until(lambda: fleet.copied(WEST, CENTRAL, JURISDICTION))
    central = fleet[CENTRAL].members.values()
    await until(lambda: len({member.node.revision for member in central}) == 1)
    await asyncio.gather(*(asyncio.to_thread(member.node.store.scrub) for member in central))
    assert {place.split("/")[0].split(": ")[0] for place in found(fleet[CENTRAL])} == {"files", "rows"}


@pytest.mark.parametrize("anew", [False, True], ids=["follows", "lists anew"])
async def test_copies_are_erased_too_also_after_a_while_apart(tmp_path, monkeypatch, anew):
    if anew:
        monkeypatch.setattr(limits, "EVENTS_KEPT", 20)
        monkeypatch.setattr(limits, "TRIM_REVISIONS", 10)
    async with running(tmp_path, eu_west=1, eu_central=3) as fleet:
        await copied(fleet)
        await fleet.cut(WEST, CENTRAL)
        async with fleet.caller(WEST, "approver") as approver, fleet.caller(WEST) as operator:
            await approver.call("EraseRecord", erase("person"))
            await until(lambda: are_done(fleet[WEST]))
            for n in range(40 if anew else 1):
                await operator.call("SetFlag", flag(f"f{n}"))
        if anew:
            copied_upto = max(cursor.revision for cursor, _ in fleet[CENTRAL].node.views())
            await until(lambda: fleet[WEST].member.federation.exporter.oldest() > copied_upto)
        assert found(fleet[WEST]) == []
        assert found(fleet[CENTRAL])
        await fleet.heal(WEST, CENTRAL)
        await until(lambda: are_done(fleet[CENTRAL]))
        assert found(fleet[CENTRAL]) == []
        assert fleet.copied(WEST, CENTRAL, JURISDICTION)
        # It may be written again, and is copied again.
        async with fleet.caller(WEST) as operator:
            await operator.call("CreateWorkflow", create("person", b"somebody else"))
        await until(lambda: fleet.copied(WEST, CENTRAL, JURISDICTION))


async def test_that_something_left_stays_written_down(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(WEST) as operator:
        await operator.call("CreateWorkflow", create("before"))
        await until(lambda: fleet[WEST].passages(direction=Passage.EGRESS, reach=JURISDICTION, sort="copy"))
        await fleet.cut(WEST, CENTRAL)
        await operator.call("CreateWorkflow", create("person", b"secret"))
        seen = fleet[WEST].node.revision
        async with fleet.caller(WEST, "approver") as approver:
            await approver.call("EraseRecord", erase("person"))
        await until(lambda: are_done(fleet[WEST]))
        # A leader sent it, and fell before it could write that down; the follower has it, and here nothing is left.
        async with fleet.peer(CENTRAL, WEST) as caller:
            for _ in range(2):
                spy = Spy(fleet, CENTRAL, WEST, JURISDICTION, caller, revision=seen)
                await spy.open()
                await until(lambda: fleet[WEST].passages(counterparty=CENTRAL, sort="unconfirmed"))
                await spy.read()
                spy.close()
        [made_up] = fleet[WEST].passages(counterparty=CENTRAL, sort="unconfirmed", upto=seen)
        assert made_up.after < seen


async def test_only_its_home_erases_a_record(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, fleet.caller(CENTRAL, "approver") as approver:
        await until(lambda: PARTITION in fleet[CENTRAL].node.abroad.partitions)
        with pytest.raises(Denied):
            await approver.call("EraseRecord", erase("person"))


async def test_what_former_homes_wrote_is_erased_too(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=3) as fleet:
        await copied(fleet)
        async with fleet.caller(WEST, "approver") as approver, fleet.caller(WEST) as operator:
            # One is erased, and nobody has got round to it when the home moves; another one after that.
            await operator.call("CreateWorkflow", create("later", CANARY.encode()))
            erasers = [each.server.eraser for region in (WEST, CENTRAL) for each in fleet[region].members.values()]
            await asyncio.gather(*(each.stop() for each in erasers))
            await approver.call("EraseRecord", erase("person"))
            await operator.call("CreateWorkflow", create("person", b"somebody else"))
            header = api.RequestHeader(reason="because")
            await operator.call(
                "MovePartition", api.MovePartitionRequest(header=header, partition=PARTITION, to=CENTRAL)
            )
            for region in (WEST, CENTRAL):
                await until(lambda region=region: fleet[region].held(WEST, JURISDICTION) == {})
        assert found(fleet[WEST])
        assert found(fleet[CENTRAL])
        for each in erasers:
            each.start()
        async with fleet.caller(CENTRAL, "approver") as approver, fleet.caller(CENTRAL) as operator:
            await approver.call("EraseRecord", erase("later"))
            await until(lambda: fleet.copied(CENTRAL, WEST, JURISDICTION))
            for region in (WEST, CENTRAL):
                await until(lambda region=region: are_done(fleet[region]))
                assert found(fleet[region]) == []
            get = api.GetWorkflowRequest(header=api.RequestHeader(partition=PARTITION), id="person")
            kept = api.GetWorkflowReply.FromString(await operator.call("GetWorkflow", get)).workflow
            assert kept.workflow.state == b"somebody else"
