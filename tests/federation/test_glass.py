"""Breaking the glass: who may, for what, that it is written down before anybody sees anything; that nothing stays."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from typing import Any

import pytest

from controlplane import features, limits
from controlplane.errors import ControlPlaneError, Denied, Invalid, NotFound, OutcomeUnknown, Unavailable
from controlplane.features import audit
from controlplane.features.glass import GLASS
from controlplane.features.partitions import system
from controlplane.identity import ENVIRONMENTS
from controlplane.kernel import keys
from controlplane.kernel.transaction import scope_of
from controlplane.ledger import leaves, verify
from controlplane.telemetry import NodeCollector
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import HOME_ONLY, BreakGlass, Passage
from controlplane.v1.state_pb2 import Event
from tests.federation.fleet import CENTRAL, EAST, FLEET, WEST, Fleet, running
from tests.federation.test_calls import ended, forward, forwarded
from tests.ledger.material import Desk, honest, trust
from tests.node.harness import ScriptedLog
from tests.server.regions import create, flag, until, write_header

CANARY = "kanarienvogel"
WHY = "the on-call phone is dead"
PINNED = f"{WEST}.prod.home-only"
READS = {
    *("GetElection", "GetFlag", "GetFlagHistory", "GetWorkflow", "GetWorkflowHistory"),
    *("ListElections", "ListFlags", "ListWorkflows"),
}
ROLES = ("agent", "operator", "approver", "reviewer")
REACHES = ("home-only", "jurisdiction", "global")
STATES = {"home-only": CANARY.encode(), "jurisdiction": CANARY.encode(), "global": b"public"}
MAY = {EAST: ["approver"], CENTRAL: ["operator", "reviewer"]}


def asking(partition: str = PINNED, why: str = WHY, **more: Any) -> api.RequestHeader:
    return api.RequestHeader(partition=partition, break_glass=why, **more)


def get(identifier: str = "w", **header: Any) -> api.GetWorkflowRequest:
    return api.GetWorkflowRequest(header=asking(**header), id=identifier)


async def read(caller: Any, request: Any) -> api.GetWorkflowReply:
    return api.GetWorkflowReply.FromString(await caller.call("GetWorkflow", request))


async def error_of(call: Any) -> ControlPlaneError:
    with pytest.raises(ControlPlaneError) as raised:
        await call
    return raised.value


def written(fleet: Fleet, region: str) -> list[BreakGlass]:
    """What a region wrote down of such reads."""
    start, end = keys.children(keys.RECORD + scope_of(system(region)) + keys.text(GLASS.name))
    rows = fleet[region].node.store.scan(start, end)
    return [BreakGlass.FromString(Event.FromString(packed).value) for _, packed in rows]


def in_ledger(fleet: Fleet, region: str, name_of_class: str = "break-glass") -> list[dict[str, Any]]:
    """The records of a class in a region's ledger, as a reviewer reads them."""
    node = fleet[region].node
    found = []
    for index in range(node.ledger.size):
        leaf = leaves.decode(audit.leaf_at(node.store, index) or b"")
        for _, name, key, content in audit.opened(node.store, index):
            if name == name_of_class:
                assert leaves.committed(key or b"", content) in dict(map(reversed, leaf.open))
                found.append(json.loads(content))
    return found


async def let_in(fleet: Fleet, may: dict[str, list[str]] | None = None) -> None:
    """Have the operators of the home say who may."""
    fleet[WEST].break_glass = MAY if may is None else may
    await fleet[WEST].restart()
    async with fleet.caller(WEST, name=CANARY) as owner:
        for reach in REACHES:
            request = create("w", STATES[reach], partition=f"{WEST}.prod.{reach}", reason=f"{CANARY} said so")
            await owner.call("CreateWorkflow", request)
    await until(lambda: all(fleet[other].link(WEST).state == "up" for other in fleet.regions if other != WEST))


# -- who may


