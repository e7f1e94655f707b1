"""What was erased is in no file of any node: of those that were there, that were busy, and that were away."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from chaos.leaks_search import Searched, words
from controlplane.datadir import Start
from controlplane.errors import ControlPlaneError, Denied, OutcomeUnknown
from controlplane.features.partitions import system
from controlplane.kernel import keys
from controlplane.v1 import api_pb2 as api
from tests.server.regions import REGION, Region, create, flag, running, until, write_header

PARTITION = "eu-west.prod.all"
CANARY = words(Random("erasure")).pinned
STATE = CANARY.encode()


def erase(kind: str, name: str, **header) -> api.EraseRecordRequest:
    said = {"partition": PARTITION, "reason": "asked to", **header}
    return api.EraseRecordRequest(header=write_header(**said), kind=kind, name=name)


def campaign(seat: str, value: bytes, process: bytes = b"p" * 16) -> api.CampaignRequest:
    return api.CampaignRequest(header=write_header(), name=seat, process=process, ttl_ms=60_000, value=value)


async def plant(region: Region, number: int, node: str) -> list[tuple[str, str, bytes]]:
    """Write the canary in every way there is; the requests that did, and whose they were."""
    asked = []

    async def call(caller, method, request, reply):
        asked.append(("other" if caller is other else "tester", method, request.SerializeToString()))
        return reply.FromString(await caller.call(method, request))

    async with region.caller(node=node) as agent, region.caller(name="other", node=node) as other:
        name, seat = f"person{number}", f"seat{number}"
        await call(agent, "CreateWorkflow", create(name, STATE), api.CreateWorkflowReply)
        for version in (1, 2):
            swap = api.CompareAndSwapWorkflowRequest(header=write_header(), id=name, version=version, state=STATE)
            await call(agent, "CompareAndSwapWorkflow", swap, api.CompareAndSwapWorkflowReply)
        held = await call(agent, "Campaign", campaign(seat, STATE), api.CampaignReply)
        lost = await call(other, "Campaign", campaign(seat, b"other", b"q" * 16), api.CampaignReply)
        assert lost.holder.election.value == STATE
        fence = held.holder.fence
        resign = api.ResignRequest(header=write_header(), name=seat, process=b"p" * 16, fence=fence)
        await agent.call("Resign", resign)
    return asked


async def trim(region: Region, name: str) -> None:
    """Let the log forget the events of before, as it does after a while: not what it answered, nor versions."""
    node = region.members[name].node
    domain = keys.domain(REGION, "HOME_ONLY")

    def feature(tx):
        tx.trim(*keys.events(domain, 1, node.revision))
        return api.RequestHeader()

    await node.transact(system(REGION), "Trim", feature, timeout_s=5.0)
    assert not list(node.store.scan(*keys.events(domain, 1, node.revision)))


async def erased(region: Region, number: int, node: str) -> int:
    async with region.caller("approver", node=node) as approver:
        for kind, name in (("workflow", f"person{number}"), ("election", f"seat{number}")):
            reply = api.EraseRecordReply.FromString(await approver.call("EraseRecord", erase(kind, name)))
    return reply.revision


def is_done(region: Region, name: str, revision: int) -> bool:
    member = region.members[name]
    report = member.server.eraser.report()
    return member.node.revision >= revision and not report.pending and 0 < report.due <= report.scrubbed


def found(region: Region, name: str) -> dict[str, int]:
    """Where the canary is in a node's folder, and in the rows of its store if it runs: how often by sort of place."""
    searched = Searched(REGION, {"canary": CANARY})
    searched.files(region.folder / name)
    if name in region.members:
        for key, value in region.members[name].node.store.scan(b"", b"\xff" * 8):
            searched.look("rows", "store", key + b"\n" + value)
    assert searched.sizes["files"] > 0
    places = [finding.place.split(": ", 1)[1].split("/")[0] for finding in searched.findings]
    return {place: places.count(place) for place in places}


