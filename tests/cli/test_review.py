"""Residency reports of real regions, from the first record that left to the verifier's last word."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import controlplane.ledger.verify
from controlplane import sdk
from controlplane.demo.story import connected
from controlplane.loopback import PINNED, LoopbackFleet, LoopbackRegion, ending

PATIENCE_S = 45.0
CPCTL = [sys.executable, "-c", "from controlplane.cli import main; main()"]


def flag(name: str) -> sdk.Flag:
    on = sdk.Variant(name="on", value=sdk.FlagValue(bool_value=True))
    return sdk.Flag(name=name, type=sdk.FlagType.BOOL, enabled=True, variants=[on], default_variant="on")


@dataclass
class Fleet:
    fleet: LoopbackFleet
    operators: dict[str, sdk.ControlPlane]
    made: int = 0

    def cpctl(
        self, region: LoopbackRegion, *arguments: str, role: str = "reviewer"
    ) -> subprocess.CompletedProcess[str]:
        self.made += 1
        who = region.identity(role, f"{role}-{self.made}")
        options = ["--address", region.addresses[0], "--authority", str(who["ca"])]
        options += ["--certificate", str(who["cert"]), "--key", str(who["key"]), "--json"]
        return subprocess.run(
            [*CPCTL, *options, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def told(self, region: str, *arguments: str) -> Any:
        done = self.cpctl(self.fleet.regions[region], *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    async def until_cosigned(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            for name in self.fleet.regions:
                while not self.told(name, "region", "checkpoint")["cosigned"]:  # noqa: ASYNC110 - another process.
                    await asyncio.sleep(0.2)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Fleet]:
    fleet = LoopbackFleet(folder, {"eu": ("eu-west",), "us": ("us-east",)}, size=1)
    with ending(fleet.nodes):
        await fleet.join()
        operators: dict[str, sdk.ControlPlane] = {}
        try:
            for region in fleet.regions.values():
                region.start()
            for name, region in fleet.regions.items():
                async with asyncio.timeout(PATIENCE_S):
                    operators[name] = await connected(region.addresses, region.identity("operator", "admin"))
            yield Fleet(fleet, operators)
        finally:
            for operator in operators.values():
                await operator.close()
            await fleet.close()


async def share(told: Fleet) -> None:
    """Something that leaves, and something that must not."""
    west, east = told.operators["eu-west"], told.operators["us-east"]
    for number in range(5):
        await west.set_flag(flag(f"f{number}"))
    await west.create_workflow("secret", b"secret", partition=f"eu-west.prod.{PINNED}")
    with pytest.raises(sdk.Denied):
        await east.get_workflow("secret", partition=f"eu-west.prod.{PINNED}")
    async with asyncio.timeout(PATIENCE_S):
        while not (await east.list_flags(partition="eu-west.prod.config", consistency=sdk.LOCAL)).flags:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def verified(bundle: Path, trust: Path, *more: str) -> tuple[int, dict[str, str]]:
    command = [sys.executable, str(controlplane.ledger.verify.__file__), str(bundle), "--trust", str(trust), *more]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, {each["name"]: each["status"] for each in json.loads(done.stdout)["claims"]}


@pytest.mark.timeout(180)
async def test_a_report_of_a_real_region_is_verified_offline_and_a_spoiled_one_is_not(tmp_path: Path) -> None:
    bundles = {name: tmp_path / f"{name}.tar" for name in ("eu-west", "us-east")}
    async with running(tmp_path) as told:
        await share(told)
        await told.until_cosigned()
        scans = told.told("eu-west", "region", "scan")["nodes"]
        assert [(each["node"], each["foreign"], each["error"]) for each in scans] == [("n1", 0, None)]
        assert told.told("us-east", "region", "report", "--out", str(bundles["us-east"]))["region"] == "us-east"
        assert told.told("eu-west", "region", "report", "--out", str(bundles["eu-west"]))["counts"]["leaves"] > 1
        wrong = told.cpctl(
            told.fleet.regions["eu-west"], "region", "report", "--region", "us-east", "--out", str(tmp_path / "no.tar")
        )
        assert wrong.returncode == 5
        denied = told.cpctl(told.fleet.regions["eu-west"], "region", "checkpoint", role="agent")
        assert denied.returncode == 3
        trust = told.fleet.trust()
    code, claims = verified(bundles["eu-west"], trust, "--peer-bundle", str(bundles["us-east"]), "--seed", "s")
    assert code == 0, claims
    unchecked = {name for name, status in claims.items() if status != "PASS"}
    assert unchecked <= {"IDENTITY", "RANGE"}, claims
    assert verified(bundles["eu-west"], trust)[1]["MATCHED us-east"] == "NOT CHECKED"
    content = bundles["eu-west"].read_bytes()
    assert b"secret" not in content
    spoiled = tmp_path / "spoiled.tar"
    spoiled.write_bytes(content.replace(b'"reach":"global"', b'"reach":"glopal"', 1))
    code, claims = verified(spoiled, trust)
    assert (code, claims["FILES"]) == (1, "FAIL")
