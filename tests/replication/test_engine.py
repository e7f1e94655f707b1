"""The consensus core: pinned, sealed off, and equal to our own model of it on equal seeds."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pysyncobj
import pytest
from pysyncobj import syncobj

from chaos.schedule import make_schedule
from chaos.simulation import Simulation
from controlplane.replication import Role, engine
from controlplane.replication.engine import ModelCore, SyncObjCore, engine_problems, verify_engine
from controlplane.replication.tail import Entry, Op, Recovered, Tail

EMPTY = Recovered()
FOLDER = Path(pysyncobj.__file__).parent


class Core:
    """A core with everything it says and writes."""

    def __init__(self, make: Any, peers: tuple[str, ...] = ("b", "c"), recovered: Recovered = EMPTY) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.ops: list[Op] = []
        self.tail = Tail(recovered, lambda _, op: self.ops.append(op))
        self.core = make("a", peers, self.tail, self, 0.6, 1000.0)

    def role_changed(self, role: Role) -> None:
        self.said.append(("role", role))

    def campaigned(self) -> None:
        self.said.append(("campaigned", self.tail.term))

    def vote_given(self, peer: str, term: int) -> None:
        self.said.append(("vote", peer, term))

    def proposed(self, number: int, index: int, term: int) -> None:
        self.said.append(("proposed", number, index, term))

    def refused(self, number: int) -> None:
        self.said.append(("refused", number))


def lead(core: Core) -> None:
    core.core.campaign(1000.0)
    core.core.vote_won("b", core.tail.term, 1000.0)
    assert core.said[-1] == ("role", Role.LEADER)


def test_the_installed_engine_is_the_pinned_one() -> None:
    verify_engine()
    assert engine_problems(FOLDER) == []
    loaded = {Path(m.__file__ or "").name for n, m in sys.modules.items() if n.split(".")[0] == "pysyncobj"}
    assert loaded <= set(engine.ENGINE_SHA256), "everything that is executed is pinned"


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    for name in engine.ENGINE_SHA256:
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    with (tmp_path / "syncobj.py").open("ab") as changed:
        changed.write(b"\n")
    (tmp_path / "node.py").unlink()
    problems = engine_problems(tmp_path)
    assert [
        str(tmp_path / "node.py") in problem or str(tmp_path / "syncobj.py") in problem for problem in problems
    ] == [
        True,
        True,
    ]


@pytest.mark.parametrize("make", [SyncObjCore, ModelCore])
def test_b11_b17_b19_a_core_owns_no_socket_thread_file_or_fork(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the core reached for the outside")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(threading.Thread, "start", forbidden)
    monkeypatch.setattr(os, "fork", forbidden)
    monkeypatch.setattr(os, "pipe", forbidden)
    core = Core(make)
    lead(core)
    for k in range(50):
        core.core.propose(k, b"x")
        core.core.tick(1000.0 + k / 100)
    assert core.tail.last_index == 51


class Bomb:
    """Leaves a trace when it is unpickled."""

    went_off = False

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return (go_off, ())


def go_off() -> None:
    Bomb.went_off = True


@pytest.fixture
def unsealed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plant the defect: what the core reads back is the payload itself."""
    monkeypatch.setattr(
        engine._SyncObjJournal,
        "_at",
        lambda self, k: (
            (self._tail.entry(self._tail.boundary_index + k).payload if k else b"\x01") or b"\x01",
            self._tail.boundary_index + k,
            self._tail.term_at(self._tail.boundary_index + k),
        ),
    )
    yield
    Bomb.went_off = False


def commit_a_bomb(kind: bytes) -> Core:
    core = Core(SyncObjCore)
    lead(core)
    core.core.propose(1, kind + pickle.dumps(Bomb()))
    core.core.tick(1000.0)
    core.core.matched("b", core.tail.last_index, 1000.0)
    core.core.tick(1000.0)
    assert core.tail.commit == core.tail.last_index
    return core


@pytest.mark.parametrize("kind", [b"\x00", b"\x02", b"\x03"], ids=["regular", "membership", "version"])
def test_b11_nothing_is_ever_unpickled(kind: bytes) -> None:
    commit_a_bomb(kind)
    assert not Bomb.went_off


def test_b11_without_the_seal_the_core_unpickles_what_a_client_sent(unsealed: None) -> None:
    with pytest.raises(KeyError):  # It goes off, and what it returned is then looked up as a command.
        commit_a_bomb(b"\x00")
    assert Bomb.went_off


def test_b20_a_membership_command_changes_nothing() -> None:
    core = Core(SyncObjCore)
    lead(core)
    core.core.propose(1, b"\x02" + pickle.dumps(["add", "d"]))
    core.core.tick(1000.0)
    core.core.matched("b", core.tail.last_index, 1000.0)
    core.core.tick(1000.0)
    assert {node.id for node in core.core._syncobj.otherNodes} == {"b", "c"}