async def stop(region: Region, name: str) -> None:
    await region.members.pop(name).stop()


async def in_tables(region: Region) -> None:
    """Have what was written so far lie in tables as well, as it does after a while."""
    await asyncio.gather(*(asyncio.to_thread(each.node.store.scrub) for each in region.members.values()))


async def test_nothing_is_left_on_any_disk(tmp_path):
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        busy, away = [name for name in region.members if name != leader]
        asked = await plant(region, 1, leader)
        await trim(region, leader)
        # Of a node that comes back too late for the log, the last snapshot is still there.
        await stop(region, away)
        asked += await plant(region, 2, leader)
        await region.members[leader].log.scrub(0)
        await region.start(away, Start.NORMAL)
        await until(lambda: region.members[away].node.revision == region.members[leader].node.revision)
        await in_tables(region)
        asked += await plant(region, 3, leader)
        for name in region.members:
            assert {"store", "journal"} <= set(found(region, name))
        assert "snapshots" in found(region, away)

        # One is erased with all nodes there, and one of them busy: somebody reads what it held before.
        reading = region.members[busy].node.store.snapshot()
        await erased(region, 1, leader)
        revision = await erased(region, 2, leader)
        await until(lambda: all(is_done(region, name, revision) for name in (leader, away)))
        await until(lambda: region.members[busy].server.eraser.report().due == region.members[leader].node.revision)
        assert not is_done(region, busy, revision)
        reading.close()
        # It stops in the middle, and is away when the other one is erased.
        await stop(region, busy)
        revision = await erased(region, 3, leader)
        await until(lambda: all(is_done(region, name, revision) for name in (leader, away)))
        assert found(region, leader) == found(region, away) == {}
        assert found(region, busy)
        await region.start(busy, Start.NORMAL)
        await until(lambda: is_done(region, busy, revision))
        assert found(region, busy) == {}

        # What is there is the same everywhere, and knows of what is not.
        states = {(each.node.state.hash, each.node.ledger.root()) for each in region.members.values()}
        assert len(states) == 1
        async with region.caller() as agent, region.caller(name="other") as other:
            for name, method, request in asked:
                with pytest.raises(OutcomeUnknown) as raised:
                    await (other if name == "other" else agent).call(method, request)
                assert raised.value.reason == "OUTCOME_FORGOTTEN"
            with pytest.raises(ControlPlaneError, match="no such workflow"):
                await agent.call("GetWorkflowHistory", api.GetWorkflowHistoryRequest(id="person1"))
            reply = await agent.call("CreateWorkflow", create("person1", b"new"))
            assert api.CreateWorkflowReply.FromString(reply).version == 5
        assert found(region, leader) == {}
        for name in tuple(region.members):
            await stop(region, name)
            searched = Searched(REGION, {"canary": CANARY})
            searched.files(tmp_path / name)
            searched.rows(tmp_path / name / "store", name)
            assert searched.findings == []


async def test_who_may_erase_and_what(tmp_path):
    async with running(tmp_path) as region:
        async with region.caller("operator") as operator:
            with pytest.raises(Denied):
                await operator.call("EraseRecord", erase("workflow", "w"))
            await operator.call("SetFlag", flag("f"))
        for request, reason in (
            (erase("workflow", "w"), "WORKFLOW_NOT_FOUND"),
            (erase("flag", "f"), "KIND_NOT_ERASABLE"),
            (erase("switch", "tenant:acme"), "KIND_NOT_ERASABLE"),
            (erase("partition", PARTITION), "KIND_NOT_ERASABLE"),
            (erase("workflow", "w", reason=" "), "REASON_MISSING"),
            (erase("workflow", "w", partition=""), "PARTITION_MISSING"),
        ):
            async with region.caller("approver") as approver:
                with pytest.raises(ControlPlaneError) as raised:
                    await approver.call("EraseRecord", request)
            assert raised.value.reason == reason
