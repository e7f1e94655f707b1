"""What people of other regions see of a region: what was decided on and nothing else, told once and written down."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from rich.console import Console

from controlplane import limits
from controlplane.cli import shapes
from controlplane.cli.region import _outlines
from controlplane.errors import ControlPlaneError, Denied, NotFound
from controlplane.features import audit, switches
from controlplane.identity import ENVIRONMENTS
from controlplane.ledger import leaves
from controlplane.server import outline
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2
from tests.federation import fleet as fleets
from tests.federation.fleet import CENTRAL, EAST, WEST, running
from tests.federation.test_calls import forward, forwarded
from tests.server.regions import until, write_header

CANARY = "kanarienvogel"


def fields(message: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Every field below a message that holds no message itself, by its path."""
    for field in message.fields:
        if field.message_type is None:
            yield prefix + field.name, field
        else:
            yield from fields(field.message_type, f"{prefix}{field.name}.")


SOURCE = dict(fields(api.GetStatusReply.DESCRIPTOR))


def test_every_field_of_a_regions_status_is_shown_or_held_back() -> None:
    assert set(SOURCE) == outline.SHOWN | outline.HELD_BACK
    assert not outline.SHOWN & outline.HELD_BACK


def test_every_field_of_an_outline_was_decided_on() -> None:
    """Whoever adds one says here why other regions may see it."""
    assert {path for path, _ in fields(api.Outline.DESCRIPTOR)} == {
        *("region", "jurisdiction", "leader", "leader_age_ms", "revision", "age_ms", "quorum", "isolated"),
        *("nodes.name", "nodes.up", "nodes.behind"),
        *("links.region", "links.state", "links.copies.reach", "links.copies.age_ms", "links.copies.listing"),
        # Added for the caller's environment, as far as stops may be read there: a number, and ids that say nothing.
        *("stops_told", "switches_engaged", "stop_ids"),
    }


def put(message: Any, path: str, value: Any) -> None:
    """Set a field; on the way, one element of each list."""
    name, _, rest = path.partition(".")
    field = message.DESCRIPTOR.fields_by_name[name]
    if rest and field.is_repeated:
        each = getattr(message, name)
        put(each[0] if each else each.add(), rest, value)
    elif rest:
        put(getattr(message, name), rest, value)
    elif field.is_repeated:
        getattr(message, name).append(value)
    else:
        setattr(message, name, value)


def value_of(field: FieldDescriptor) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return CANARY
    return {FieldDescriptor.TYPE_BOOL: True, FieldDescriptor.TYPE_ENUM: 2}.get(field.type, 7_654_321)


def a_status(**more: Any) -> api.GetStatusReply:
    """One in which every field that decides about another one is set."""
    found = api.GetStatusReply(last=9_999_999, **more)
    found.members.add(match=1)
    found.links.add().views.add()
    return found


@pytest.mark.parametrize("path", sorted(SOURCE))
def test_what_is_held_back_changes_nothing_and_what_is_shown_does(path: str) -> None:
    status = a_status()
    before = outline.outline(status)
    put(status, path, value_of(SOURCE[path]))
    assert (outline.outline(status) == before) is (path in outline.HELD_BACK)


def test_a_status_of_canaries_shows_names_of_regions_and_nodes_alone() -> None:
    status = a_status()
    for path, field in SOURCE.items():
        put(status, path, f"{CANARY}:{path}" if field.type == FieldDescriptor.TYPE_STRING else value_of(field))
    shown = set(texts(outline.outline(status)))
    assert {text.removeprefix(f"{CANARY}:") for text in shown} == {
        *("region.name", "region.jurisdiction", "region.leader", "members.name", "links.region", "links.state")
    }


