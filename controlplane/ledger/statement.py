"""What a bundle says in words, as Markdown and as a page that needs no network: the statement first, then tables.

Neither is evidence. Both are written by the region, and say so; what the evidence shows is what `verify.py` prints.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

RECORDS_SHOWN_MAX = 1000
"""Records on the page; all of them are in records.jsonl."""

MOVES_SAID_MAX = 100
"""Steps of moves that the statement tells; all of them are in records.jsonl."""

Row = Sequence[Any]


class Section(NamedTuple):
    """A heading, paragraphs, and points below them."""

    heading: str
    paragraphs: Sequence[str]
    points: Sequence[str] = ()


class Table(NamedTuple):
    """Shown on the page alone."""

    heading: str
    columns: Sequence[str]
    rows: Iterable[Row]


@dataclass(slots=True)
class Summary:
    """What the records add up to, counted while they are written."""

    by_class: dict[str, int] = field(default_factory=dict)
    transfers: dict[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)
    """(class, peer, reach) → records of the ledger, and what was carried in all of them."""
    glass: dict[tuple[str, ...], int] = field(default_factory=dict)
    """(way, peer, role, reach) → break-glass reads; empty where a record was erased."""
    moves: list[str] = field(default_factory=list)
    """What became of homes of partitions, in words; at most `MOVES_SAID_MAX`."""
    restored: list[str] = field(default_factory=list)
    """Times of which the region forgot everything, in words; at most `MOVES_SAID_MAX`."""
    erased: int = 0
    shown: list[tuple[int, int, str, str]] = field(default_factory=list)


def sections(manifest: Mapping[str, Any], summary: Summary) -> list[Section]:
    """The statement."""
    asked, leaves = manifest["asked"], manifest["leaves"]
    total = leaves["to"] - leaves["from"]
    counts = ", ".join(f"{count} {name}" for name, count in sorted(summary.by_class.items())) or "none"
    erased = f" Of them {summary.erased} were erased and can no longer be opened." if summary.erased else ""
    return [
        Section(
            f"Residency report of {manifest['region']}, jurisdiction {manifest['jurisdiction']}",
            (
                f"Fleet {manifest['fleet']}, from {_time(asked['from_ms'])} to {_time(asked['to_ms'])}. The region's"
                f" ledger holds {total} leaves of that time and just around it ({leaves['from']} to"
                f" {leaves['to'] - 1}), with these audited records: {counts}.{erased}",
                "This text was written by the region it is about. Do not believe it: run verify.py, with keys that you"
                " were given by somebody else, and believe what that prints.",
            ),
        ),
        *_glass(manifest["region"], summary),
        *_moves(summary),
        *_restored(summary),
        Section(
            "What the evidence can prove",
            (),
            (
                "Which audited records the region's ledger holds for this time, that none of them was left out, added"
                " or changed since, and what each of them says: what left the region, by which door, to whom.",
                "That the ledger only ever grew, and that the regions that cosigned it were shown the same ledger.",
                "That nothing which the ledger records as having left was pinned to the region or to its jurisdiction,"
                " but for break-glass reads, which are told one by one.",
                "With the bundle of a peer: that the copies which one says it sent are those which the other says it"
                " received, and that break-glass reads which the peer names are named here.",
                "Which region is the home of a partition that moved, as far as these bundles know of the move: what"
                " is claimed under an epoch that is over does not pass.",
                "That each scan here says of its node that no foreign pinned records were found in the node's data"
                " folder. Nodes sign scans in their own names, with one shared key, that of the region.",
            ),
        ),
        Section(
            "What it cannot prove",
            (),
            (
                "Where the machines physically are. Jurisdictions are what the reviewer's trust file says they are.",
                "Copies made by hand: backups, disk images, screenshots, database files that somebody carried away.",
                "Calls outside of this system: what an agent, a tool or a model provider sent by itself.",
                "What callers of the region put into calls about partitions of other regions: such a call is handed to"
                " the partition's home as it is, with the name of who makes it, and no ledger has it.",
                "That all is told of what callers of other regions were answered: only the region that answers writes"
                " that down. A node that was killed had perhaps not handed over what it had counted last: answers of a"
                " second, denials of a minute, readings of metrics of ten. Nor is there, then, an ingress record of the"
                " copies that it received last; the home has them as sent, and not confirmed.",
                "That the nodes run the program they should. A node that was made to lie signs lies; what helps is that"
                " other regions, and the reviewer's copies of earlier checkpoints, hold it to what it said before.",
                "Who looked at a node's metrics: that somebody did from another machine is in the ledger, as an egress"
                " to (unidentified), for nobody has to say who they are. Metrics hold counts, and names of nodes and"
                " regions, but nothing of what records are called or say.",
                "When things happened, other than by the clock of the node that led the region. Times in the ledger"
                " never go back, so what followed a clock that was ahead has the time of then.",
                "What erased records said. That they existed, and of which class they were, stays visible.",
                "Who is meant by a scope that crosses borders. Such ids are opaque, but whoever knows all the names"
                " there are can guess which one an id stands for by trying them.",
                "What came after the last checkpoint; and of what came before the first leaf, more than that it was"
                " continued.",
            ),
        ),
    ]


def _glass(region: str, summary: Summary) -> list[Section]:
    """Said only where there was one: somebody was shown what is pinned, in an emergency."""
    if not summary.glass:
        return []
    points = []
    for (way, peer, role, reach), count in sorted(summary.glass.items()):
        times = "once" if count == 1 else f"{count} times"
        if way == "out":
            points.append(f"{times.capitalize()}, {role} of {peer} was shown {reach} data of {region}.")
        elif way == "in":
            points.append(f"{times.capitalize()}, {role} of {region} was shown {reach} data of {peer}.")
        else:
            points.append(f"{times.capitalize()}, and the record of it was erased or cannot be read.")
    return [
        Section(
            "Break-glass reads",
            (
                "Data that is pinned to its home was read from another region, in an emergency. The home's operators"
                " allow it by region and role, and the home wrote each read down before it answered. Who asked, and"
                " why, is in the record that it keeps; what stands here is a digest of both.",
            ),
            points,
        )
    ]


def _moves(summary: Summary) -> list[Section]:
    """Said only where a home moved, or was to."""
    if not summary.moves:
        return []
    more = summary.by_class["move"] - len(summary.moves)
    return [
        Section(
            "Partitions whose home moved",
            (
                "A partition has one home at a time, the region that may write it. It moved as is told here, in the"
                " order of the ledger. Of a forced move the old home was not asked: an operator attested that it was"
                " down, and what it had written after the revision named was given up, and is kept apart there.",
            ),
            [*summary.moves, *([f"And {more} more steps: they are in records.jsonl."] if more else [])],
        )
    ]


def _restored(summary: Summary) -> list[Section]:
    """Said only where the region forgot something."""
    if not summary.restored:
        return []
    return [
        Section(
            "Times that the region forgot",
            (
                "The region's disks were lost, and it began again from a backup. Of what it did after that backup, and"
                " of what passed between it and others, this ledger has no word. Peers may have one.",
            ),
            summary.restored,
        )
    ]


def restored(content: Mapping[str, Any]) -> str:
    """One time that the region began again, from its record's content."""
    since = content.get("after_ms")
    when = f" ({_time(since)})" if isinstance(since, int) and since < _TOLD_MS_MAX else ""
    after, revision = content.get("after"), content.get("revision")
    return f"What came after revision {after}{when} is forgotten, up to revision {revision}."


