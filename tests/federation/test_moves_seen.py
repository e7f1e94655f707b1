"""Moves of homes as agents and operators see them: by the SDK, and by cpctl."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from click.testing import CliRunner

from controlplane.cli import main
from controlplane.errors import Refused
from controlplane.identity import Identity
from controlplane.sdk import LOCAL, ControlPlane
from controlplane.v1 import records_pb2 as records
from tests.federation import fleet as fleets
from tests.federation.fleet import CENTRAL, EAST, FLEET, WEST, running
from tests.server.regions import flag, until

CONFIG, STATE, SHARED = f"{WEST}.prod.global", f"{WEST}.prod.jurisdiction", f"{WEST}.prod.shared"


def certificate(fleet, region, role="operator"):
    signed = fleet.authority.sign(Identity(FLEET, "prod", region, role, "maria"))
    folder = fleet.folder / os.urandom(4).hex()
    signed.save(folder / "crt", folder / "key")
    return {"ca": fleet.authority.file, "cert": folder / "crt", "key": folder / "key"}


def addresses(fleet, region):
    return [f"127.0.0.1:{port}" for port in fleet[region].ports[: fleet[region].size]]


def client(fleet, region, role="operator"):
    return ControlPlane.connect(addresses(fleet, region), **certificate(fleet, region, role))


def cpctl(fleet, region, *arguments, **more):
    """Run cpctl in a thread: the regions run in this loop."""
    files = certificate(fleet, region)
    options = ["--address", addresses(fleet, region)[0], "--authority", str(files["ca"])]
    options += ["--certificate", str(files["cert"]), "--key", str(files["key"])]
    return asyncio.to_thread(CliRunner().invoke, main, [*options, *arguments], **more)


def model(name):
    variant = records.Variant(name="v", value=records.FlagValue(string_value=name))
    return records.Flag(name="agent_model", type=records.STRING, enabled=True, variants=[variant], default_variant="v")


async def test_agents_go_on_while_their_configuration_moves(tmp_path, monkeypatch):
    monkeypatch.setattr(fleets, "DEFAULTS", {**fleets.DEFAULTS, "global": ["flag"]})
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, client(fleet, WEST) as agent:
        await agent.set_flag(model("one"))
        await until(lambda: agent.config().model == "one")
        seen, done = set(), asyncio.Event()

        async def act():
            while not done.is_set():
                agent.ensure_alive(tenant="acme")
                seen.add(agent.config().model)
                await asyncio.sleep(0.005)

        acting = asyncio.create_task(act())
        await agent.move_partition(CONFIG, EAST, reason="nearer to its readers")
        await until(lambda: fleet[WEST].node.places.routed(CONFIG).home == EAST)
        written = await agent.set_flag(model("two"))
        assert (written.header.region, written.header.epoch, written.meta.version) == (EAST, 2, 2)
        await until(lambda: "two" in seen or acting.done())
        # Its own region's revisions and the new home's are not mixed up.
        assert agent.revision <= fleet[WEST].node.revision
        await agent.create_workflow("w", b"{}")
        read = await agent.get_flag("agent_model")
        assert (read.header.region, read.flag.meta.version) == (EAST, 2)
        assert (await agent.get_flag("agent_model", consistency=LOCAL)).header.region == WEST
        done.set()
        await acting
        # At no moment was there no configuration.
        assert seen == {"one", "two"}
        async with client(fleet, EAST) as reader:
            # It is no default there: that region's own partition is.
            assert not (await reader.list_flags()).flags
            assert len((await reader.list_flags(partition=CONFIG)).flags) == 1


async def test_an_update_with_retries_waits_for_the_move(tmp_path):
    async with running(tmp_path, eu_west=1, eu_central=1) as fleet, client(fleet, WEST) as agent:
        await agent.create_workflow("w", b'{"n": 0}')
        updates = 0

        async def count():
            nonlocal updates
            while fleet[WEST].node.places.routed(STATE).home == WEST or updates < 10:
                await agent.update_state_with_retry("w", lambda state: {"n": state["n"] + 1})
                updates += 1

        counting = asyncio.create_task(count())
        await until(lambda: updates > 2)
        await agent.move_partition(STATE, CENTRAL, reason="nearer")
        await counting
        found = await agent.get_workflow("w")
        assert json.loads(found.workflow.workflow.state) == {"n": updates}
        assert found.workflow.version == updates + 1


async def test_cpctl_plans_a_move_and_shows_it(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        result = await cpctl(fleet, WEST, "partition", "list", "--json")
        assert result.exit_code == 0, result.stderr
        listed = {each["id"]: each for each in json.loads(result.stdout)["partitions"]}
        assert (listed[SHARED]["home"], listed[SHARED]["state"], listed[SHARED]["epoch"]) == (WEST, "home", 1)
        assert listed[f"{EAST}.prod.shared"]["state"] == "copy"
        result = await cpctl(fleet, WEST, "partition", "move", SHARED, "--to", EAST, "--reason", "why not")
        assert result.exit_code == 0, result.stderr
        assert f"{EAST} is the home of {SHARED}, in epoch 2" in result.stdout
        shown = json.loads((await cpctl(fleet, EAST, "partition", "show", SHARED, "--json")).stdout)
        assert (shown["home"], shown["state"], shown["move"]["phase"]) == (EAST, "home", "adopted")
        shown = json.loads((await cpctl(fleet, WEST, "partition", "show", SHARED, "--json")).stdout)
        assert (shown["state"], shown["move"]["phase"], shown["former"][0]["home"]) == ("copy", "left", WEST)
        assert "left" in (await cpctl(fleet, WEST, "partition", "show", SHARED)).stdout
        assert EAST in (await cpctl(fleet, WEST, "partition", "list")).stdout
        result = await cpctl(fleet, WEST, "partition", "quarantine", SHARED, "--json")
        assert json.loads(result.stdout) == {"quarantined": [], "more": False}
        result = await cpctl(fleet, WEST, "partition", "show", "eu-west.prod.none")
        assert (result.exit_code, "partition list" in result.stderr) == (4, True)
        result = await cpctl(fleet, WEST, "partition", "move", SHARED, "--to", EAST, "--reason", "again")
        assert (result.exit_code, "NOT_AT_HOME" in result.stderr) == (5, True)
        result = await cpctl(fleet, WEST, "partition", "move", SHARED, "--cancel", "--reason", "no")
        assert (result.exit_code, "NOT_MOVING" in result.stderr) == (5, True)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--to", EAST, "--cancel"],
        ["--cancel", "--forced"],
        ["--to", EAST, "--forced"],
        ["--to", EAST, "--attest", "x"],
    ],
)
async def test_cpctl_knows_what_makes_no_sense(tmp_path, arguments):
    async with running(tmp_path, eu_west=1) as fleet:
        result = await cpctl(fleet, WEST, "partition", "move", SHARED, "--reason", "why not", *arguments)
        assert (result.exit_code, "Usage" in result.stderr) == (2, True)


async def test_cpctl_states_the_loss_before_it_forces(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(WEST) as at_old:
        await at_old.call("SetFlag", flag("f", partition=SHARED))
        await fleet.settled()
        await fleet.cut(WEST, EAST)
        await until(lambda: fleet[EAST].link(WEST).state == "down")
        await at_old.call("SetFlag", flag("late", partition=SHARED))
        forced = [
            "partition",
            "move",
            SHARED,
            "--to",
            EAST,
            "--forced",
            "--reason",
            "fire",
            "--attest",
            "it burnt down",
        ]
        result = await cpctl(fleet, EAST, *forced)
        assert (result.exit_code, "NOT_CONFIRMED" in result.stderr) == (2, True)
        assert fleet[EAST].node.places.routed(SHARED).home == WEST
        upto = next(cursor.revision for cursor, _ in fleet[EAST].node.views())
        result = await cpctl(fleet, EAST, *forced, "--yes")
        assert result.exit_code == 0, result.stderr
        assert f"whatever {WEST} wrote after revision {upto}" in result.stderr
        assert "age of the copy" in result.stderr
        shown = json.loads((await cpctl(fleet, EAST, "partition", "show", SHARED, "--json")).stdout)
        assert (shown["move"]["forced"], shown["move"]["attestation"], shown["move"]["upto"]) == (
            True,
            "it burnt down",
            upto,
        )
        await fleet.heal(WEST, EAST)
        await until(lambda: fleet[WEST].node.places.routed(SHARED).home == EAST)
        result = await cpctl(fleet, WEST, "partition", "quarantine", SHARED, "--json")
        assert [each["name"] for each in json.loads(result.stdout)["quarantined"]] == ["late"]
        assert "late" in (await cpctl(fleet, WEST, "partition", "quarantine", SHARED)).stdout


async def test_a_region_that_knows_no_other_says_so(tmp_path):
    async with running(tmp_path, eu_west=1) as fleet, client(fleet, WEST) as operator:
        with pytest.raises(Refused, match="no peer"):
            await operator.move_partition(SHARED, EAST, reason="alone")
