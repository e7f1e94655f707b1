"""A tier runs its parts one after the other and tells what passed from what did not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from chaos import tiers
from chaos.__main__ import main
from chaos.tiers import TIERS, Part


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: Sequence[Part]) -> tuple[int, list[str], str]:
    """Exit code, verdicts and output of a tier of these parts."""
    monkeypatch.setattr(tiers, "TIERS", {"commit": parts})
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


@pytest.mark.parametrize("name", TIERS)
def test_every_part_names_a_command_that_takes_its_options(name: str) -> None:
    for part in TIERS[name]:
        command, *arguments = part.argv(1, 2)[3:]
        main.commands[command].make_context(command, arguments)