def expected(role: str, region: str, reach: str, may: dict[str, list[str]]) -> str:
    """By hand, apart from what decides it: "ordinary", "glass" or a reason."""
    if reach == "global" or (reach == "jurisdiction" and region == CENTRAL):
        return "ordinary"
    if role == "agent":
        return "BREAK_GLASS_DENIED"
    return "glass" if role in may.get(region, ()) else "BREAK_GLASS_DENIED"


@pytest.mark.parametrize("may", [{}, MAY, {EAST: ["operator", "approver", "reviewer"]}])
async def test_every_cell(tmp_path, monkeypatch, may):
    monkeypatch.setattr(limits, "BREAK_GLASS_READS_MAX", 1000)
    async with running(tmp_path) as fleet, fleet.peer(EAST, WEST) as east, fleet.peer(CENTRAL, WEST) as central:
        await let_in(fleet, may)
        cells = [(peer, of, role) for peer, of in ((east, EAST), (central, CENTRAL)) for role in ROLES]
        glasses = 0
        for peer, region, role in cells:
            for reach in REACHES:
                request = get(partition=f"{WEST}.prod.{reach}")
                brought = forwarded(
                    fleet, region, WEST, "GetWorkflow", request, f"controlplane://{FLEET}/prod/{region}/{role}/x"
                )
                wanted = expected(role, region, reach, may)
                if wanted.isupper():
                    error = await error_of(forward(peer, brought))
                    assert (type(error), error.reason) == (Denied, wanted), (role, region, reach)
                    assert len(written(fleet, WEST)) == glasses
                    continue
                told = wire.ForwardReply.FromString(await forward(peer, brought)).reply
                reply = api.GetWorkflowReply.FromString(told)
                assert reply.workflow.workflow.state == STATES[reach]
                assert bool(reply.header.break_glass) is (wanted == "glass"), (role, region, reach)
                glasses += wanted == "glass"
                assert len(written(fleet, WEST)) == glasses
        assert glasses == sum(expected(role, of, reach, may) == "glass" for _, of, role in cells for reach in REACHES)


@pytest.mark.parametrize("role", ["agent", "peer"])
async def test_an_agent_never_whatever_the_file_says(tmp_path, role):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(EAST, WEST) as peer:
        await let_in(fleet)
        link = fleet[WEST].member.federation.links.get(EAST)
        link.peer = dataclasses.replace(link.peer, break_glass=frozenset({"agent", "peer", "approver"}))
        on_behalf_of = f"controlplane://{FLEET}/{'all' if role == 'peer' else 'prod'}/{EAST}/{role}/east1"
        error = await error_of(forward(peer, forwarded(fleet, EAST, WEST, "GetWorkflow", get(), on_behalf_of)))
        assert error.reason == ("BREAK_GLASS_DENIED" if role == "agent" else "ON_BEHALF_DENIED")
        assert written(fleet, WEST) == []


async def test_without_asking_for_it_or_a_reason_nothing_changes(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST, "approver") as anna:
        await let_in(fleet)
        assert (await error_of(read(anna, get(why="")))).reason == "PARTITION_PINNED"
        for why in (" ", "\t", "x" * (limits.TEXT_BYTES_MAX + 1)):
            assert isinstance(await error_of(read(anna, get(why=why))), Invalid)
        assert written(fleet, WEST) == []
        await until(lambda: fleet[WEST].passages(sort="denial", counterparty=EAST))