def texts(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            if isinstance(each, Message):
                yield from texts(each)
            elif isinstance(each, str):
                yield each


# -- asked for


async def ask(caller: Any, region: str) -> api.GetOutlineReply:
    return api.GetOutlineReply.FromString(await caller.call("GetOutline", api.GetOutlineRequest(region=region)))


async def why(call: Any) -> ControlPlaneError:
    with pytest.raises(ControlPlaneError) as raised:
        await call
    return raised.value


def shown(*documents: dict[str, Any]) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(_outlines(documents))
    return text.getvalue()


async def throw(fleet: fleets.Fleet, *names: str) -> None:
    async with fleet.caller(WEST, name=CANARY) as operator:
        for name in names:
            scope = records_pb2.Scope(kind=records_pb2.SCOPE_TENANT, name=name)
            header = write_header(reason=f"{CANARY} broke")
            await operator.call("EngageSwitch", api.EngageSwitchRequest(header=header, scope=scope))
        here = api.EngageSwitchRequest(header=write_header(reason="all of it"), scope=records_pb2.Scope(kind=1))
        await operator.call("EngageSwitch", here)
    ids = [switches.opaque(fleets.FLEET, "prod", f"tenant:{name}") for name in names]
    await until(lambda: all(any(each.encode() in row for row in fleet[WEST].everything()) for each in ids))


async def test_an_outline_says_how_a_region_is_and_nothing_of_what_it_holds(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet, fleet.caller(EAST) as maria:
        await fleet.settled()
        await throw(fleet, f"{CANARY}-1", f"{CANARY}-2")
        async with fleet.caller(WEST, name=CANARY) as operator:
            await operator.call("GetOutline", api.GetOutlineRequest())
        reply = await ask(maria, WEST)
        told = reply.outline
        leader = fleet[WEST].member
        assert (told.region, told.jurisdiction, told.leader) == (WEST, "eu", leader.name)
        assert (reply.header.region, reply.unreachable) == (WEST, "")
        assert {each.name: each.up for each in told.nodes} == dict.fromkeys(fleet[WEST].node_names, True)
        assert told.quorum
        assert not told.isolated
        assert [(each.region, each.state) for each in told.links] == [(EAST, "up")]
        assert (reply.link.region, reply.link.state) == (WEST, "up")
        # The switch of the whole region is counted; only what travels has an id.
        ids = {switches.opaque(fleets.FLEET, "prod", f"tenant:{CANARY}-{n}") for n in (1, 2)}
        assert (told.stops_told, told.switches_engaged, set(told.stop_ids)) == (True, 3, ids)
        encoded = reply.SerializeToString()
        for hidden in (CANARY, "prod.", "127.0.0.1", "operator/", "tenant", "broke"):
            assert hidden.encode() not in encoded, hidden
        text = shown(shapes.outline(reply, WEST))
        assert "well" in text
        assert leader.name in text
        assert all(each in text for each in ids)


async def test_nodes_that_are_down_are_seen(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet, fleet.caller(EAST) as maria:
        await fleet.settled()
        down = next(member for member in fleet[WEST].members.values() if member.name != fleet[WEST].member.name)
        await down.stop()
        await until(lambda: not fleet[WEST].node.log.status().peers[down.name].connected)
        told = (await ask(maria, WEST)).outline
        assert [each.name for each in told.nodes if not each.up] == [down.name]
        assert told.quorum
        assert "not all nodes are up" in shown(shapes.outline(await ask(maria, WEST), WEST))


async def test_a_follower_of_either_side_will_do(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=3) as fleet:
        await fleet.settled()
        for node in fleet[EAST].node_names:
            async with fleet.caller(EAST, node=node) as maria:
                assert (await ask(maria, WEST)).outline.leader == fleet[WEST].member.name
                assert (await ask(maria, "")).outline.region == EAST
        leader = fleet[WEST].member.name
        follower = next(name for name in fleet[WEST].node_names if name != leader)
        async with fleet.peer(EAST, WEST, follower) as peer:
            await forward(peer, forwarded(fleet, EAST, WEST, "GetOutline", api.GetOutlineRequest(region=WEST)))
        await until(lambda: sum(each.records for each in fleet[WEST].passages(sort="outline")) == 4)


@pytest.mark.parametrize("region", [EAST, CENTRAL])
@pytest.mark.parametrize("role", ["agent", "operator", "approver", "reviewer"])
async def test_people_see_it_and_agents_do_not(tmp_path, role, region):
    async with running(tmp_path) as fleet, fleet.caller(region, role) as somebody, fleet.peer(region, WEST) as peer:
        await fleet.settled()
        on_behalf_of = f"controlplane://{fleets.FLEET}/prod/{region}/{role}/x"
        brought = forwarded(fleet, region, WEST, "GetOutline", api.GetOutlineRequest(region=WEST), on_behalf_of)
        for ask_it in (lambda: ask(somebody, WEST), lambda: forward(peer, brought)):
            if role == "agent":
                assert (await why(ask_it())).reason == "ROLE_DENIED"
            else:
                await ask_it()
        # An agent that was let past by its own region was denied by the other one, which wrote that down.
        sort, other = ("denial", "outline") if role == "agent" else ("outline", "denial")
        await until(lambda: fleet[WEST].passages(sort=sort, counterparty=region))
        assert fleet[WEST].passages(sort=other) == []


async def test_it_goes_where_global_may_go_and_nowhere_else(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.caller(CENTRAL) as neighbour:
        for may in ([], ["jurisdiction"]):
            fleet[WEST].may_leave = {EAST: [], CENTRAL: may}
            await fleet[WEST].restart()
            for caller in (maria, neighbour):
                error = await why(ask_until_reached(caller))
                assert (type(error), error.reason) == (Denied, "MAY_NOT_LEAVE")
        assert fleet[WEST].passages(sort="outline") == []
        await until(lambda: {each.counterparty for each in fleet[WEST].passages(sort="denial")} == {EAST, CENTRAL})


async def ask_until_reached(caller: Any) -> api.GetOutlineReply:
    """Ask until the other region answers, whatever it says: it has just been started again."""
    async with asyncio.timeout(20):
        while not (reply := await ask(caller, WEST)).HasField("outline"):  # noqa: ASYNC110 - another region starts.
            await asyncio.sleep(0.05)
        return reply


REACHES = [("home-only", False, False), ("jurisdiction", True, False), ("global", True, True)]


@pytest.mark.parametrize(("reach", "to_neighbour", "abroad"), REACHES)
async def test_kill_switches_are_told_as_far_as_stops_go(tmp_path, monkeypatch, reach, to_neighbour, abroad):
    usual = {"global": ["flag"], "jurisdiction": ["workflow"], "home-only": ["election", "switch"]}
    monkeypatch.setattr(fleets, "DEFAULTS", {**usual, reach: [*usual[reach], "stop"]})
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.caller(CENTRAL) as neighbour:
        await throw(fleet, CANARY)
        for caller, region, may in ((maria, EAST, abroad), (neighbour, CENTRAL, to_neighbour)):
            reply = await ask(caller, WEST)
            told = reply.outline
            assert (told.stops_told, told.switches_engaged, len(told.stop_ids)) == (may, 2 * may, 1 * may)
            assert ("not told" in shown(shapes.outline(reply, WEST))) is not may
            written = lambda region=region: fleet[WEST].passages(sort="outline", counterparty=region)  # noqa: E731
            await until(written)
            wide = records_pb2.JURISDICTION if may and reach == "jurisdiction" else records_pb2.GLOBAL
            assert {each.reach for each in written()} == {wide}


async def test_the_wall_between_environments_stands(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(EAST, WEST) as peer:
        await throw(fleet, CANARY)
        for environment in ENVIRONMENTS:
            on_behalf_of = f"controlplane://{fleets.FLEET}/{environment}/{EAST}/operator/maria"
            brought = forwarded(fleet, EAST, WEST, "GetOutline", api.GetOutlineRequest(region=WEST), on_behalf_of)
            packed = fleets.wire.ForwardReply.FromString(await forward(peer, brought)).reply
            told = api.GetOutlineReply.FromString(packed).outline
            assert (told.stops_told, told.switches_engaged) == ((True, 2) if environment == "prod" else (False, 0))


async def test_no_region_tells_of_another(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.peer(EAST, WEST) as peer:
        for of in (CENTRAL, EAST, ""):
            brought = forwarded(fleet, EAST, WEST, "GetOutline", api.GetOutlineRequest(region=of))
            assert (await why(forward(peer, brought))).reason == "NOT_AT_HOME"
        error = await why(ask(maria, "ap-south"))
        assert (type(error), error.reason) == (NotFound, "REGION_UNKNOWN")
        assert fleet[CENTRAL].passages(sort="outline") == []


async def test_what_is_known_here_is_said_of_a_region_that_cannot_be_asked(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST) as maria:
        await fleet.settled()
        await fleet.cut(EAST, WEST)
        await until(lambda: fleet[EAST].link(WEST).state == "down")
        reply = await ask(maria, WEST)
        assert not reply.HasField("outline")
        assert (reply.unreachable, reply.header.region) == ("NO_CONNECTION", EAST)
        assert (reply.link.state, [view.reach for view in reply.link.views]) == ("down", [records_pb2.GLOBAL])
        text = shown(shapes.outline(reply, WEST))
        assert "cannot be asked (NO_CONNECTION)" in text
        assert "global" in text
        assert (await ask(maria, EAST)).outline.isolated


async def test_a_region_without_a_majority_cannot_be_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(outline, "_ASK_S", 0.5)
    async with running(tmp_path, eu_west=3, us_east=1) as fleet, fleet.caller(EAST) as maria:
        await fleet.settled()
        for member in [each for each in fleet[WEST].members.values() if each is not fleet[WEST].member]:
            await member.stop()
        await until(lambda: not any(m.running and m.node.log.status().ready for m in fleet[WEST].members.values()))
        reply = await ask(maria, WEST)
        assert not reply.HasField("outline")
        assert reply.unreachable
        assert reply.link.region == WEST


async def test_it_is_written_down_as_something_that_left(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST) as maria:
        for _ in range(3):
            await ask(maria, WEST)
        await until(lambda: sum(each.records for each in fleet[WEST].passages(sort="outline")) == 3)
        store = fleet[WEST].node.store
        told = [
            leaves_of
            for index in range(fleet[WEST].node.ledger.size)
            for _, name, _, content in audit.opened(store, index)
            if (leaves_of := (name, content)) and b'"door":"operator"' in content
        ]
        assert {name for name, _ in told} == {"egress"}
        assert all(b'"reach":"global"' in content and f'"peer":"{EAST}"'.encode() in content for _, content in told)
        assert all(len(content) < leaves.CONTENT_BYTES_MAX for _, content in told)


async def test_cpctl_shows_one_region_or_all_of_them(tmp_path):
    async with running(tmp_path) as fleet:
        await fleet.settled()
        one = await fleet.cpctl(EAST, "status", "--of", WEST, "--json")
        assert one.exit_code == 0, one.stderr
        document = json.loads(one.stdout.splitlines()[-1])
        assert (document["region"], document["outline"]["leader"], document["link"]["state"]) == (WEST, "west1", "up")
        assert document["outline"]["healthy"] is True
        fleet[WEST].may_leave = {EAST: []}
        await fleet[WEST].restart()
        await fleet.cut(EAST, CENTRAL)
        async with fleet.caller(EAST) as maria:
            assert (await why(ask_until_reached(maria))).reason == "MAY_NOT_LEAVE"
        every = await fleet.cpctl(EAST, "status", "--fleet", "--json")
        assert every.exit_code == 11
        found = {each["region"]: each for each in json.loads(every.stdout.splitlines()[-1])["regions"]}
        assert found[EAST]["outline"]["healthy"] is True
        assert found[WEST]["error"]["reason"] == "MAY_NOT_LEAVE"
        assert found[CENTRAL]["unreachable"] == "NO_CONNECTION"
        assert "cannot be asked" in (await fleet.cpctl(EAST, "status", "--fleet")).stdout
        assert (await fleet.cpctl(EAST, "status", "--of", WEST, role="agent")).exit_code == 3
        assert (await fleet.cpctl(EAST, "status", "--of", WEST, "--fleet")).exit_code == 2


async def test_ids_are_as_many_as_a_page_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_MAX", 2)
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST) as maria:
        await throw(fleet, "a", "b", "c")
        told = (await ask(maria, WEST)).outline
        assert (told.switches_engaged, len(told.stop_ids)) == (4, 2)
