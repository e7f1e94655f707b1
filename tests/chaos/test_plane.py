"""The simulated region: runs are clean, they repeat exactly, and every planted defect is caught."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from chaos.plane_clients import Client
from chaos.plane_command import Settings, region_of, run_one, simulate_region
from chaos.plane_command import simulate_region_command as command
from chaos.plane_plants import PLANTS
from controlplane import limits
from controlplane.checking.histories import read

# The first seed to try, and what may be found there: a change of the product moves what a seed finds, by a few.
CAUGHT = {
    "base": (4, ("LINEARIZABILITY", "LEASE_EARLY", "FENCE")),
    "barrier": (2, ("STALE_READ", "HISTORY")),
    "request-ids": (4, ("DOUBLE_EFFECT",)),
    "early-answer": (2, ("ACKNOWLEDGED_LOST",)),
    "revival": (1, ("LINEARIZABILITY",)),
    "watch-gap": (4, ("WATCH",)),
    "age": (2, ("AGE",)),
    "fence": (2, ("FENCE",)),
    "mute": (3, ("OVERDUE",)),
    "rot": (2, ("REPLICA_BYTES",)),
    "early-expiry": (2, ("LEASE_EARLY",)),
    "follower-clock": (5, ("LEASE_EARLY",)),
    "early-trim": (2, ("OUTCOME", "DOUBLE_EFFECT", "ANSWER_CHANGED")),
    "torn-batch": (3, ("REPLICA", "FATAL")),
    "mirror": (13, ("KILL_BOUND",)),
}
SEEDS_MAX = 12


@pytest.mark.parametrize(("nodes", "profile", "seed"), [(3, "lan", 2), (3, "wan-wild", 4), (5, "lan", 1)])
def test_no_violation(nodes: int, profile: str, seed: int) -> None:
    result, _ = run_one(Settings(nodes=nodes, profile=profile, seconds=45.0), seed)
    assert result.violation is None
    assert result.counts["operations checked"] > 100
    assert result.counts["ages checked"] > 20
    assert result.counts["watch changes"] > 20


def test_clients_that_still_have_to_ask_are_waited_for() -> None:
    # Everybody is cut off when clients look a last time. Once (wan-wild, 87) who was still looking was a violation.
    region = region_of(Settings(profile="calm"), 1)
    region.at(44.5, region.network.cut, region.network.links, 16.5)
    result = region.run()
    assert result.violation is None
    assert result.seconds > 60


class Stuck(Client):
    async def work(self) -> None:
        await asyncio.Event().wait()


def test_a_client_that_waits_for_ever_is_missed() -> None:
    region = region_of(Settings(profile="calm", seconds=20.0), 1)
    region._population.append(Stuck(region, 99, "prod"))
    result = region.run()
    assert (result.violation or "").startswith("NO_LIVENESS ['controlplane://fleet/prod/eu/agent/c99']")
    assert result.seconds < 80


def test_every_plant_has_a_seed() -> None:
    assert set(CAUGHT) == set(PLANTS)


@pytest.mark.parametrize("plant", list(CAUGHT))
def test_a_planted_defect_is_caught(plant: str) -> None:
    seed, names = CAUGHT[plant]
    report = simulate_region(range(seed, seed + SEEDS_MAX), Settings(plant=plant), stop_at=1)
    assert [result.violation for result in report.violations if (result.violation or "").startswith(names)]


FINGERPRINT = "from chaos.plane_command import *; print(region_of(Settings(seconds=31.0), 5).run().fingerprint)"


def test_a_run_does_not_depend_on_the_hash_seed() -> None:
    here = region_of(Settings(seconds=31.0), 5).run()
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(
        [sys.executable, "-c", FINGERPRINT], env=environment, capture_output=True, check=True, text=True
    )
    assert here.violation is None
    assert int(there.stdout) == here.fingerprint


def test_the_command_reports_a_violation_and_how_to_repeat_it(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    arguments = f"--plant age --seed 2 --schedules 1 --trace --history {history}".split()
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1
    assert "AGE n" in result.output
    again = "python -m chaos simulate-region --nodes 3 --seconds 60 --profile lan --plant age --seed 2 --schedules 1"
    assert again in result.output
    assert "fingerprint" in result.output
    assert read(history)


def test_the_report_is_json() -> None:
    arguments = ["--profile", "calm", "--seconds", "20", "--schedules", "1", "--json"]
    result = CliRunner().invoke(command, arguments)
    report = json.loads(result.output)
    assert result.exit_code == 0
    assert report["violations"] == []
    assert report["operations"] > 50


def test_a_report_counts_its_runs() -> None:
    report = simulate_region((1, 2), Settings(profile="calm", seconds=17.0))
    assert report.runs == 2
    assert report.seconds == 34.0


def test_retention_is_short_only_while_a_region_runs() -> None:
    kept = limits.EVENTS_KEPT
    region_of(Settings(profile="calm", seconds=17.0), 1).run()
    assert kept == limits.EVENTS_KEPT
