"""Finds damage in RocksDB's files of log records that RocksDB takes for something else.

RocksDB writes its write-ahead log and its manifest in blocks of 32 KiB: records of a checksum (4 bytes), a length (2),
a kind (1) and content. Two kinds of damage, one flipped bit each, do not make it refuse:

1. **A length that points past the end of the file** looks like a record that a crash has cut off. RocksDB drops it and
   *everything behind it* without a word: up to a block of acknowledged entries, or a manifest's newest edits, which
   makes the journal an older or an empty one. But the checksum covers kind and content, not the length: if it is right
   for some number of the bytes that are there, the record was whole, and its length is what was changed. A record that
   was really cut off passes for that once in 130,000 times; the node is then replaced without need.
2. **A kind that this program's files never have** (of recycled files) makes it read the same record for ever.

A header that became zero, or a file that became shorter, cannot be told from what a crash leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 32 * 1024
_HEADER = struct.Struct("<IHB")
_KINDS = (1, 2, 3, 4)  # A whole record, or the first, a middle, the last part of one.
_MASK_DELTA = 0xA282EAD8


def damage(folder: Path, *, lengths: bool = True) -> str:
    """What is wrong in a database's folder that RocksDB does not see; empty: nothing.

    `lengths` says whether a changed length matters: not where the Raft log brings back what is dropped.
    """
    files = sorted([*folder.glob("*.log"), *folder.glob("MANIFEST-*")])
    return next((what for path in files if (what := _damage(path, lengths))), "")


def _damage(path: Path, lengths: bool) -> str:
    with path.open("rb") as file:
        at = 0
        while block := file.read(_BLOCK):
            for begin, length, kind in _headers(block):
                if kind not in _KINDS:
                    return f"the kind of the record at byte {at + begin} of {path.name} is not one of its own"
                past = begin + _HEADER.size + length > len(block) < _BLOCK
                if lengths and past and _is_whole(block[begin:]):
                    return f"the length of the record at byte {at + begin} of {path.name} is not its own"
            at += len(block)
    return ""


def _headers(block: bytes) -> Iterator[tuple[int, int, int]]:
    """Begin, length and kind of every record, up to one that reaches past the end, or to zeros."""
    at = 0
    while at + _HEADER.size <= len(block):
        _, length, kind = _HEADER.unpack_from(block, at)
        if not kind:
            return
        yield at, length, kind
        at += _HEADER.size + length


def _is_whole(record: bytes) -> bool:
    """Whether the checksum is right for some length that fits."""
    checksum, _, _ = _HEADER.unpack_from(record)
    unmasked = (checksum - _MASK_DELTA) & 0xFFFFFFFF
    wanted = (unmasked >> 17 | unmasked << 15) & 0xFFFFFFFF ^ 0xFFFFFFFF
    state = 0xFFFFFFFF
    for byte in record[_HEADER.size - 1 :]:
        state = _TABLE[(state ^ byte) & 0xFF] ^ state >> 8
        if state == wanted:
            return True
    return False


def _table() -> tuple[int, ...]:
    """Of CRC-32C (Castagnoli), reflected."""
    rows = []
    for row in range(256):
        for _ in range(8):
            row = row >> 1 ^ (0x82F63B78 if row & 1 else 0)  # noqa: PLW2901
        rows.append(row)
    return tuple(rows)


_TABLE = _table()
