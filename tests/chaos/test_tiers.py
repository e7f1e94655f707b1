"""A tier runs its parts one after the other and tells what passed from what did not."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from chaos import tiers
from chaos.__main__ import main
from chaos.tiers import TIERS, Part, Running, Tier


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: Sequence[Part]) -> tuple[int, list[str], str]:
    """Exit code, verdicts and output of a tier of these parts."""
    monkeypatch.setattr(tiers, "TIERS", {"commit": Tier(counted=parts[:1], real=parts[1:])})
    monkeypatch.setattr(tiers, "SUMMARY", tmp_path / "summary.json")
    result = CliRunner().invoke(main, ["tier", "commit", "--seed", "7"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    return result.exit_code, [part["verdict"] for part in summary["parts"]], result.output


def test_every_part_runs_and_one_failure_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = Part("good", "simulate --schedules 1 --seconds 1 --profile calm --seed {seed}", 60)
    bad = Part("bad", "check no-such-file-{seed}", 60)
    assert run(monkeypatch, tmp_path, [good])[:2] == (0, ["PASS"])
    code, verdicts, output = run(monkeypatch, tmp_path, [bad, good])
    assert (code, verdicts) == (1, ["FAIL", "PASS"])
    assert "check no-such-file-7" in output, "what failed can be repeated"


def test_a_part_that_hangs_is_ended_and_is_red(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endless = Part("endless", "simulate --schedules 100000 --seed {seed}", 2)
    assert run(monkeypatch, tmp_path, [endless])[:2] == (1, ["HUNG"])


def test_what_cannot_be_had_here_is_skipped_and_not_passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Part, "argv", lambda *_: ["false", "-m", "chaos"])
    monkeypatch.setattr(tiers, "_VERDICTS", {1: "SKIPPED"})
    assert run(monkeypatch, tmp_path, [Part("nothing", "", 60)])[:2] == (0, ["SKIPPED"])


_MEETING = """
import os, pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.write_text(str(os.nice(0)))
deadline = time.monotonic() + 50
while not other.exists():
    assert time.monotonic() < deadline, "nobody came"
    time.sleep(0.01)
print("met", other.name)
"""


def test_what_is_counted_runs_beside_what_is_real_and_gives_way_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def argv(part: Part, *_: int) -> list[str]:
        other = {"counted": "real", "real": "counted"}[part.name]
        return [sys.executable, "-c", _MEETING, str(tmp_path / part.name), str(tmp_path / other)]

    monkeypatch.setattr(Part, "argv", argv)
    code, verdicts, output = run(monkeypatch, tmp_path, [Part("counted", "", 60), Part("real", "", 60)])
    assert (code, verdicts) == (0, ["PASS", "PASS"])
    assert "met real" in output, "what was kept is shown at the end"
    assert (tmp_path / "counted").read_text() == "19"
    assert int((tmp_path / "real").read_text()) == os.nice(0)


_WAITING = """
import os, pathlib, sys, time
fresh = pathlib.Path(sys.argv[1] + ".new")
fresh.write_text(str(os.getpid()))
fresh.rename(sys.argv[1])
time.sleep(600)
"""


async def test_an_interrupted_tier_ends_what_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiers, "SUMMARY", tmp_path / "summary.json")
    monkeypatch.setattr(Part, "argv", lambda self, *_: [sys.executable, "-c", _WAITING, str(tmp_path / self.name)])
    tier = Tier(counted=[Part("counted", "", 900)], real=[Part("real", "", 900)])
    running = asyncio.create_task(Running(1, 1, Console(quiet=True)).all_of(tier))
    pids = [await asyncio.to_thread(_told, tmp_path / part.name) for part in tier.parts]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 50)
    assert not [pid for pid in pids if _runs(pid)]


def _told(file: Path) -> str:
    deadline = time.monotonic() + 50
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return file.read_text()


def _runs(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_tier_of_a_change_is_what_the_plan_of_tests_asks_for() -> None:
    planned = CliRunner().invoke(main, ["tier", "commit", "--plan", "--seed", "3", "--jobs", "2"]).output
    for command in (
        "sweep --schedules 2000 --seed 3 --jobs 2",
        "simulate-region --schedules 300 --seed 3 --jobs 2",
        "fuzz --inputs 50000 --seed 3 --jobs 2",
        "plants --seed 3 --jobs 2",
        "run --matrix --seed 3",
        "disks --steps 40 --seed 3",
    ):
        assert f"python -m chaos {command}\n" in planned


def test_a_night_holds_hundreds_of_real_runs_of_a_minute() -> None:
    planned = CliRunner().invoke(main, ["tier", "nightly", "--plan", "--seed", "5"]).output.splitlines()
    seeds = [line.rpartition(" ")[2] for line in planned if "run --matrix --seconds 60 --seed" in line]
    assert seeds == [str(5 + number) for number in range(42)]
    assert any("--nemesis mixed --seconds 3600" in line for line in planned)
    assert any("--nemesis mixed --topology namespaces --seconds 3600" in line for line in planned)
    cores = len(os.sched_getaffinity(0))
    assert all(line.endswith(f"--jobs {cores}") for line in planned if "--jobs" in line), "every core, unless told"


@pytest.mark.parametrize("name", TIERS)
def test_every_part_names_a_command_that_takes_its_options(name: str) -> None:
    for part in TIERS[name].parts:
        command, *arguments = part.argv(1, 2)[3:]
        main.commands[command].make_context(command, arguments)
