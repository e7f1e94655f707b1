"""Runs against real processes: a short one is green, and every way in which one has to be red is red."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from chaos.__main__ import main
from chaos.real import callers
from chaos.real.callers import AnyNodeChannel, Repeats
from chaos.real.cluster import Cluster
from chaos.real.commands import matrix
from chaos.real.control import CONTROL, turned
from chaos.real.faults import NEMESES, Nemesis
from chaos.real.links import SHAPES
from chaos.real.recording import Book, Question, Worker
from chaos.real.report import Finding, Load, Report, Strike, keep, said, weigh
from chaos.real.running import Plan, Run, _while_all_run
from chaos.real.workloads import WORKLOADS, Workload
from chaos.real.workloads.cas import Cas
from chaos.real.workloads.election import Elections, Office, cut_short
from chaos.real.workloads.flags import Flags, Known, Looked, late
from chaos.real.workloads.kill import Kills, confirmed
from chaos.real.workloads.watch import Watches
from chaos.real.workloads.watch import _change as as_watched
from controlplane.checking.histories import NEVER, History, Operation
from controlplane.checking.invariants import Act, Tenure, kills
from controlplane.checking.watches import Kind, Message, Session
from controlplane.errors import ControlPlaneError, Denied, OutcomeUnknown, Refused, Unavailable
from controlplane.sdk import Fence
from controlplane.sdk import clock as clocks
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Workflow

NOWHERE: Any = SimpleNamespace(names=(), addresses=())
NOBODY: Any = SimpleNamespace()


def run(plan: Plan, folder: Path, **choices: Any) -> Run:
    running = Run(plan, folder, lambda what, seconds: None, **choices)
    asyncio.run(running.go())
    return running


@pytest.fixture(scope="module")
def green(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("green")
    return run(Plan("cas", "kill-leader", 4.0, seed=1), folder)


def test_a_run_under_a_killed_leader_is_green(green: Run) -> None:
    report = green.report
    assert report.findings == []
    assert report.verdict == "passed"
    assert [strike.observed for strike in report.strikes] == [True] * len(report.strikes) != []
    assert report.load.calm_rate >= report.load.floor
    assert report.load.operations > 100
    assert len({led.leader for led in report.leaders}) > 1
    assert "linearizable" in report.checked["linearizability"]
    assert "rows equal" in report.checked["replicas"]


def test_a_failover_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "failover.json"
    done = CliRunner().invoke(main, ["failover", "--kills", "1", "--way", "survivor", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text())["ways"]["survivor"]
    assert figures["n"] == 1
    assert 0 < figures["p50_ms"] == figures["max_ms"] == figures["values_ms"][0] < 15_000


# A run can fail -----------------------------------------------------------------------------------------------------


def judged(history: History, present: dict[str, list[str]]) -> list[str]:
    """What a fresh judge finds in a history."""
    workload = Cas(NOWHERE, 1)
    workload._present = present
    workload.judge(history)
    return [finding.kind for finding in workload.findings]


def changed(history: History, which: Callable[[Operation], bool], **fields: Any) -> History:
    """The history with its last such operation changed."""
    operations = list(history.operations)
    place = max(number for number, each in enumerate(operations) if which(each))
    operations[place] = operations[place]._replace(**fields)
    return History(tuple(operations), history.failures)


def test_the_judge_accepts_what_happened_and_refuses_what_did_not(green: Run) -> None:
    assert isinstance(green.workload, Cas)
    history, present = green.workload.book.recorder.history(), green.workload._present
    assert judged(history, present) == []

    stale = changed(history, lambda each: each.kind == "read" and each.result is not None, result=(1, "?"))
    assert "linearizability" in judged(stale, present)
    assert "STALE_READ" in judged(stale, present)

    swapped = max(
        (each for each in history.operations if each.kind == "cas" and each.result), key=lambda each: each.called
    )
    assert isinstance(swapped.argument, tuple)
    lost = {key: [value for value in values if value != swapped.argument[1]] for key, values in present.items()}
    assert judged(history, lost) == ["ACKNOWLEDGED_LOST"]

    failed = History(tuple(each for each in history.operations if each is not swapped), (swapped,))
    assert "FAILURE_APPLIED" in judged(failed, present)

    twice = {key: [*values, *values[:1]] for key, values in present.items()}
    assert "APPLIED_TWICE" in judged(history, twice)


def kinds(workload: Workload, *operations: Operation) -> set[str]:
    """What a judge finds in these operations and in what was noted beside them, apart from too little load."""
    workload.judge(History(operations, ()))
    return {finding.kind for finding in workload.findings} - {"load"}


def test_the_judge_of_elections() -> None:
    workload = Elections(NOWHERE, 1)
    workload._acts = [Act("r", "a", 10, 10, fence=9), Act("r", "b", 11, 11, fence=5)]
    workload._tenures = [Tenure("e", "1", 5, 100, 200), Tenure("e", "2", 9, 150, 300)]
    accepted = operation("act", 40, 50, ("a", 5), True)
    elected = operation("campaign", 20, 30, "b", ("b", 9))
    assert kinds(workload, elected, accepted) == {"FENCE_ORDER", "TWO_HOLDERS", "leases"}
    assert kinds(Elections(NOWHERE, 1), elected, accepted._replace(result=False)) == set()
    # That the resource stood elsewhere says nothing about the fence.
    assert kinds(Elections(NOWHERE, 1), elected, accepted._replace(result=None)) == set()


def committed(*fences: int) -> Elections:
    """A workload in whose event log writes of one resource stand that were asked for under these fences."""
    workload = Elections(NOWHERE, 1)
    workload._changes = []
    for number, revision in enumerate(fences, 1):
        worker = Worker(7, Random(number))
        fence = Fence(election="e", revision=revision)
        workload._asked[f"7/{number}"] = Office(worker, NOBODY, "e", b"holder", fence)
        meta = api.Meta(revision=100 + number)
        workflow = Workflow(state=b"7/%d" % number)
        workload._changes.append(api.Change(kind="workflow", name="guarded/e", meta=meta, workflow=workflow))
    return workload


def test_writes_in_the_event_log_never_go_with_decreasing_fences() -> None:
    assert kinds(committed(5, 5, 9)) == set()
    # Nobody was told of the last one, so nothing but the event log knows of it.
    assert kinds(committed(5, 9, 5)) == {"FENCE_ORDER"}
    unasked = committed(5, 9)
    del unasked._asked["7/1"]
    assert kinds(unasked) == {"PHANTOM"}


def test_the_judge_of_flags() -> None:
    writes = [operation("write", 10, 20, "x", 1), operation("write", 30, 40, "y", 2)]

    def found(revision: int, value: str) -> set[str]:
        workload = Flags(NOWHERE, 1)
        workload._by_revision = {("k", 7): Known(1, 7, "x"), ("k", 9): Known(2, 9, "y")}
        return kinds(workload, *writes, operation("evaluate", 50, 60, None, (("k", revision, value),)))

    assert found(9, "y") == set()
    assert found(7, "x") == {"linearizability"}
    assert found(0, "") == {"linearizability"}
    assert found(9, "x") == {"linearizability"}


def test_the_judge_of_kills() -> None:
    bound_ns = 1_000_000_000
    engaged = operation("engage", 100, 110, None, True)

    def found(at_ns: int, stopped: bool) -> set[str]:
        workload = Kills(NOWHERE, 1)
        workload._looks = [operation("look", at_ns, at_ns, None, stopped)]
        return kinds(workload, engaged)

    assert found(110 + bound_ns + 1, stopped=False) == {"ACT_AFTER_KILL"}
    assert found(110 + bound_ns, stopped=False) == set()
    assert found(110 + bound_ns + 1, stopped=True) == set()


def test_the_judge_of_watches() -> None:
    def change(revision: int, value: str) -> api.Change:
        meta = api.Meta(revision=revision, created=5, version=revision)
        return api.Change(kind="workflow", name="watched/k", meta=meta, workflow=Workflow(state=value.encode()))

    def found(*revisions: int, reached: int = 9) -> set[str]:
        workload = Watches(NOWHERE, 1)
        workload._events = [change(5, "a"), change(7, "b"), change(9, "c")]
        workload._end = reached
        told = {event.meta.revision: event for event in workload._events}
        messages = [Message(Kind.STARTED, 0)]
        messages += [Message(Kind.CHANGES, at, (as_watched(told[at]),)) for at in revisions]
        workload._watched = {"n1": [Session(messages, after=0)]}
        writes = [
            Operation(1, "watched/k", "write", value, number, number, number) for number, value in enumerate("abc", 1)
        ]
        return kinds(workload, *writes)

    assert found(5, 7, 9) == set()
    assert found(5, 9) == {"WATCH_GAP"}
    assert found(5, 7) == {"WATCH_BEHIND"}
    assert "WATCH_ORDER" in found(5, 7, 7, 9)


class Forgetful(Cas):
    """Believes that what it swapped last was written, although it never asked."""

    async def ask_for_everything(self) -> None:
        worker = self.worker(2000)
        key, value = self._keys.all[0], worker.unique()
        await self._read(worker, self.callers.sdk, key)
        version = self._seen[worker.process, key]

        async def never_sent() -> api.CompareAndSwapWorkflowReply:
            return api.CompareAndSwapWorkflowReply(version=version + 1)

        await self.book.ask(worker, Question(key, "cas", (version, value), writes=True), never_sent, _version, str)
        await super().ask_for_everything()


def _version(reply: api.CompareAndSwapWorkflowReply) -> int:
    return reply.version


class Idle:
    """A fault that says what it does, and does nothing."""

    name = "idle"

    async def inject(self, cluster: Cluster, random: Random) -> str:
        return "nothing"

    async def observed(self) -> bool:
        return False

    async def heal(self) -> None:
        pass


def test_a_lost_acknowledgement_and_a_fault_that_was_none_are_red(tmp_path: Path) -> None:
    folder = tmp_path / "red"
    idle = Nemesis("kill-leader", Idle, ("direct",))
    running = run(
        Plan("cas", "kill-leader", 2.0, seed=7),
        folder,
        workloads={"cas": Forgetful},
        nemeses={"kill-leader": idle},
    )
    report = running.report
    assert {"linearizability", "ACKNOWLEDGED_LOST", "fault"} <= {finding.kind for finding in report.findings}
    assert report.verdict == "FAILED"
    keep(report, folder, {"timeline.svg": "<svg/>"})
    kept = {each.name for each in folder.iterdir()}
    assert {"report.json", "timeline.svg", "history.jsonl", "region"} <= kept
    console = Console(record=True, width=200)
    console.print(said([report]))
    assert "python -m chaos run --workload cas --nemesis kill-leader --seconds 2 --seed 7" in console.export_text()


def whole(**fields: Any) -> Report:
    report = Report("cas", "kill-leader", 3, "direct", 20.0, 1, "again")
    report.load = Load(operations=1000, answered=1000, writes=500, calm_rate=100.0, floor=40.0)
    report.strikes = [Strike("kill-leader", 2.0, healed_s=3.0, served_s=4.0, observed=True)]
    return replace(report, **fields)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, None),
        ({"load": Load(operations=9, answered=9, writes=500, calm_rate=39.9, floor=40.0)}, "load"),
        ({"load": Load(answered=9, writes=500, unknown=26, calm_rate=50.0, floor=40.0)}, "unknown"),
        ({"strikes": []}, "fault"),
        ({"strikes": [Strike("kill-leader", 2.0, healed_s=3.0, served_s=4.0)]}, "fault"),
        ({"strikes": [Strike("kill-leader", 2.0, healed_s=3.0, observed=True)]}, "healing"),
    ],
)
def test_what_every_run_has_to_show(fields: dict[str, Any], kind: str | None) -> None:
    report = whole(**fields)
    weigh(report)
    assert [finding.kind for finding in report.findings] == ([kind] if kind else [])
    assert report.verdict == ("FAILED" if kind else "passed")


def test_what_was_skipped_never_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    folder = tmp_path / "skipped"
    asked = ["run", "--nemesis", "slow-disk", "--seconds", "2", "--folder", str(folder), "--json"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 77, done.output
    report = json.loads(done.stdout)
    assert report["verdict"] == "SKIPPED"
    assert "gcc" in report["skipped"]


def test_what_breaks_a_run_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "region").mkdir()
    report = run(Plan("cas", "none", 2.0, seed=1), tmp_path).report
    assert [finding.kind for finding in report.findings] == ["broken"]
    assert "FileExistsError" in (tmp_path / "broken.txt").read_text()


async def test_a_worker_that_breaks_ends_the_run_at_once() -> None:
    async def breaks() -> None:
        raise ValueError("a defect of the harness")

    with pytest.raises(ValueError, match="defect"):
        await _while_all_run(asyncio.sleep(60), [asyncio.create_task(breaks())])
    await _while_all_run(asyncio.sleep(0.01), [asyncio.create_task(asyncio.sleep(0))])


def test_the_matrix_holds_the_share_of_every_change() -> None:
    plans = matrix(1, 3)
    *plans, control = plans
    assert sum(plan.topology == "proxied" and plan.seconds == 20.0 for plan in plans) == 12
    assert {plan.nemesis for plan in plans if plan.topology == "namespaces"} == set(SHAPES)
    assert sum(NEMESES[plan.nemesis].shim for plan in plans) >= 3
    assert {plan.workload for plan in plans} == set(WORKLOADS)
    assert control.nemesis == CONTROL.name
    *longer, control = matrix(1, 3, 60.0)
    assert {plan.seconds for plan in longer} == {60.0}, "the night's share"
    assert control.seconds < 60.0


def test_a_control_run_is_red_when_it_finds_nothing() -> None:
    assert [finding.kind for finding in turned(whole()).findings] == ["control"]
    seen = whole(findings=[Finding("ACKNOWLEDGED_LOST", "this"), Finding("fault", "that")])
    assert turned(seen).verdict == "passed"
    assert turned(whole(findings=[Finding("broken", "the harness")])).verdict == "FAILED"
    assert turned(whole(skipped="no gcc")).verdict == "SKIPPED"


def test_a_nemesis_needs_its_topology() -> None:
    done = CliRunner().invoke(main, ["run", "--nemesis", "isolate-leader", "--topology", "direct"])
    assert done.exit_code == 2
    assert "proxied" in done.output


# What is noted, and what it is held against -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (Refused("no", reason="VERSION_MISMATCH"), "ok"),
        (OutcomeUnknown("?", reason="DEADLINE"), "info"),
        (Unavailable("no", reason="NO_LEADER"), "fail"),
        (Denied("no", reason="ROLE"), "fail"),
    ],
)
async def test_only_an_unknown_outcome_is_indefinite(error: ControlPlaneError, ends: str) -> None:
    book = Book()

    async def ask() -> int:
        raise error

    for writes in (True, False):
        await book.ask(
            Worker(1, Random(1)), Question("k", "cas", writes=writes), ask, lambda told: told, lambda _: None
        )
    ended = [event.phase.value for event in book.recorder.events[1::2]]
    assert ended == [ends, "fail" if ends == "info" else ends]
    assert bool(book.unexpected) is isinstance(error, Denied)
    assert book.unknown == (ends == "info")


class Scripted:
    """A node that answers as it was told to."""

    address = "scripted"

    def __init__(self, answers: Iterable[bytes | ControlPlaneError]) -> None:
        self._answers = iter(answers)

    async def call(self, method: str, request: bytes, deadline: float, *, writes: bool) -> bytes:
        answer = next(self._answers)
        if isinstance(answer, ControlPlaneError):
            raise answer
        return answer


async def asked(answers: Iterable[bytes | ControlPlaneError], monkeypatch: pytest.MonkeyPatch) -> Repeats:
    """Write through a node that answers like this, asking everything twice."""
    monkeypatch.setattr(callers, "REPEAT_SHARE", 1.0)
    repeats = Repeats()
    nodes: Any = [Scripted(answers)]
    await AnyNodeChannel(nodes, Random(1), repeats).call("CreateWorkflow", b"", clocks.now() + 0.3, writes=True)
    return repeats


def reply(version: int, node: str) -> bytes:
    header = api.ReplyHeader(revision=7, node=node)
    return api.CreateWorkflowReply(header=header, version=version).SerializeToString()


async def test_asking_again_has_to_be_answered_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = OutcomeUnknown("?", reason="DEADLINE")
    assert (await asked([unknown, reply(1, "n1"), reply(1, "n2")], monkeypatch)).same == 1
    assert (await asked([reply(1, "n1"), reply(2, "n1")], monkeypatch)).differing
    assert (await asked([reply(1, "n1"), Refused("there is one", reason="WORKFLOW_EXISTS")], monkeypatch)).differing
    # In doubt, a denial speaks of the last attempt alone.
    assert (await asked([unknown, Denied("no", reason="ROLE"), reply(1, "n1"), reply(1, "n1")], monkeypatch)).same == 1
    with pytest.raises(Denied):
        await asked([Denied("no", reason="ROLE")], monkeypatch)


async def test_a_write_in_doubt_ends_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(error: ControlPlaneError) -> Sequence[ControlPlaneError]:
        return [error] * 1000

    with pytest.raises(OutcomeUnknown):
        await asked(
            [OutcomeUnknown("?", reason="DEADLINE"), *always(Unavailable("no", reason="NO_LEADER"))], monkeypatch
        )
    with pytest.raises(Unavailable):
        await asked(always(Unavailable("no", reason="NO_LEADER")), monkeypatch)


def operation(kind: str, called: int, returned: int, argument: Any = None, result: Any = None) -> Operation:
    return Operation(1, "k", kind, argument, result, called, returned)


def test_a_kill_holds_until_a_release_that_can_have_come_after_it() -> None:
    engaged = operation("engage", 100, 110, result=True)

    def broken(*others: Operation) -> bool:
        return bool(kills(confirmed([engaged, *others], "engage", "release"), [Act("k", "a", 200, 200)], 50))

    assert broken()
    assert broken(operation("release", 10, 20))
    assert broken(operation("release", 210, 220))
    assert not broken(operation("release", 150, 160))
    # Both were under way at once: either may have been the last.
    assert not broken(operation("release", 90, 105))
    assert not broken(operation("release", 90, NEVER))


def test_nobody_is_elected_while_another_ones_time_is_not_over() -> None:
    mine, other = ("a", 5), ("b", 9)
    held = operation("campaign", 0, 10, "a", mine)
    renewed = operation("renew", 50, 60, mine, True)

    def elected(at: int) -> Operation:
        return operation("campaign", at - 5, at, "b", other)

    assert list(cut_short([held, elected(99)], 100))
    assert not list(cut_short([held, elected(101)], 100))
    assert list(cut_short([held, renewed, elected(149)], 100))
    assert not list(cut_short([held, renewed, operation("resign", 70, 80, mine, True), elected(90)], 100))
    # Being told who holds it is not being elected.
    assert not list(cut_short([held, operation("campaign", 20, 30, "b", mine)], 100))


def test_a_mirror_within_its_bound_knows_what_was_acknowledged_before() -> None:
    known = {("f", 3): Known(1, 3, "x"), ("f", 8): Known(2, 8, "y")}
    writes = [
        Operation(1, "f", "write", "x", 1, 0, 10),
        Operation(1, "f", "write", "y", 2, 20, 30),
    ]

    def stale(at_ns: int, revision: int) -> bool:
        return bool(list(late([Looked(at_ns, "f", revision)], writes, known, 100)))

    assert not stale(109, 0)
    assert stale(111, 0)
    assert not stale(129, 3)
    assert stale(131, 3)
    assert not stale(131, 8)


def test_plain_calls_reach_every_service() -> None:
    assert callers.path("GetWorkflow") == "/controlplane.v1.Agents/GetWorkflow"
    assert callers.path("SetFlag") == "/controlplane.v1.Operators/SetFlag"
