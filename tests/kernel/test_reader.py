"""What a reader sees of the past, and how little it looks at for that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import Compacted, NotFound, Refused
from controlplane.kernel import keys
from controlplane.kernel.transaction import Kind, Reader, scope_of
from controlplane.v1.records_pb2 import Partition, Reach, Workflow
from controlplane.v1.state_pb2 import Range, Write
from tests.kernel.material import apply, seeded, txn
from tests.node.harness import Scanned

THING = Kind("thing", Workflow, history_kept=None)
PARTITION = Partition(id="eu.state", home="eu", epoch=1, reach=Reach.HOME_ONLY)
SCOPE = scope_of(PARTITION)
KEY = keys.within(SCOPE, "thing", "a")
STEPS = st.lists(
    st.tuples(st.just("put"), st.integers(0, 3))
    | st.tuples(st.just("delete"))
    | st.tuples(st.just("trim"), st.integers(0, 12))
    | st.tuples(st.just("other")),
    max_size=12,
)


def written(steps: list[tuple[object, ...]]) -> tuple[Scanned, int]:
    """A store with a record that was written, deleted and trimmed; and its revision."""
    store = Scanned()
    seeded(store)
    for n, (step, *more) in enumerate(steps, 1):
        if step == "put":
            value = Workflow(state=b"%d" % n).SerializeToString()
            apply(store, txn(Write(key=KEY, value=value, history=True, after_version=more[0]), scope=SCOPE))
        elif step == "delete":
            apply(store, txn(Write(key=KEY, history=True), scope=SCOPE))
        elif step == "trim":
            apply(store, txn(trims=[Range(start=keys.HISTORY + KEY, end=keys.history(KEY, int(str(more[0])) + 1))]))
        else:
            apply(store, txn())
    return store, len(steps)


def walked(reader: Reader, revision: int) -> tuple[object, ...]:
    """What `Reader.at` says, by the whole history: from the newest version down to the last deletion."""
    oldest = None
    for version in reader.history(THING, "a"):
        if version is None:
            break
        if version.revision <= revision:
            return ("there", version)
        oldest = version
    return ("compacted", oldest.revision) if oldest is not None and oldest.version > 1 else ("not found",)


def told(reader: Reader, revision: int) -> tuple[object, ...]:
    try:
        return ("there", reader.at(THING, "a", revision))
    except Compacted as error:
        return ("compacted", int(error.details["oldest"]))
    except NotFound:
        return ("not found",)


@given(STEPS)
def test_a_record_stands_as_its_whole_history_says(steps: list[tuple[object, ...]]) -> None:
    store, revision = written(steps)
    reader = Reader(store, PARTITION, revision)
    for at in range(revision + 1):
        assert told(reader, at) == walked(reader, at)
    with pytest.raises(Refused):
        reader.at(THING, "a", revision + 1)


@pytest.mark.parametrize("trimmed", [0, 100])
def test_looking_far_back_takes_no_more_rows_than_looking_at_now(trimmed: int) -> None:
    store, revision = written([("put", 0)] * 300 + [("trim", trimmed)])
    reader = Reader(store, PARTITION, revision)
    for at in (1, 50, 100, 101, 200, 300):
        store.rows = 0
        told(reader, at)
        assert store.rows <= 2
