"""`python -m chaos check`: judge a history file, or the checker itself."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from chaos.sample_histories import SUBJECTS, Load, sample, spoil
from controlplane.checking import histories, invariants, linearizability, pictures
from controlplane.checking.histories import HistoryInvalid
from controlplane.checking.linearizability import STEPS_MAX, Result
from controlplane.checking.models import MODELS

_PICTURES_MAX = 20
# Half of a spoiled history's operations may overlap; switches are spoiled where nobody's outcome is unknown.
_SPOILED = Load(per_key=80, processes=4)


@click.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--model", type=click.Choice(sorted(MODELS)), default="register", show_default=True)
@click.option("--steps", default=STEPS_MAX, show_default=True, help="Of the search, per key; then it is undecided.")
@click.option("--pictures", "folder", type=click.Path(path_type=Path, file_okay=False), help="Where windows are drawn.")
@click.option("--self", "itself", is_flag=True, help="Check the checker: its speed, good histories and spoiled ones.")
@click.option("--operations", default=50_000, show_default=True, help="For --self: operations of the timed history.")
@click.option("--keys", default=100, show_default=True, help="For --self: keys of the timed history.")
@click.option("--spoiled", default=400, show_default=True, help="For --self: spoiled histories per model.")
@click.option("--seed", default=1, show_default=True, help="For --self.")
def check_command(  # noqa: PLR0913 - one per option.
    *,
    file: Path | None,
    model: str,
    steps: int,
    folder: Path | None,
    itself: bool,
    operations: int,
    keys: int,
    spoiled: int,
    seed: int,
) -> None:
    """Check a history FILE against a model; draw what cannot be explained. Exit code 1 unless all of it can."""
    if itself == (file is not None):
        raise click.UsageError("give a FILE or --self")
    if file is not None:
        sys.exit(0 if _check_file(file, model, steps, folder or file.parent) else 1)
    sound = [_speed(operations, keys, seed), *(_sound(name, spoiled, seed) for name in SUBJECTS)]
    sys.exit(0 if all(sound) else 1)


def _check_file(file: Path, model: str, steps: int, folder: Path) -> bool:
    try:
        history = histories.pair(histories.read(file))
        result = linearizability.check(history.operations, MODELS[model](), steps_max=steps)
    except HistoryInvalid as error:
        raise click.ClickException(f"{file}: {error}") from error
    except ValueError as error:
        raise click.ClickException(f"{file} is no history of a {model}: {error}") from error
    stale = invariants.stale_reads(history) if model == "register" else []
    _report(result, history.unknown, len(stale))
    _draw(result, folder, file.stem)
    return result.ok and not stale


def _report(result: Result, unknown: int, stale: int) -> None:
    table = Table(title=result.verdict.value.upper(), title_style="green" if result.ok else "bold red")
    for column in ("operations", "keys", "unknown", "stale reads", "steps"):
        table.add_column(column, justify="right")
    table.add_row(*(f"{number:,}" for number in (result.operations, result.keys, unknown, stale, result.steps)))
    Console().print(table)
    for failure in result.failures[:_PICTURES_MAX]:
        print(failure)


def _draw(result: Result, folder: Path, stem: str) -> None:
    if result.failures:
        folder.mkdir(parents=True, exist_ok=True)
    for number, failure in enumerate(result.failures[:_PICTURES_MAX]):
        path = folder / f"{stem}-{number}.svg"
        path.write_text(pictures.window(failure), encoding="utf-8")
        print(f"drawn: {path}")


def _speed(operations: int, keys: int, seed: int) -> bool:
    load = Load(keys=keys, per_key=max(1, operations // keys))
    history = histories.pair(sample(Random(seed), "register", load))
    begin = time.process_time()
    result = linearizability.check(history.operations, MODELS["register"]())
    took = time.process_time() - begin
    asked = f"{result.operations:,} operations of {load.processes} processes on each of {result.keys} keys"
    print(
        f"{asked}: {result.verdict.value} in {took:.2f} s of CPU ({result.steps:,} steps, {history.unknown:,} unknown)"
    )
    return result.ok


def _sound(model: str, spoiled: int, seed: int) -> bool:
    """Whether good histories are accepted and spoiled ones refused; prints how many of which."""
    told: Counter[str] = Counter()
    wrong = 0
    console = Console(stderr=True)
    for number in track(
        range(spoiled), f"{model:>8}", console=console, transient=True, disable=not console.is_terminal
    ):
        random = Random(f"{seed}/{model}/{number}")
        load = _SPOILED._replace(unknown=0.0) if model == "switch" else _SPOILED
        good = histories.pair(sample(random, model, load)).operations
        bad = spoil(random, model, good)
        refused = bad is not None and not linearizability.check(bad.operations, MODELS[model]()).ok
        if not linearizability.check(good, MODELS[model]()).ok or (bad and not refused):
            wrong += 1
            print(f"{model} {number}: {'a good history refused' if not bad or refused else f'accepted: {bad.how}'}")
        told[bad.how if bad else "nothing to spoil"] += 1
    print(f"{model}: {spoiled} good histories, spoiled: {', '.join(f'{how} {n}' for how, n in sorted(told.items()))}")
    print(f"{model}: {wrong} judged wrongly")
    return wrong == 0