async def test_only_reads_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "BREAK_GLASS_READS_MAX", 1000)
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(EAST, WEST) as peer:
        await let_in(fleet, {EAST: ["operator"]})
        header = write_header(partition=PINNED, break_glass=WHY, reason="r")
        for method in sorted({*features.WRITES, *features.READS, "GetOutcome", "ListEvents"}):
            request = getattr(api, f"{method}Request")(header=header)
            if method == "ListEvents":
                request.kinds.append("workflow")
            error = None
            try:
                await forward(peer, forwarded(fleet, EAST, WEST, method, request))
            except ControlPlaneError as caught:
                error = caught
            reasons = ("PARTITION_PINNED", "NOT_FOR_OTHER_REGIONS")
            denied = isinstance(error, Denied) and error.reason in reasons
            assert denied is (method not in READS), (method, error)
        assert {each.method for each in written(fleet, WEST)} <= READS
        assert {each.method for each in written(fleet, WEST)} >= {"ListWorkflows", "ListFlags", "ListElections"}
        async with fleet.caller(EAST) as maria:
            watch = maria.stream("Watch", api.WatchRequest(header=asking(), kinds=["workflow"]))
            assert (await ended(watch)).reason == "PARTITION_UNKNOWN"
            # Neither does it help to say so of a partition that is one's own.
            own = api.GetWorkflowRequest(header=asking(f"{EAST}.prod.home-only"), id="none")
            assert isinstance(await error_of(read(maria, own)), NotFound)
        assert written(fleet, EAST) == []


async def test_the_wall_between_environments_and_other_homes_stand(tmp_path):
    async with running(tmp_path) as fleet, fleet.peer(EAST, WEST) as peer:
        await let_in(fleet, {EAST: ["operator"]})
        await fleet.settled(CENTRAL)
        for environment in ENVIRONMENTS:
            on_behalf_of = f"controlplane://{FLEET}/{environment}/{EAST}/operator/maria"
            brought = forwarded(fleet, EAST, WEST, "GetWorkflow", get(), on_behalf_of)
            if environment == "prod":
                await forward(peer, brought)
            else:
                assert (await error_of(forward(peer, brought))).reason == "ENVIRONMENT_MISMATCH"
        for reach, reason in (("jurisdiction", "JURISDICTION_MISMATCH"), ("home-only", "PARTITION_UNKNOWN")):
            brought = forwarded(fleet, EAST, WEST, "GetWorkflow", get(partition=f"{CENTRAL}.prod.{reach}"))
            assert (await error_of(forward(peer, brought))).reason == reason
        assert len(written(fleet, WEST)) == 1


async def test_so_many_in_a_while(tmp_path, monkeypatch):
    # Long beside three reads.
    monkeypatch.setattr(limits, "BREAK_GLASS_PERIOD_S", 2.0)
    monkeypatch.setattr(limits, "BREAK_GLASS_READS_MAX", 3)
    async with running(tmp_path) as fleet, fleet.caller(EAST, "approver") as anna, fleet.caller(CENTRAL) as neighbour:
        await let_in(fleet)

        for _ in range(3):
            await read(anna, get())
        assert (await error_of(read(anna, get()))).reason == "BREAK_GLASS_RATE"
        await read(neighbour, get())
        end = fleet[WEST].node.clock() + limits.BREAK_GLASS_PERIOD_S
        await until(lambda: fleet[WEST].node.clock() > end)
        await read(anna, get())
        assert len(written(fleet, WEST)) == 5


# -- on the record