def move(content: Mapping[str, Any]) -> str:
    """One step of a move, from its record's content."""
    of = f"{content.get('partition')} ({content.get('reach')})"
    way = f"from {content.get('from')} to {content.get('to')}, as epoch {content.get('epoch')}"
    upto = f"what {content.get('from')} had written up to its revision {content.get('upto')}"
    phase, forced = content.get("phase"), content.get("forced") is True
    how = "forced" if forced else "planned"
    if phase == "sealed":
        return f"{of}: a move {way} was begun; since then {content.get('from')} writes nothing to it."
    if phase == "cancelled":
        return f"{of}: the move {way} was called off."
    if phase == "adopting":
        age = content.get("age_ms")
        stated = f" That copy was {age} ms old." if forced and isinstance(age, int) and age < _AGE_UNKNOWN_MS else ""
        return f"{of}: a {how} move {way} takes over {upto}.{stated}"
    if phase == "adopted":
        return f"{of}: the {how} move {way} came to its end, with {upto}."
    return f"{of}: it left {way}; what was written here after revision {content.get('upto')} is quarantined."


def markdown(told: Iterable[Section]) -> str:
    """The statement as Markdown."""
    lines: list[str] = []
    for number, section in enumerate(told):
        lines += [f"{'##' if number else '#'} {_one_line(section.heading)}", ""]
        for paragraph in section.paragraphs:
            lines += [_one_line(paragraph), ""]
        lines += [f"- {_one_line(point)}" for point in section.points]
        lines += [""] if section.points else []
    return "\n".join(lines)


def page(told: Iterable[Section], tables: Iterable[Table]) -> str:
    """The statement and tables as one HTML page without scripts, links or anything that is fetched."""
    parts = [_HEAD]
    for number, section in enumerate(told):
        level = 2 if number else 1
        parts.append(f"<h{level}>{html.escape(section.heading)}</h{level}>")
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.paragraphs]
        if section.points:
            parts.append("<ul>" + "".join(f"<li>{html.escape(point)}</li>" for point in section.points) + "</ul>")
    parts += [_table(table) for table in tables]
    return "\n".join([*parts, "</body>", "</html>", ""])


def tables(manifest: Mapping[str, Any], summary: Summary, notes: Mapping[str, bytes]) -> list[Table]:
    """What stands on the page below the statement; `notes` are the checkpoints and scans, by their file's name."""
    shown = len(summary.shown)
    total = sum(summary.by_class.values())
    partitions = [tuple(each[column] for column in _PARTITION) for each in manifest["partitions"]]
    transfers = [(*key, *totals) for key, totals in sorted(summary.transfers.items())]
    return [
        Table("Partitions", _PARTITION, partitions),
        Table("Audited records", ("class", "records"), sorted(summary.by_class.items())),
        Table("What left and what came in", ("class", "peer", "reach", "records", "items carried"), transfers),
        Table("Checkpoints and scans", ("file", "signed text"), [(name, _text(note)) for name, note in notes.items()]),
        Table(f"Records ({shown} of {total})", ("leaf", "record", "class", "content"), summary.shown),
    ]


_AGE_UNKNOWN_MS = (1 << 32) - 1
_TOLD_MS_MAX = 253_402_300_800_000
"""The year 10000, which has no date."""
_PARTITION = ("id", "home", "reach", "environment", "epoch")
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Residency report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { border: 1px solid #bbb; padding: .3rem .5rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
td { white-space: pre-wrap; }
</style>
</head>
<body>"""


def _table(table: Table) -> str:
    heads = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>" for row in table.rows
    )
    return f"<h2>{html.escape(table.heading)}</h2>\n<table>\n<tr>{heads}</tr>\n{rows}\n</table>"


def _text(note: bytes) -> str:
    return note.decode(errors="replace").rpartition("\n\n")[0]


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _one_line(text: str) -> str:
    return " ".join(text.split())