def test_b19_the_core_runs_on_the_clock_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core(SyncObjCore)
    begun = time.monotonic()
    for _ in range(5):
        core.core.campaign(1000.0)
    assert core.tail.term == 5
    assert time.monotonic() - begun < 5
    lead(core)
    core.core.tick(1000.7)
    assert core.said[-1] == ("role", Role.FOLLOWER), "it steps down when its clock says so"
    # Without the rule its own timeouts decide: five campaigns at one moment are not five elections.
    monkeypatch.setattr(syncobj, "monotonicTime", time.monotonic)
    planted = Core.__new__(Core)
    planted.said, planted.ops = [], []
    planted.tail = Tail(Recovered(), lambda _, op: planted.ops.append(op))
    monkeypatch.setattr(SyncObjCore, "_enter", lambda self, now: setattr(syncobj, "monotonicTime", time.monotonic))
    planted.core = SyncObjCore("a", ("b", "c"), planted.tail, planted, 0.6, 1000.0)
    for _ in range(5):
        planted.core.campaign(1000.0)
    assert planted.tail.term < 5


@pytest.mark.parametrize("make", [SyncObjCore, ModelCore])
def test_a_core_votes_once_a_term_and_only_for_a_log_as_good_as_its_own(make: Any) -> None:
    recovered = Recovered(0, 0, (Entry(1, 1, b""), Entry(2, 2, b"")), 2, None, 0)
    core = Core(make, recovered=recovered)
    core.core.vote_asked("b", 3, 5, 1, 1000.0)
    assert core.said == []
    assert core.tail.term == 3
    core.core.vote_asked("b", 3, 2, 2, 1000.0)
    core.core.vote_asked("c", 3, 9, 2, 1000.0)
    assert core.said == [("vote", "b", 3)]
    core.core.burn_vote(4, 1000.0)
    core.core.vote_asked("c", 4, 9, 9, 1000.0)
    assert core.said == [("vote", "b", 3)]
    core.core.take_term(5, 1000.0)
    core.core.vote_asked("c", 5, 9, 9, 1000.0)
    assert core.said[-1] == ("vote", "c", 5)


@pytest.mark.parametrize("make", [SyncObjCore, ModelCore])
def test_a_core_commits_only_entries_of_its_own_term_by_counting(make: Any) -> None:
    recovered = Recovered(0, 0, tuple(Entry(k, 1, b"") for k in range(1, 4)), 1, None, 0)
    core = Core(make, recovered=recovered)
    lead(core)
    core.core.matched("b", 3, 1000.0)
    core.core.tick(1000.0)
    assert core.tail.commit == 0
    core.core.matched("b", 4, 1000.0)
    core.core.tick(1000.0)
    assert core.tail.commit == 4


def random_steps(random: Random, core: Core) -> list[tuple[Any, ...]]:
    """Drive a core with whatever a guard could tell it; the tail decides what is possible."""
    tail, now = core.tail, 1000.0
    for number in range(300):
        now += random.choice((0.0, 0.00123, 0.1007, 0.4019))  # Sums never meet the fallback time exactly.
        step = random.randrange(9)
        peer = random.choice("bc")
        if step == 0:
            core.core.campaign(now)
        elif step == 1:
            core.core.vote_won(peer, tail.term - random.choice((0, 0, 1)), now)
        elif step == 2:
            core.core.vote_asked(peer, tail.term + random.randint(-1, 2), random.randint(0, 30), tail.last_term, now)
        elif step == 3 and core.said[-1:] != [("role", Role.LEADER)]:
            follow(random, core, peer, now)
        elif step == 4:
            core.core.matched(peer, random.randint(tail.commit, tail.last_index), now)
        elif step == 5:
            core.core.propose(number, b"p%d" % number)
        elif step == 6:
            core.core.take_term(tail.term + random.choice((0, 0, 1)), now)
        elif step == 7:
            core.core.burn_vote(tail.term + random.choice((0, 1)), now)
        core.core.tick(now)
    return [*core.said, *core.ops]


def follow(random: Random, core: Core, peer: str, now: float) -> None:
    tail = core.tail
    term = tail.term + random.randint(0, 1)
    if any(said == ("role", Role.LEADER) for said in core.said[-5:]):
        term = tail.term + 1
    prev = random.randint(tail.commit, tail.last_index)
    added = [Entry(prev + 1 + k, term, b"f") for k in range(random.randint(0, 3))]
    commit = random.randint(0, prev + len(added))
    core.core.follow(peer, term, (prev, tail.term_at(prev)), commit, added, now)


@pytest.mark.parametrize("block", range(4))
def test_contract_both_cores_decide_alike_step_by_step(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        library = random_steps(Random(seed), Core(SyncObjCore))
        assert library == random_steps(Random(seed), Core(ModelCore)), f"seed {seed}"
        assert len(library) > 50


@pytest.mark.parametrize(("nodes", "profile"), [(3, "lan"), (3, "wan-wild"), (5, "wild")])
def test_contract_both_cores_give_the_same_simulated_run(nodes: int, profile: str) -> None:
    for seed in range(3):
        schedule = make_schedule(seed, nodes=nodes, seconds=45, profile=profile)
        library = Simulation(schedule).run()
        model = Simulation(schedule, core=ModelCore).run()
        assert library.violation is None
        assert (library.fingerprint, library.counts) == (model.fingerprint, model.counts), f"seed {seed}"


def test_a_run_does_not_depend_on_the_hash_seed() -> None:
    command = [
        sys.executable,
        "-m",
        "chaos",
        "simulate",
        "--schedules",
        "1",
        "--seed",
        "5",
        "--seconds",
        "40",
        "--trace",
    ]
    outputs = {
        subprocess.run(
            command, env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True, check=True, timeout=50
        ).stdout.splitlines()[-1]
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().startswith("fingerprint ")