async def test_both_sides_write_down_the_same_read(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=3) as fleet:
        await let_in(fleet)
        for node in fleet[EAST].node_names:
            async with fleet.caller(EAST, "approver", node=node, name="anna") as anna:
                packed = await anna.call("GetWorkflow", get())
                reply = api.GetWorkflowReply.FromString(packed)
                assert reply.workflow.workflow.state == CANARY.encode()
                assert reply.header.break_glass == HOME_ONLY
                assert (reply.workflow.meta.actor, reply.workflow.meta.reason) == ("", "")
                out, came = written(fleet, WEST)[-1], written(fleet, EAST)[-1]
                assert out.digest == came.digest == hashlib.sha256(packed).digest()
                assert (out.epoch, out.revision) == (came.epoch, came.revision) == (1, reply.header.revision)
                assert (out.direction, came.direction) == (Passage.EGRESS, Passage.INGRESS)
                assert (out.counterparty, came.counterparty) == (EAST, WEST)
                who = f"controlplane://{FLEET}/prod/{EAST}/approver/anna"
                assert (out.actor, out.reason, out.method, out.partition) == (who, WHY, "GetWorkflow", PINNED)
                assert (came.actor, came.reason, came.method, came.partition) == (who, "", "", "")
        assert len(written(fleet, WEST)) == len(written(fleet, EAST)) == 3
        for region, other, way in ((WEST, EAST, "out"), (EAST, WEST, "in")):
            records = in_ledger(fleet, region)
            assert [(each["way"], each["peer"], each["role"], each["reach"]) for each in records] == [
                (way, other, "approver", "home-only")
            ] * 3
            assert all("anna" not in json.dumps(each) and WHY not in json.dumps(each) for each in records)
        for ours, theirs in zip(in_ledger(fleet, WEST), in_ledger(fleet, EAST), strict=True):
            leaf: Any = verify.Leaf(at=0, at_ms=0, open=())
            assert verify._glass(ours, leaf).what == verify._glass(theirs, leaf).what
        # It is no ordinary answer besides.
        assert fleet[WEST].passages(sort="answer") == fleet[WEST].passages(sort="denial") == []
        assert exposed(fleet[WEST]) >= {("us-east", "shown")}
        shown = sum(member.server.counts.break_glass[EAST, "shown"] for member in fleet[WEST].members.values())
        came_in = sum(member.server.counts.break_glass[WEST, "read"] for member in fleet[EAST].members.values())
        assert (shown, came_in) == (3, 3)


async def test_a_call_that_comes_to_a_follower_of_the_home_is_its_leaders(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        await let_in(fleet)
        for node in fleet[WEST].node_names:
            async with fleet.peer(EAST, WEST, node) as peer:
                on_behalf_of = f"controlplane://{FLEET}/prod/{EAST}/approver/anna"
                brought = forwarded(fleet, EAST, WEST, "GetWorkflow", get(), on_behalf_of)
                told = wire.ForwardReply.FromString(await forward(peer, brought)).reply
                reply = api.GetWorkflowReply.FromString(told)
                assert (reply.header.node, reply.header.break_glass) == (fleet[WEST].member.name, HOME_ONLY)
                denied = forwarded(fleet, EAST, WEST, "GetWorkflow", get())
                assert (await error_of(forward(peer, denied))).reason == "BREAK_GLASS_DENIED"
        assert len(written(fleet, WEST)) == 3
        await until(lambda: fleet[WEST].passages(sort="denial", counterparty=EAST))


def exposed(region: Any) -> set[tuple[str, ...]]:
    """What Prometheus is told of such reads, by all nodes of a region."""
    return {
        tuple(sample.labels.values())
        for member in region.members.values()
        for family in NodeCollector(member.node, member.server.counts, lambda: 0).collect()
        if family.name == "controlplane_break_glass_reads"
        for sample in family.samples
    }


async def test_that_there_is_no_such_record_is_something_that_was_shown(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST, "approver") as anna:
        await let_in(fleet)
        assert (await error_of(read(anna, get("none")))).reason == "WORKFLOW_NOT_FOUND"
        [record] = written(fleet, WEST)
        assert (record.revision, record.epoch, len(record.digest)) == (0, 0, 32)
        [content] = in_ledger(fleet, WEST)
        assert content["digest"] == record.digest.hex()


async def test_a_reviewer_is_told_by_the_ledgers_of_both(tmp_path):
    """What both wrote, among what others did, as the reviewer's program reads it. An outline went out too."""
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST, "approver") as anna:
        await let_in(fleet)
        for _ in range(2):
            await read(anna, get())
        await anna.call("GetOutline", api.GetOutlineRequest(region=WEST))
        await until(lambda: fleet[WEST].passages(sort="outline"))
        outlined = [content for content in in_ledger(fleet, WEST, "egress") if content["door"] == "operator"]
        [home, there] = [
            honest(region, extra={50: [("break-glass", each) for each in in_ledger(fleet, region)] + more})
            for region, more in ((WEST, [("egress", each) for each in outlined]), (EAST, []))
        ]
    assert len(outlined) == 1
    desk = Desk(tmp_path)
    theirs = desk.written(there.report()).rename(tmp_path / "theirs.tar")
    says = desk.says(desk.written(home.report()), trust=trust(), peers=[tmp_path / "eu-central.tar", theirs])
    assert {name: status for name, (status, _) in says.items() if status != verify.PASS} == {"IDENTITY": "NOT CHECKED"}
    assert "but 2 break-glass reads let people see pinned data: 2 showed us-east data of eu-west" in says["REACH"][1]
    assert "so do 2 break-glass reads" in says[f"MATCHED {EAST}"][1]


