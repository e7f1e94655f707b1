"""`python -m chaos check`: what it prints, draws and returns."""

from __future__ import annotations

from pathlib import Path
from random import Random

from click.testing import CliRunner, Result

from chaos.checks import check_command
from chaos.sample_histories import Load, sample
from controlplane.checking import histories
from controlplane.checking.histories import Event, Phase


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(check_command, [str(argument) for argument in arguments])


def written(path: Path, *, wrong: bool = False) -> Path:
    events = sample(Random(7), "register", Load(keys=2, per_key=40))
    if wrong:
        end = events[-1].at_ns
        events.append(Event(end + 1, 99, Phase.INVOKE, "register-1", "read"))
        events.append(Event(end + 2, 99, Phase.OK, "register-1", "read"))
    histories.write(path, events)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    done = invoke(written(tmp_path / "good.jsonl"))
    assert done.exit_code == 0, done.output
    assert "LINEARIZABLE" in done.output
    assert list(tmp_path.iterdir()) == [tmp_path / "good.jsonl"]


def test_a_wrong_file_is_drawn(tmp_path: Path) -> None:
    done = invoke(written(tmp_path / "bad.jsonl", wrong=True))
    assert done.exit_code == 1
    assert "NOT LINEARIZABLE" in done.output
    assert "process 99's read() -> None fits nowhere" in done.output
    assert (tmp_path / "bad-0.svg").read_text(encoding="utf-8").startswith("<svg")


def test_undecided_is_red(tmp_path: Path) -> None:
    done = invoke(written(tmp_path / "good.jsonl"), "--steps", 10)
    assert done.exit_code == 1
    assert "UNDECIDED" in done.output


def test_what_is_no_history(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    assert "line 1: an event is an object" in invoke(path).output
    other = invoke(written(tmp_path / "good.jsonl"), "--model", "lease")
    assert other.exit_code == 1
    assert "is no history of a lease" in other.output
    assert invoke().exit_code == 2


def test_the_checker_checks_itself() -> None:
    done = invoke("--self", "--operations", 1000, "--keys", 10, "--spoiled", 10)
    assert done.exit_code == 0, done.output
    assert "operations of 10 processes on each of 10 keys: linearizable in" in done.output
    assert done.output.count("0 judged wrongly") == 4
