"""What all callers of one node share, and how none of them takes it all: the turns of its event loop."""

from __future__ import annotations

import asyncio

from controlplane import limits


class Turns:
    """Lets a bounded number of operations be begun in one turn of the event loop, whoever sent them.

    A leader that is silent for a few beats is a leader no more, and beats leave between turns.
    """

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(limits.OPERATIONS_PER_TURN_MAX)
        self._taken = 0

    async def take(self) -> None:
        """Return when one more operation may be begun: now, or in a later turn. Who asks first goes first."""
        await self._room.acquire()
        if not self._taken:
            asyncio.get_running_loop().call_soon(self._over)
        self._taken += 1

    def _over(self) -> None:
        taken, self._taken = self._taken, 0
        for _ in range(taken):
            self._room.release()


def fields(encoded: bytes, most: int) -> int:
    """Count the outermost fields of an encoded message, up to `most` + 1, at the cost of those alone.

    To decode a field may take fifty times its size, and longer than the event loop may be held up. What is no message
    has some number of fields.
    """
    at = found = 0
    while at < len(encoded) and found <= most:
        found += 1
        tag, at = _varint(encoded, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(encoded, at)
        elif kind == _BYTES:
            size, at = _varint(encoded, at)
            at += size
        else:
            at += _SIZES.get(kind, 0)
    return found


_VARINT, _BYTES = 0, 2
_SIZES = {1: 8, 5: 4}
_VARINT_BITS = 70


def _varint(encoded: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift, byte in zip(range(0, _VARINT_BITS, 7), encoded[at : at + _VARINT_BITS // 7], strict=False):
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows.
            break
    return value, at