async def test_what_needs_no_glass_breaks_none(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST, "approver") as anna:
        await let_in(fleet)
        reply = await read(anna, get(partition=f"{WEST}.prod.global"))
        assert (reply.header.region, reply.header.break_glass) == (WEST, 0)
        await until(lambda: fleet[WEST].passages(sort="answer"))
        assert written(fleet, WEST) == written(fleet, EAST) == []


class Forgetful(ScriptedLog):
    """A log that does not take, or never says that it took, what writes down a break-glass read."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    async def append(self, entry: bytes, *, timeout_s: float) -> int:
        if b"BreakGlass" not in entry:
            return await super().append(entry, timeout_s=timeout_s)
        if self.how == "lost":
            raise Unavailable("it was not agreed on", reason="ENTRY_DISCARDED")
        if self.how == "late":
            asyncio.get_running_loop().call_soon(self.commit, entry)
        raise OutcomeUnknown("nobody can say", reason="TIMEOUT")


@pytest.mark.parametrize("region", [WEST, EAST])
@pytest.mark.parametrize("how", ["lost", "unknown", "late"])
async def test_what_cannot_be_written_down_is_not_shown(tmp_path, region, how):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST, "approver") as anna:
        await let_in(fleet)
        [member] = fleet[region].members.values()
        member.log = Forgetful(how)
        await fleet[region].restart()
        await until(lambda: fleet[EAST].link(WEST).state == "up")
        error = await error_of(anna.call("GetWorkflow", get(), timeout_s=5))
        assert isinstance(error, Unavailable)
        assert "BREAK_GLASS_NOT_RECORDED" in (error.reason, error.details.get("because"))
        assert CANARY not in repr((error, error.details))
        assert len(written(fleet, region)) == (how == "late")
        assert member.server.counts.break_glass[EAST if region == WEST else WEST, "unrecorded"] == 1


# -- nothing stays


async def test_nothing_of_it_is_left_where_it_was_read(tmp_path, capsys, caplog):
    """Asked at each node of a region on disks; then all rows, all files and all that was logged are searched."""
    async with running(tmp_path, eu_west=1, us_east=3) as fleet:
        await let_in(fleet, {EAST: ["operator"]})
        async with fleet.caller(WEST, name=CANARY) as owner:
            await owner.call("CreateWorkflow", create(f"{CANARY}-w", CANARY.encode(), partition=PINNED))
            await owner.call("SetFlag", flag(f"{CANARY}-f", partition=PINNED))
        why = f"what does {CANARY} say"
        header = asking(why=why)
        heard = []
        for node in fleet[EAST].node_names:
            async with fleet.caller(EAST, node=node) as maria:
                heard += [
                    await maria.call("GetWorkflow", api.GetWorkflowRequest(header=header, id=f"{CANARY}-w")),
                    await maria.call("ListFlags", api.ListFlagsRequest(header=header, prefix=CANARY)),
                    await maria.call(
                        "GetWorkflowHistory", api.GetWorkflowHistoryRequest(header=header, id=f"{CANARY}-w")
                    ),
                ]
        assert all(CANARY.encode() in each for each in heard)
        assert len(written(fleet, EAST)) == len(written(fleet, WEST)) == 9
        await fleet.settled()
        assert [row for row in fleet[EAST].everything() if CANARY.encode() in row] == []
        assert any(why.encode() in row for row in fleet[WEST].everything())
        assert fleet[EAST].held(WEST, HOME_ONLY) == {}
        logged = capsys.readouterr()
        told = [logged.out, logged.err, *(record.getMessage() for record in caplog.records)]
        assert any("pinned data is shown to another region" in each for each in told)
        assert any("pinned data of another region is read" in each for each in told)
        assert not any(CANARY in each for each in told)
        for region in (EAST, WEST):
            assert CANARY not in repr((fleet[region].metrics(), fleet[region].member.server.counts.break_glass))
        await fleet[EAST].stop()
        files = [file.read_bytes() for file in (tmp_path / EAST).rglob("*") if file.is_file()]
        # Rows written last are in files that are not compressed: the record of the read itself is found.
        assert any(b"BreakGlass" in each for each in files)
        assert not any(CANARY.encode() in each for each in files)


async def test_operators_of_both_sides_look_it_up(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await let_in(fleet)
        get_it = ("workflow", "get", "w", "--partition", PINNED)
        shut = await fleet.cpctl(EAST, *get_it, role="approver")
        assert shut.exit_code == 3
        assert "--break-glass" in shut.stderr
        got = await fleet.cpctl(EAST, *get_it, "--break-glass", WHY, "--json", role="approver")
        assert got.exit_code == 0, got.stderr
        document = json.loads(got.stdout.splitlines()[-1])
        assert document["state"] == CANARY
        at_home = await fleet.cpctl(WEST, "region", "break-glass", "--json")
        [out] = json.loads(at_home.stdout.splitlines()[-1])["reads"]
        assert (out["shown"], out["counterparty"], out["reason"], out["partition"]) == (True, EAST, WHY, PINNED)
        there = await fleet.cpctl(EAST, "region", "break-glass", "--json", role="reviewer")
        [came] = json.loads(there.stdout.splitlines()[-1])["reads"]
        assert (came["shown"], came["counterparty"], came["reason"], came["digest"]) == (
            *(False, WEST, None),
            out["digest"],
        )
        assert f"shown to {EAST}" in (await fleet.cpctl(WEST, "region", "break-glass")).stdout
        assert (await fleet.cpctl(WEST, "region", "break-glass", role="agent")).exit_code == 3
        for wrong in (("--break-glass", " "), ("--break-glass", WHY, "--watch")):
            assert (await fleet.cpctl(EAST, *get_it, *wrong, role="approver")).exit_code == 2
        async with fleet.peer(EAST, WEST) as peer:
            brought = forwarded(fleet, EAST, WEST, "ListBreakGlass", api.ListBreakGlassRequest())
            assert (await error_of(forward(peer, brought))).reason == "NOT_FOR_OTHER_REGIONS"


async def test_pages_of_what_was_written_down_are_of_one_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "BREAK_GLASS_READS_MAX", 100)
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST, "approver") as anna:
        await let_in(fleet)
        for _ in range(5):
            await read(anna, get())
        async with fleet.caller(WEST) as owner:
            seen: list[int] = []
            more = True
            while more:
                after = seen[-1] if seen else 0
                packed = await owner.call("ListBreakGlass", api.ListBreakGlassRequest(after_revision=after, limit=2))
                reply = api.ListBreakGlassReply.FromString(packed)
                seen += [each.meta.revision for each in reply.reads]
                more = reply.more
            assert len(seen) == 5
            assert seen == sorted(set(seen))
        async with fleet.caller(WEST, environment="staging") as other:
            reply = api.ListBreakGlassReply.FromString(await other.call("ListBreakGlass"))
            assert list(reply.reads) == []
