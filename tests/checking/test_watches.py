from __future__ import annotations

from random import Random

import pytest

from controlplane.checking.watches import Change, Committed, Kind, Message, Session, check, committed, state_at

CHANGES = [
    Change("flag/a", 1, "1"),
    Change("flag/a", 3, "3"),
    Change("flag/b", 3, "3"),
    Change("flag/c", 4, "4"),
    Change("flag/b", 6, None),
    Change("flag/a", 9, "9"),
]
TRUTH = committed(CHANGES, up_to=10)


def change(revision: int) -> Message:
    return Message(Kind.CHANGES, revision, TRUTH.transactions[revision])


def started(revision: int) -> Message:
    return Message(Kind.STARTED, revision)


def progress(revision: int) -> Message:
    return Message(Kind.PROGRESS, revision)


def listing(revision: int, *changes: Change) -> list[Message]:
    parts = [Message(Kind.SNAPSHOT, revision, (one,)) for one in changes]
    return [started(revision), *parts, Message(Kind.SYNCED, revision)]


def found(*sessions: Session, truth: Committed = TRUTH, reached: int = 0) -> list[str]:
    return [finding.promise for finding in check(sessions, truth, reached=reached)]


WHOLE = Session([started(0), change(1), progress(2), change(3), change(4), progress(5), change(6), change(9)], after=0)
AS_OF_4 = [CHANGES[1], CHANGES[2], CHANGES[3]]


def test_what_is_in_order() -> None:
    assert found(WHOLE, reached=9) == []
    assert found(Session(WHOLE.messages[:3], 0), Session([started(1), *WHOLE.messages[3:]], 1), reached=9) == []
    assert found(Session([*listing(4, *AS_OF_4), change(6), progress(8)], listing=True), reached=8) == []
    # From now: nothing is owed from before.
    assert found(Session([started(5), change(6)])) == []
    # Messages beyond what is known to have been committed are not compared.
    assert found(Session([started(9), Message(Kind.CHANGES, 11, (Change("flag/a", 11, "x"),))], after=9)) == []


@pytest.mark.parametrize(
    ("messages", "promise"),
    [
        ([started(0), change(1), change(4)], "WATCH_GAP"),
        ([started(0), change(3)], "WATCH_GAP"),
        ([started(0), change(1), change(1)], "WATCH_ORDER"),
        ([started(0), change(1), change(3), change(1)], "WATCH_ORDER"),
        ([started(0), progress(2), change(3)], "WATCH_BOOKMARK"),
        ([started(0), change(1), progress(8), change(9)], "WATCH_BOOKMARK"),
        ([started(0), change(1), change(3), progress(2)], "WATCH_BOOKMARK"),
        ([started(0), change(1), Message(Kind.CHANGES, 3, (CHANGES[1],))], "WATCH_ATOMIC"),
        ([started(0), change(1), Message(Kind.CHANGES, 3, tuple(CHANGES[:3]))], "WATCH_ATOMIC"),
        ([started(0), Message(Kind.CHANGES, 1, (Change("flag/a", 1, "2"),))], "WATCH_ATOMIC"),
        ([started(0), change(1), Message(Kind.CHANGES, 2, (Change("flag/a", 2, "2"),))], "WATCH_PHANTOM"),
        ([started(3), change(4)], "WATCH_RESUME"),
        ([change(1)], "WATCH_RESUME"),
        ([started(0), change(1), started(1)], "WATCH_RESUME"),
        ([started(0), Message(Kind.SYNCED, 0)], "WATCH_LISTING"),
    ],
)
def test_what_is_not(messages: list[Message], promise: str) -> None:
    assert promise in found(Session(messages, after=0))


def test_a_watcher_that_resumes_is_told_what_it_missed() -> None:
    first = Session([started(0), change(1)], after=0)
    assert found(first, Session([started(1), change(4)], after=1)) == ["WATCH_GAP"]
    assert found(first, Session([started(3), change(4)], after=1)) == ["WATCH_RESUME", "WATCH_GAP"]


def test_a_watcher_that_stays_behind_is_found() -> None:
    assert found(Session([started(0), change(1)], after=0), reached=9) == ["WATCH_BEHIND"]


@pytest.mark.parametrize(
    "listed",
    [
        AS_OF_4[:2],
        [*AS_OF_4, AS_OF_4[0]],
        [CHANGES[0], *AS_OF_4[1:]],
        [*AS_OF_4, Change("flag/z", 2, "z")],
        [*AS_OF_4[:2], AS_OF_4[2]._replace(value="x")],
    ],
)
def test_a_listing_is_one_moment(listed: list[Change]) -> None:
    assert "WATCH_LISTING" in found(Session(listing(4, *listed), listing=True))


def test_what_was_deleted_is_not_listed() -> None:
    assert found(Session(listing(6, CHANGES[1], CHANGES[3]), listing=True)) == []
    assert found(Session(listing(6, *AS_OF_4), listing=True)) == ["WATCH_LISTING"]


def test_what_is_older_than_what_is_known_may_be_listed() -> None:
    known = committed(CHANGES[3:], after=3, up_to=10)
    assert found(Session(listing(4, *AS_OF_4), listing=True), truth=known) == []
    assert found(Session(listing(4, *AS_OF_4, Change("flag/z", 4, "z")), listing=True), truth=known) == [
        "WATCH_LISTING"
    ]


def test_every_message_counts() -> None:
    """Leaving out, repeating or exchanging any one message of changes in a long watch is found."""
    random = Random(1)
    revisions = sorted(random.sample(range(1, 400), 60))
    truth = committed((Change(f"k{random.randrange(9)}", at, f"v{at}") for at in revisions), up_to=400)
    messages = [Message(Kind.CHANGES, at, truth.transactions[at]) for at in revisions]
    assert check([Session([started(0), *messages, progress(400)], after=0)], truth) == []
    for number in range(len(messages)):
        without = messages[:number] + messages[number + 1 :]
        twice = messages[: number + 1] + messages[number:]
        turned = [*without[: number - 1], messages[number], *without[number - 1 :]] if number else twice
        for wrong in (without, twice, turned):
            assert check([Session([started(0), *wrong, progress(400)], after=0)], truth), number


def test_the_state_at_a_revision() -> None:
    assert state_at(TRUTH, 3) == {"flag/a": CHANGES[1], "flag/b": CHANGES[2]}
    assert state_at(TRUTH, 6)["flag/b"].value is None
