"""How a workflow's state, which is bytes to the control plane, looks to the function that changes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Codec(Generic[S]):
    """A pair of pure functions: `decode(encode(state)) == state`."""

    encode: Callable[[S], bytes]
    decode: Callable[[bytes], S]


def _to_json(state: Any) -> bytes:
    return json.dumps(state, separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _plain(state: bytes | bytearray | memoryview) -> bytes:
    # `bytes` takes more than this: of a number it makes so many zeros.
    if not isinstance(state, bytes | bytearray | memoryview):
        raise TypeError(f"RAW stores bytes, not {type(state).__name__}")
    return bytes(state)


JSON: Codec[Any] = Codec(_to_json, json.loads)
"""Anything that JSON can say, as UTF-8 text; equal states have equal bytes. What it cannot say (sets, NaN) raises
TypeError or ValueError."""
RAW: Codec[bytes] = Codec(_plain, bytes)
"""The bytes as they are. Anything but bytes, a bytearray or a memoryview raises TypeError."""
