"""The record of a drill: a document that anyone can check without the region, and the same for people to read.

A file holds `{"record": ..., "signature": ...}`. What is signed are the canonical bytes of `record`: JSON with sorted
keys, no blanks, UTF-8, and no numbers but whole ones. The history lies beside it; the record names its SHA-256.

`verify` computes again what can be computed from the history, and says of each claim PASS or FAIL in words. What only
the runner could see (the claims with `computed` false) stands and falls with the signature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from controlplane.checking import histories
from controlplane.drills import abroad, evidence, scenarios
from controlplane.drills.abroad import Loss, Moved, Setting, Stops
from controlplane.drills.evidence import Claim, Measured, Seen, Wanted, Window
from controlplane.drills.nodes import Look
from controlplane.drills.runner import STRIKES, Course
from controlplane.v1 import drill_pb2

FORMAT: Final = 1
FILE_BYTES_MAX: Final = 16 << 20

Document = dict[str, Any]


class RecordInvalid(ValueError):
    """The file is not the record of a drill; the text says why."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the operator said of the drill."""

    reason: str
    partition: str
    owner: str = ""
    retest_days: int = 30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a verification."""

    name: str
    passed: bool
    says: str
    checked: bool = True
    """False: nobody could see it when the drill was run."""


def compose(course: Course, chosen: Chosen, history: bytes, history_name: str) -> Document:
    """The record of a drill that has ended, with `history` in the file `history_name` beside it."""
    plan, window = course.plan, course.window
    wanted = Wanted(
        rto_target_ms=plan.rto_target_ms,
        fencing=plan.fencing,
        kill_switch=plan.kill_switch,
        replaced=plan.replaced,
        rejoins=plan.rejoins,
        by_snapshot=plan.by_snapshot,
        unknown_percent_max=plan.unknown_percent_max,
        cut_ms=plan.cut_ms,
        isolated=plan.isolated,
        moved=bool(plan.to),
    )
    agents = [number for number, name in enumerate(course.processes) if name.startswith("register roaming")]
    measured = evidence.measure(course.recorder.events, window, agents)
    found = evidence.claims(measured, course.seen, wanted)
    several: Document = {}
    if course.setting is not None:
        seen_abroad = abroad.measure(course.recorder.events, course.setting)
        found += abroad.claims(seen_abroad, course.setting)
        several = {"setting": asdict(course.setting), "measured_in_regions": asdict(seen_abroad)}
    return {
        "format": FORMAT,
        "drill": {
            "id": course.drill,
            "name": plan.scenario,
            "title": plan.title,
            "set_version": scenarios.VERSION,
            "actor": course.actor,
            "reason": chosen.reason,
            "partition": chosen.partition,
            "keys": f"drill/{course.drill[:12]}/",
            "began_ms": course.began_ms,
            "seconds": course.end_ns // 1_000_000_000,
        },
        "region": _region(course.before),
        "steady_state": _state(course.before),
        "state_after": _state(course.after),
        "plan": {
            "blast_radius": list(plan.blast),
            "steps": [{"says": step.says, "faults": [each.says for each in step.strikes]} for step in plan.steps],
            "kill_switch": plan.kill_switch,
        },
        "timeline": [asdict(happening) for happening in course.timeline],
        "history": {
            "file": history_name,
            "sha256": hashlib.sha256(history).hexdigest(),
            "events": len(course.recorder.events),
            "processes": course.processes,
            "agents": agents,
        },
        "window": asdict(window),
        "wanted": asdict(wanted),
        "seen": asdict(course.seen),
        "measured": asdict(measured),
        "claims": [{**asdict(claim), "passed": claim.passed} for claim in found],
        "ended_early": course.ended_early,
        "verdict": _verdict(course.ended_early, found),
        **several,
        "findings": _owned(course, chosen, _findings(course, found, measured)),
    }


def _verdict(ended_early: str, claims: Iterable[Claim]) -> str:
    return "failed" if ended_early or any(claim.passed is False for claim in claims) else "passed"


def canonical(record: Document) -> bytes:
    """The bytes that are signed."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sealed(record: Document, public_key: str, signature: str) -> bytes:
    """The file: the record and its signature (both texts in hexadecimal)."""
    seal = {"algorithm": "Ed25519", "public_key": public_key, "value": signature}
    return json.dumps({"record": record, "signature": seal}, indent=1, ensure_ascii=False).encode() + b"\n"


def opened(content: bytes) -> tuple[Document, Document]:
    """The record and the signature in a file. Raises `RecordInvalid`."""
    try:
        document = json.loads(
            content, parse_float=_no_fraction, parse_constant=_no_fraction, object_pairs_hook=_said_once
        )
        record, signature = document["record"], document["signature"]
        if record["format"] != FORMAT:
            raise RecordInvalid(f"format {record['format']} is not known here; use the version that wrote it")
        if not isinstance(signature, dict):
            raise RecordInvalid("the signature is not an object")
        # What has no such bytes was never signed.
        canonical(record)
    except RecordInvalid:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordInvalid(f"not the record of a drill: {error!r}") from error
    return record, signature


