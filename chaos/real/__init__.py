"""Real nodes under real faults: processes, sockets, disks and clocks of this machine, broken from outside.

`cluster` runs a region of real processes; `proxies` and `namespaces` break what lies between the nodes; `shim` and
`disks` break what lies under one of them; `faults` says what is broken, when, and whether it really was.
"""

from __future__ import annotations


class Unsupported(Exception):
    """This machine or user cannot have the fault; the text says what is missing. The caller says SKIPPED, loudly."""
