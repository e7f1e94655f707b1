"""What is counted at the doors of any node of a region ends up in its log, once."""

from __future__ import annotations

import hashlib
import json

import pytest

from controlplane.datadir import Start
from controlplane.errors import ControlPlaneError
from controlplane.features import audit
from controlplane.features.partitions import system
from controlplane.federation.doors import UNIDENTIFIED
from controlplane.kernel import keys, machine
from controlplane.kernel.transaction import scope_of
from controlplane.v1.records_pb2 import GLOBAL, Passage
from tests.federation.fleet import EAST, WEST, running
from tests.federation.test_calls import forwarded
from tests.server.regions import flag, operation, until


def counted(fleet, **wanted):
    return sum(each.records for each in fleet[WEST].passages(**wanted))


def passage(**other):
    parts = {"counterparty": EAST, "sort": "denial", "direction": Passage.EGRESS, "nonce": bytes(8), "records": 1}
    return Passage(**{**parts, **other})


async def knock(fleet, node):
    async with fleet.caller(EAST, at=WEST, node=node) as maria:
        with pytest.raises(ControlPlaneError) as raised:
            await maria.call("GetStatus")
        assert raised.value.reason == "REGION_MISMATCH"


async def test_denials_are_recorded_whichever_node_denied(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        for node in fleet[WEST].node_names:
            await knock(fleet, node)
        await until(lambda: counted(fleet, sort="denial", counterparty=EAST) == 3)


async def test_what_was_counted_while_nobody_led_is_recorded_once_by_who_leads_then(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        alone, *others = fleet[WEST].members.values()
        for member in others:
            await member.stop()
        await knock(fleet, alone.name)
        doors = alone.federation.doors
        await until(lambda: len(doors._waiting) == 1)
        await others[0].start(Start.NORMAL)
        await until(lambda: not doors._waiting)
        assert counted(fleet, sort="denial", counterparty=EAST) == 1


async def test_a_node_may_say_the_same_twice(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        leader = fleet[WEST].member.name
        own = next(name for name in fleet[WEST].node_names if name != leader)
        me = f"controlplane://acme/all/{WEST}/peer/{own}"
        async with fleet.peer(WEST, WEST, leader, name=own) as node:
            talk = await node.session()
            for n, nonce in enumerate((b"nonce--1", b"nonce--1", b"nonce--2"), 1):
                await talk.send(operation(n, "NotePassage", passage(nonce=nonce), on_behalf_of=me))
                assert not (await talk.reply(n)).status
        assert counted(fleet, sort="denial") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"counterparty": "AP South"},
        {"counterparty": ""},
        {"sort": "copy"},
        {"sort": ""},
        {"direction": Passage.INGRESS},
        {"nonce": b""},
        {"nonce": bytes(9)},
    ],
    ids=str,
)
async def test_nodes_say_only_what_doors_count(tmp_path, wrong):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(WEST, WEST) as node:
        me = f"controlplane://acme/all/{WEST}/peer/{fleet[WEST].node_names[0]}"
        talk = await node.session()
        await talk.send(operation(1, "NotePassage", passage(**wrong), on_behalf_of=me))
        assert (await talk.error(1)).reason == "PASSAGE_MALFORMED"
        assert fleet[WEST].passages(sort="denial") == []


async def test_nobody_but_a_node_of_the_region_says_what_its_doors_count(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        async with fleet.caller(WEST) as maria:
            talk = await maria.session()
            await talk.send(operation(1, "NotePassage", passage()))
            assert (await talk.error(1)).reason == "ROLE_DENIED"
        own = fleet[WEST].node_names[0]
        async with fleet.peer(WEST, WEST) as node:
            talk = await node.session()
            # For somebody it speaks for, for another node, and for itself, of other things.
            operator, other = (
                f"controlplane://acme/{who}" for who in (f"prod/{WEST}/operator/m", f"all/{WEST}/peer/x")
            )
            await talk.send(operation(1, "NotePassage", passage(), on_behalf_of=operator))
            assert (await talk.error(1)).reason == "ROLE_DENIED"
            await talk.send(operation(2, "NotePassage", passage(), on_behalf_of=other))
            assert (await talk.error(2)).reason == "ON_BEHALF_DENIED"
            me = f"controlplane://acme/all/{WEST}/peer/{own}"
            await talk.send(operation(3, "SetFlag", flag("f"), on_behalf_of=me))
            assert (await talk.error(3)).reason == "ROLE_DENIED"
        assert fleet[WEST].passages(sort="denial") == []
        async with fleet.peer(EAST, WEST) as foreign:
            me = f"controlplane://acme/all/{EAST}/peer/{fleet[EAST].node_names[0]}"
            with pytest.raises(ControlPlaneError) as raised:
                await foreign.call(
                    "Forward", forwarded(fleet, EAST, WEST, "NotePassage", passage(), me), service="Federation"
                )
            assert raised.value.reason == "ON_BEHALF_DENIED"


async def test_who_reads_metrics_from_another_machine_is_in_the_ledger(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        leader = fleet[WEST].member
        follower = next(member for member in fleet[WEST].members.values() if member is not leader)
        doors = follower.federation.doors
        for host in ("127.0.0.1", "::1", "127.9.9.9"):
            doors.scraped(host, b"inside")
        doors.scraped("203.0.113.7", b"one")
        await until(lambda: counted(fleet, sort="metrics") == 1)
        for page in (b"two", b"three"):
            doors.scraped("2001:db8::7", page)
        assert counted(fleet, sort="metrics") == 1
        # It is not yet due, and is not lost when the node stops.
        await follower.stop()
        found = sorted(fleet[WEST].passages(sort="metrics"), key=lambda each: each.records)
        assert [(each.counterparty, each.reach, each.records) for each in found] == [
            (UNIDENTIFIED, GLOBAL, 1),
            (UNIDENTIFIED, GLOBAL, 2),
        ]
        one = hashlib.sha256(bytes(32) + hashlib.sha256(b"one").digest()).digest()
        assert found[0].digest == one
        assert {
            "peer": UNIDENTIFIED,
            "door": "metrics",
            "reach": "global",
            "count": 1,
            "digest": one.hex(),
        }.items() <= (next(content for content in told(leader) if content["count"] == 1).items())


def told(member):
    """What the passages of metrics tell the ledger."""
    prefix = keys.RECORD + scope_of(system(WEST)) + keys.text("passage")
    for row, _ in member.node.store.scan(*keys.children(prefix)):
        event = machine.event_at(member.node.store, row[len(keys.RECORD) :])
        name, encoded = audit.audited_in(event)
        content = json.loads(encoded)
        if content.get("door") == "metrics":
            assert name == "egress"
            yield content
