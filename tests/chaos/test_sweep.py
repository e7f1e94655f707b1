"""The sweep of disk faults: a sample of it, and that it can see what it looks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from chaos.real import Unsupported, sweep
from chaos.real.disks import drop_unsynced
from chaos.real.shim import Orders
from chaos.real.sweep import KINDS, Sweep, Victim, wrong_with
from chaos.real.sweep_victim import TUNING, key, steps
from controlplane.errors import Fatal
from controlplane.kernel.store import Batch
from controlplane.storage import RocksStore

SEED, STEPS = 3, 16


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    try:
        with Victim(tmp_path, SEED, STEPS) as running:
            yield running
    except Unsupported as why:
        pytest.skip(f"SKIPPED, disk faults were NOT tested here: {why}")


def test_a_fault_at_any_call_leaves_what_was_reported(tmp_path: Path, victim: Victim) -> None:
    del victim  # It tells whether this machine can have one at all.
    folder = tmp_path / "sweep"
    folder.mkdir()
    told: list[tuple[int, int]] = []
    found = Sweep(folder, seed=SEED, count=STEPS).run(11, lambda done, of: told.append((done, of)))
    assert not found.problems
    assert {kind for kind, _ in found.cases} == {kind.name for kind in KINDS}
    assert {ended for _, ended in found.cases} >= {"killed", "Fatal"}
    assert told[-1] == (found.cases.total(), found.cases.total())


def test_a_new_node_can_lose_its_power_at_every_step(
    tmp_path: Path, victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    del victim  # As above.
    monkeypatch.setattr(sweep, "KINDS", [kind for kind in KINDS if kind.name == "end at sync, power gone"])
    folder = tmp_path / "sweep"
    folder.mkdir()
    found = Sweep(folder, seed=SEED, count=1).run(1, lambda _, __: None)
    assert not found.problems
    assert found.cases.total() > 20


def test_a_run_without_a_fault_leaves_everything(tmp_path: Path, victim: Victim) -> None:
    folder = tmp_path / "run"
    assert victim.run(folder, Orders()) == (0, STEPS)
    drop_unsynced(folder, victim.shim.durable(), Random(1))
    assert wrong_with(folder, list(steps(SEED, STEPS)), STEPS) == ""


def test_a_disk_that_lies_is_noticed(tmp_path: Path, victim: Victim) -> None:
    folder = tmp_path / "run"
    assert victim.run(folder, Orders(sync_lies=1)) == (0, STEPS)
    drop_unsynced(folder, victim.shim.durable(), Random(1))
    with pytest.raises(Fatal):
        wrong_with(folder, list(steps(SEED, STEPS)), STEPS)


def test_a_journal_that_lost_a_step_is_noticed(tmp_path: Path, victim: Victim) -> None:
    plan = list(steps(SEED, STEPS + 8))
    victim.run(tmp_path / "run", Orders())
    assert "another state" in wrong_with(tmp_path / "run", plan, STEPS + 8)


@pytest.mark.parametrize("index", [1, 10**6])
def test_a_store_with_a_gap_or_too_much_is_noticed(tmp_path: Path, victim: Victim, index: int) -> None:
    folder = tmp_path / "run"
    victim.run(folder, Orders())
    store = RocksStore(folder / "store", TUNING)
    store.commit(Batch(deletes={key(1)}) if index == 1 else Batch(puts={key(index): b"x"}))
    store.close()
    assert "the store has applied" in wrong_with(folder, list(steps(SEED, STEPS)), STEPS)
