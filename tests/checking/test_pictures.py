from __future__ import annotations

from random import Random
from xml.etree import ElementTree as Xml

from chaos.sample_histories import Load, sample, spoil
from controlplane.checking import histories
from controlplane.checking.histories import NEVER, Operation
from controlplane.checking.linearizability import Failure, check
from controlplane.checking.models import Register
from controlplane.checking.pictures import Mark, Span, timeline, window

SVG = "{http://www.w3.org/2000/svg}"
RED = "#ef5350"


def failure() -> Failure:
    random = Random(1)
    bad = spoil(random, "register", histories.pair(sample(random, "register", Load(per_key=100))).operations)
    assert bad is not None
    return check(bad.operations, Register()).failures[0]


def bars(picture: Xml.Element) -> list[Xml.Element]:
    return [box for box in picture.iter(f"{SVG}rect") if box.get("rx")]


def hint(element: Xml.Element) -> str:
    return element.findtext(f"{SVG}title") or ""


def test_a_window_shows_every_operation_and_the_stuck_one_in_red() -> None:
    failed = failure()
    picture = Xml.fromstring(window(failed))
    assert len(bars(picture)) == len(failed.window)
    (red,) = [bar for bar in bars(picture) if bar.get("fill") == RED]
    assert hint(red).startswith(f"{failed.stuck.kind}(")
    numbered = [hint(bar) for bar in bars(picture) if hint(bar).startswith("#")]
    assert len(numbered) == sum(operation in failed.placed for operation in failed.window)
    lanes = {operation.process for operation in failed.window}
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {f"process {process}" for process in lanes} <= set(texts)


def test_bars_stand_where_their_times_are() -> None:
    failed = failure()
    placed = sorted((float(bar.get("x", "")), hint(bar)) for bar in bars(Xml.fromstring(window(failed))))
    kinds = [text.removeprefix("#").split("(")[0].split(" ")[-1] for _, text in placed]
    assert kinds == [operation.kind for operation in failed.window]


def test_an_unknown_outcome_reaches_to_the_edge() -> None:
    history = [
        Operation(0, "k", "write", "a", None, 0, NEVER),
        Operation(1, "k", "read", None, (1, "a"), 1, 2),
        Operation(1, "k", "read", None, (1, "<b> & \x00"), 3, 4),
    ]
    picture = Xml.fromstring(window(check(history, Register()).failures[0]))
    (unknown,) = [bar for bar in bars(picture) if bar.get("stroke-dasharray")]
    assert float(unknown.get("x", "")) + float(unknown.get("width", "")) == 1080.0
    assert any("<b> &" in hint(bar) for bar in bars(picture))


def test_a_timeline_shows_all_that_it_was_given() -> None:
    picture = Xml.fromstring(
        timeline(
            "a <run>",
            20.0,
            faults=[Span(3, 5, "isolate-leader"), Span(9, 9, "kill")],
            lanes={"leader": [Span(0, 3, "n1 term 1"), Span(3.2, 20, "n2 term 2")]},
            rates={"writes/s": [(0, 100), (10, 50), (20, 0)]},
            marks=[Mark(3.1, "Unavailable"), Mark(25, "late", bad=False)],
        )
    )
    hints = [title.text for title in picture.iter(f"{SVG}title")]
    marks = ["Unavailable at 3.100 s", "late at 25.000 s"]
    assert hints == ["isolate-leader", "kill", "n1 term 1", "n2 term 2", *marks]
    (curve,) = picture.iter(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in (curve.get("points") or "").split()]
    assert [x for x, _ in points] == [110.0, 595.0, 1080.0]
    assert points[0][1] < points[1][1] < points[2][1]
    assert "a <run>" in [text.text for text in picture.iter(f"{SVG}text")]


def words_of(picture: str) -> list[tuple[float, float, str]]:
    """Where each text begins, and what it says; letters are as wide as the picture takes them to be."""
    found = []
    for text in Xml.fromstring(picture).iter(f"{SVG}text"):
        words = text.text or ""
        share = {"middle": 0.5, "end": 1.0}.get(text.get("text-anchor", ""), 0.0)
        found.append((float(text.get("x", "")) - share * 6.2 * len(words), float(text.get("y", "")), words))
    return found


def test_no_text_lies_on_another_or_over_the_edge_however_much_there_is() -> None:
    faults = [
        Span(number * 0.7, number * 0.7 + 0.5, f"fault {number} of a name as long as this") for number in range(80)
    ]
    lanes = {"leader": [Span(number * 3.1, number * 3.1 + 3, f"n{number}, term {number}") for number in range(19)]}
    marks = [Mark(number * 0.5, "failed", bad=number % 2 == 0) for number in range(100)]
    for seconds in (0.0301, 8.215, 61.3, 3600.0):
        texts = words_of(timeline("busy", seconds, faults=faults, lanes=lanes, rates={"a/s": [(1, 9)]}, marks=marks))
        for x, y, words in texts:
            end = x + 6.2 * len(words)
            assert x >= 0, words
            assert end <= 1100, words
            overlaid = [other for at, row, other in texts if row == y and x < at < end]
            assert not overlaid, (words, overlaid)


def test_ticks_stand_at_round_times_and_signs_are_explained() -> None:
    texts = [
        words for _, _, words in words_of(timeline("run", 8.215, faults=[Span(1, 2, "cut")], marks=[Mark(1, "x")]))
    ]
    assert [words for words in texts if words.endswith(" s")] == [f"{number} s" for number in range(9)]
    assert {"a fault, until it is healed", "something failed"} <= set(texts)
    assert "all is well again" not in texts
    assert {"fits nowhere", "no place left"} <= {words for _, _, words in words_of(window(failure()))}


def test_nothing_to_show_is_a_picture_too() -> None:
    Xml.fromstring(timeline("", 0.0))
    Xml.fromstring(timeline("\x00\x1b￾", 1.0, rates={"none": [], "zero": [(0, 0)]}))