def recheck(record: Document, folder: Path) -> list[Check]:
    """Compute again, from the history beside the record, everything that can be. Raises `RecordInvalid`."""
    try:
        return list(_checks(record, folder))
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordInvalid(f"the record is not whole: {error!r}") from error


def _checks(record: Document, folder: Path) -> Iterable[Check]:
    told = record["history"]
    content = _history(folder / Path(told["file"]).name)
    if content is None:
        yield Check("history", False, f"{told['file']} is not beside the record, so nothing can be computed again")
        return
    genuine = hashlib.sha256(content).hexdigest() == told["sha256"]
    yield Check("history", genuine, "is the one that was recorded" if genuine else "is not the one that was recorded")
    try:
        events = histories.read(folder / Path(told["file"]).name)
        measured = evidence.measure(events, Window(**record["window"]), told["agents"])
    except (histories.HistoryInvalid, ValueError, IndexError, AssertionError) as error:
        yield Check("history", False, f"cannot be computed from: {error}")
        return
    yield from _times(record)
    yield from _numbers(record["measured"], measured)
    claims = evidence.claims(measured, Seen(**record["seen"]), Wanted(**record["wanted"]))
    if "setting" in record:
        setting = Setting(**record["setting"])
        seen_abroad = abroad.measure(events, setting)
        yield from _numbers(record["measured_in_regions"], seen_abroad)
        claims += abroad.claims(seen_abroad, setting)
    yield from _claims(record, claims)


def _times(record: Document) -> Iterable[Check]:
    """The window must be what the timeline says: a later begin would hide an outage."""
    faults = [each for each in record["timeline"] if each["what"] in STRIKES]
    begin = min((each["at_ns"] for each in faults), default=record["window"]["end_ns"])
    right = begin == record["window"]["begin_ns"]
    yield Check("window", right, "begins with the first fault" if right else "does not begin with the first fault")
    if "setting" in record:
        # A later cut or an earlier end would hide what crossed it; a later healing, how long it took to be heard of.
        told = record["setting"]
        last = max((each["at_ns"] for each in faults), default=0)
        ends = [each["until_ns"] for each in faults]
        healed, held = max(ends, default=0), told["held_ns"]
        right = (last, healed) == (told["cut_ns"], told["healed_ns"]) and held <= min(ends, default=held)
        yield Check("cut", right, f"lasts as long as its faults{'' if right else ', it is said, and does not'}")


def _numbers(told: Document, measured: Measured | Stops | Loss | Moved) -> Iterable[Check]:
    for name, actual in asdict(measured).items():
        same = name in told and told[name] == actual
        says = f"{actual}, as recorded" if same else f"{actual}, but {told.get(name, 'nothing')} is recorded"
        yield Check(f"measured {name}", same, says)


def _claims(record: Document, claims: list[Claim]) -> Iterable[Check]:
    told = {each["name"]: each for each in record["claims"]}
    for claim in claims:
        stated = told.pop(claim.name, None)
        same = stated == {**asdict(claim), "passed": claim.passed}
        how = "computed again" if claim.computed else "as the runner saw it"
        seen = claim.passed is not None
        says = f"{claim.says}, {how}" if seen else claim.says
        yield Check(
            claim.name, same and claim.passed is not False, says + ("" if same else "; recorded otherwise"), seen
        )
    for name in told:
        yield Check(name, False, "is claimed, but no such claim belongs to this drill")
    verdict = _verdict(record["ended_early"], claims)
    same, passed = record["verdict"] == verdict, verdict == "passed"
    early = f"; ended early: {record['ended_early']}" if record["ended_early"] else ""
    yield Check("verdict", same and passed, f"{record['verdict']}{early}" + ("" if same else ", which does not follow"))


