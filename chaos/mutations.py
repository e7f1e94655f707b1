"""Changes that make bad input out of good: of bytes, and of protobuf messages. Pure; chance is handed in.

What starts from a valid sample gets past the first check more often than noise does, so most inputs are a sample with
a few changes; numbers are drawn from those at which parsers go wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

NUMBERS: Final = (0, 1, 2, 3, 5, 7, 255, 256, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
"""Whole numbers at which something ends or turns over."""
TEXTS: Final = (
    *("", "a", "w", "e", "f", "eu", "n1", "x" * 256, "x" * 257, "é" * 129, "a\0b", " a", "a\n", "\u2028", "../a", "%s"),
    *("{}", "[" * 70 + "]" * 70, "[NaN]", '["\\ud800"]', "1e999", "NaN", "0x1", "9" * 5000, "true", "-1"),
)
"""Texts that look like something else, are too long, or say what no name may say."""
_GROWN_MAX = 4096
_DEPTH_MAX = 4


def spoiled(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one to four changes; `others` are samples from which pieces are taken."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_CHANGES)(random, data, others)
    return data


def _flip(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]


def _overwrite_number(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A length or a count somewhere is another one."""
    size = random.choice((1, 2, 4, 8))
    at = random.randrange(max(1, len(data) - size + 1))
    number = random.choice(NUMBERS) & ((1 << 8 * size) - 1)
    if random.random() < 0.3:
        number = (int.from_bytes(data[at : at + size]) + random.choice((-1, 1))) & ((1 << 8 * size) - 1)
    return data[:at] + number.to_bytes(size, random.choice(("big", "little"))) + data[at + size :]


def _cut(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _remove(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _range(random, data)
    return data[:begin] + data[end:]


def _repeat(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _range(random, data)
    return data[:end] + data[begin:end][:_GROWN_MAX] + data[end:]


def _zero(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = _range(random, data)
    return data[:begin] + bytes(end - begin) + data[end:]


def _insert_noise(random: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.randint(1, 16)) + data[at:]


def _splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The beginning of one, the end of another."""
    other = random.choice(others) if others else data
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def _range(random: Random, data: bytes) -> tuple[int, int]:
    begin = random.randrange(len(data) + 1)
    length = random.choice((1, 2, 8, 64, len(data)))
    return begin, min(len(data), begin + random.randint(0, length))


_CHANGES: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    *(_flip, _flip, _overwrite_number, _overwrite_number),
    *(_cut, _remove, _repeat, _zero, _insert_noise, _splice),
)


def drawn(random: Random, kind: type[Message], depth: int = _DEPTH_MAX) -> Any:
    """A message of a kind, whose fields hold what its types allow and its rules mostly do not."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if depth and random.random() < 0.6:
            _fill(random, message, field, depth)
    return message


def redrawn(random: Random, message: Message, depth: int = _DEPTH_MAX) -> None:
    """Change one field of `message`, or of a message in it."""
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = random.choice(fields)
    inner = _inner(random, message, field)
    if inner is not None and depth and random.random() < 0.8:
        redrawn(random, inner, depth - 1)
    elif random.random() < 0.2:
        message.ClearField(field.name)
    else:
        message.ClearField(field.name)
        _fill(random, message, field, depth)


def _inner(random: Random, message: Message, field: Any) -> Message | None:
    """A message that stands in `field` already."""
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return None
    held = getattr(message, field.name)
    if field.is_repeated:
        return random.choice(held) if held else None
    return held if message.HasField(field.name) else None


def _fill(random: Random, message: Message, field: Any, depth: int) -> None:
    values = [_value(random, field, depth) for _ in range(random.choice((0, 1, 1, 2, 3)) if field.is_repeated else 1)]
    if field.is_repeated:
        getattr(message, field.name).extend(values)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(message, field.name).CopyFrom(values[0])
    else:
        setattr(message, field.name, values[0])


def _value(random: Random, field: Any, depth: int) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return drawn(random, GetMessageClass(field.message_type), depth - 1)
    return _VALUES[field.type](random)


def _bounded(lowest: int, highest: int) -> Callable[[Random], int]:
    """Small ones half of the time: those are the ones that mean something."""
    allowed = [number for number in NUMBERS if lowest <= number <= highest]
    allowed += [-number for number in NUMBERS if lowest <= -number]
    return lambda random: random.choice(allowed) if random.random() < 0.5 else random.randint(0, 12)


_VALUES: dict[int, Callable[[Random], Any]] = {
    FieldDescriptor.TYPE_STRING: lambda random: random.choice(TEXTS),
    FieldDescriptor.TYPE_BYTES: lambda random: random.randbytes(random.choice((0, 1, 15, 16, 17, 32, 40))),
    FieldDescriptor.TYPE_BOOL: lambda random: random.random() < 0.5,
    FieldDescriptor.TYPE_UINT32: _bounded(0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: _bounded(0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: _bounded(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: _bounded(-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_ENUM: lambda random: random.randint(-2, 9),
}
