"""The clock that ages and leases are counted on.

It must go on while the machine sleeps: a mirror is as old after a suspend as its content is, and a lease as over.
`time.monotonic` stands still meanwhile on Linux.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

Clock = Callable[[], float]
"""Seconds, never going back."""

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)

now: Clock = time.monotonic if _BOOTTIME is None else partial(time.clock_gettime, _BOOTTIME)
"""Seconds since some fixed moment, sleep included where the system can tell."""