def _history(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except (OSError, ValueError):  # The latter for a name that no file can have.
        return None


def _no_fraction(text: str) -> None:
    raise RecordInvalid(f"{text}: a record has whole numbers only")


def _said_once(pairs: list[tuple[str, Any]]) -> Document:
    """The signature would hold for the last of two, whatever people see in the first."""
    told = dict(pairs)
    if len(told) != len(pairs):
        raise RecordInvalid("a name is said twice")
    return told


# -- parts of a record


def _region(looks: Mapping[str, Look]) -> Document:
    status = next(look.status for look in looks.values() if look.status is not None)
    hashes = sorted({look.faults.config_hash for look in looks.values() if look.faults is not None})
    return {
        "fleet": status.region.fleet,
        "name": status.region.name,
        "jurisdiction": status.region.jurisdiction,
        "nodes": {name: look.address for name, look in looks.items()},
        "version": status.version,
        "config_hash": hashes[0] if len(hashes) == 1 else "different",
    }


def _state(looks: Mapping[str, Look]) -> list[Document]:
    return [_state_of(name, look) for name, look in looks.items()]


def _state_of(name: str, look: Look) -> Document:
    status, faults = look.status, look.faults
    return {
        "node": name,
        "answers": status is not None,
        "role": status.role if status else None,
        "leader": status.region.leader if status else None,
        "term": status.region.term if status else None,
        "revision": status.header.revision if status else None,
        "hash": status.hash if status else None,
        "commit": status.commit if status else None,
        "applied": status.applied if status else None,
        "standing": faults.standing if faults else None,
        "faults": [drill_pb2.FaultKind.Name(each.fault.kind) for each in faults.faults] if faults else None,
    }


def _findings(course: Course, claims: list[Claim], measured: Measured) -> Iterable[tuple[str, str]]:
    """What somebody has to look at: what failed, and what only could be better."""
    if course.ended_early:
        yield "failed", f"the drill ended early: {course.ended_early}"
    for claim in claims:
        if claim.passed is not True:
            yield ("failed" if claim.passed is False else "not checked"), claim.says
    for each in course.left:
        yield "failed", each
    if measured.agents_silence_ms > course.plan.rto_target_ms:
        yield (
            "note",
            f"clients that go where the SDK takes them had no write acknowledged for {measured.agents_silence_ms} ms, "
            f"the region for {measured.recovery_ms} ms",
        )


def _owned(course: Course, chosen: Chosen, findings: Iterable[tuple[str, str]]) -> list[Document]:
    began = datetime.fromtimestamp(course.began_ms / 1000, UTC)
    retest = (began + timedelta(days=chosen.retest_days)).date().isoformat()
    owner = chosen.owner or course.actor
    return [{"kind": kind, "says": says, "owner": owner, "retest_by": retest} for kind, says in findings]


# -- for people


def markdown(record: Document, checks: Iterable[Check] = ()) -> str:
    """The record as a page of Markdown."""
    drill, region = record["drill"], record["region"]
    began = datetime.fromtimestamp(drill["began_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lines = [
        f"# Drill {drill['name']}: {record['verdict'].upper()}",
        "",
        f"{drill['title']}.",
        "",
        *_table(
            ("what", "value"),
            [
                ("drill", drill["id"]),
                ("began", began),
                ("took", f"{drill['seconds']} s"),
                ("by", drill["actor"]),
                ("because", drill["reason"]),
                ("region", f"{region['fleet']} / {region['name']}, nodes {', '.join(region['nodes'])}"),
                ("version", region["version"]),
                ("configuration (SHA-256)", region["config_hash"]),
                ("ended early", record["ended_early"] or "no"),
                ("left behind", f"workflows {drill['keys']}*, as evidence"),
            ],
        ),
        "",
        "## Claims",
        "",
        *_table(
            ("claim", "wanted", "actual", "result", "computed from the history"), map(_claim_row, record["claims"])
        ),
        "",
        "## Measured",
        "",
        *_table(("what", "value"), _measured_rows(record)),
        "",
        "## Timeline",
        "",
        *_table(("ms", "what", "node", ""), map(_timeline_row, record["timeline"])),
        "",
        "## Steady state before, and after",
        "",
        *_states(record["steady_state"]),
        "",
        *_states(record["state_after"]),
        "",
        "## Findings",
        "",
        *(_table(("kind", "finding", "owner", "re-test by"), map(_finding_row, record["findings"])) or ["None."]),
        "",
    ]
    checked = [(check.name, result(check.passed if check.checked else None), check.says) for check in checks]
    return "\n".join([*lines, *(["## Verification", "", *_table(("check", "", ""), checked), ""] if checked else [])])


def _measured_rows(record: Document) -> Iterable[tuple[Any, ...]]:
    several = record.get("measured_in_regions", {})
    every = {**record["measured"], **several}
    return [
        (name.replace("_", " "), ", ".join(f"{of} {each}" for of, each in value.items()))
        if isinstance(value, dict)
        else (name.replace("_", " "), value)
        for name, value in every.items()
    ]


def _claim_row(claim: Document) -> tuple[Any, ...]:
    wanted = claim["target"] if claim["rule"] == "is" else f"{claim['rule']} {claim['target']}"
    said = result(claim["passed"])
    said = "**FAIL**" if said == "FAIL" else said
    return claim["name"].replace("_", " "), wanted, claim["actual"], said, "yes" if claim["computed"] else "no"


def result(passed: bool | None) -> str:
    """What became of a claim, in a word; None: nobody could see it."""
    return "NOT CHECKED" if passed is None else "PASS" if passed else "FAIL"


def _timeline_row(each: Document) -> tuple[Any, ...]:
    return each["at_ns"] // 1_000_000, each["what"], each["node"], each["says"]


def _finding_row(each: Document) -> tuple[Any, ...]:
    return each["kind"], each["says"], each["owner"], each["retest_by"]


def _states(states: list[Document]) -> list[str]:
    columns = ("node", "role", "term", "revision", "applied", "standing", "hash")
    return _table(columns, [tuple(state[column] for column in columns) for state in states])


def _table(heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    lines = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *lines] if lines else []


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
