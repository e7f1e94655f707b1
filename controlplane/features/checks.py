"""What every feature asks of the content of a request, and how rows become views."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message

from controlplane import limits
from controlplane.errors import Invalid
from controlplane.kernel.transaction import Row
from controlplane.v1.api_pb2 import Meta

M = TypeVar("M", bound=Message)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def name(value: str, what: str) -> str:
    """A name: not empty, bounded, no control characters, no blanks around it. Raises `Invalid`."""
    if not value:
        raise Invalid(f"{what} is empty", reason="NAME_EMPTY", field=what)
    if len(value.encode()) > limits.NAME_BYTES_MAX:
        raise Invalid(f"{what} is longer than {limits.NAME_BYTES_MAX} bytes", reason="NAME_TOO_LONG", field=what)
    if _CONTROL.search(value) or value != value.strip():
        raise Invalid(f"{what} has control characters, or blanks around it", reason="NAME_BAD_CHARACTERS", field=what)
    return value


def free_text(value: str, what: str) -> str:
    """A reason or description: bounded, no control characters. Raises `Invalid`."""
    if len(value.encode()) > limits.TEXT_BYTES_MAX:
        raise Invalid(f"{what} is longer than {limits.TEXT_BYTES_MAX} bytes", reason="TEXT_TOO_LONG", field=what)
    if _CONTROL.search(value):
        raise Invalid(f"{what} has control characters", reason="TEXT_BAD_CHARACTERS", field=what)
    return value


def size(record: M, what: str) -> M:
    """A record: bounded as a whole, in bytes, because that is what apply bounds. Raises `Invalid`."""
    if record.ByteSize() > limits.VALUE_BYTES_MAX:
        raise Invalid(
            f"with {what} the record is larger than {limits.VALUE_BYTES_MAX} bytes",
            reason="VALUE_TOO_LARGE",
            field=what,
            bytes=record.ByteSize(),
            bytes_max=limits.VALUE_BYTES_MAX,
        )
    return record


def between(value: int, low: int, high: int, what: str) -> int:
    """A number in a range. Raises `Invalid`."""
    if not low <= value <= high:
        raise Invalid(f"{what} is {value}, not in {low} … {high}", reason="OUT_OF_RANGE", field=what)
    return value


def prefix(value: str) -> str:
    """The beginning of a name: bounded, no control characters. Raises `Invalid`."""
    if len(value.encode()) > limits.NAME_BYTES_MAX or _CONTROL.search(value):
        raise Invalid("no name begins like this", reason="PREFIX_BAD", field="prefix")
    return value


def page(rows: Iterable[Row[M]], limit: int) -> tuple[list[Row[M]], bool]:
    """At most `limit` rows (0: the default), and whether there are more. Raises `Invalid` above the maximum.

    A page of large rows ends earlier, but never before its first row.
    """
    between(limit, 0, limits.PAGE_MAX, "limit")
    count = limit or limits.PAGE_DEFAULT
    taken: list[Row[M]] = []
    room = limits.PAGE_BYTES_MAX
    for row in rows:
        room -= row.value.ByteSize()
        if len(taken) == count or (taken and room < 0):
            return taken, True
        taken.append(row)
    return taken, False


def meta(row: Row[M]) -> Meta:
    """Where a row stands, for a reply."""
    return Meta(
        revision=row.revision,
        created=row.created,
        version=row.version,
        actor=row.actor,
        action=row.action,
        reason=row.reason,
        at_ms=row.at_ms,
    )
