"""Faults at work in a node: links that lose or hold back messages, regions cut off, orders to the process above.

All of it on the node's event loop. Whatever is in effect ends by a timer of this loop or of the process above (see
`supervisor`), or earlier by `heal`; a fault of the process itself cannot be healed from inside and runs its time.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from controlplane import limits
from controlplane.drills import supervisor
from controlplane.drills.faults import PROCESS_KINDS, Fault, Faults
from controlplane.errors import OutcomeUnknown, Refused, Unavailable
from controlplane.v1.raft_pb2 import RaftMessage

Send = Callable[[str, RaftMessage], None]

_ANSWER_S: Final = 2.0


class Line:
    """The way to the process above; `ask` one order at a time, `closed` when that process is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._turn = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=8)

    async def listen(self) -> None:
        """Take in answers until the process above is gone."""
        supervisor.follow()
        self._reader, self._writer = await asyncio.open_unix_connection(
            sock=self._end, limit=limits.DRILL_LINE_BYTES_MAX
        )
        with suppress(OSError, ValueError):
            while line := await self._reader.readline():
                with suppress(asyncio.QueueFull):
                    self._answers.put_nowait(json.loads(line))

    async def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Pass an order on and return the answer to it. Raises `Unavailable`, or `OutcomeUnknown` without an answer."""
        if self._writer is None:
            raise Unavailable("the process above this node is not there", reason="SUPERVISOR_GONE")
        try:
            async with self._turn, asyncio.timeout(_ANSWER_S):
                self._writer.write(json.dumps(order).encode() + b"\n")
                await self._writer.drain()
                while (answer := await self._answers.get()).get("id") != order["id"]:
                    pass
                return answer
        except (OSError, TimeoutError):
            raise OutcomeUnknown("the process above this node does not answer", reason="SUPERVISOR_SILENT") from None

    def close(self) -> None:
        """Let go of it."""
        if self._writer is not None:
            self._writer.close()


class Injector:
    """The faults of one node. Also what the transport asks before a message leaves or is taken in."""

    def __init__(
        self,
        peers: Sequence[str],
        send: Send,
        line: Line | None,
        clock: Callable[[], float],
        regions: Sequence[str] = (),
    ) -> None:
        """`send` hands a message to the links themselves, past every fault. `regions` are the peers of the region."""
        self.peers, self.regions = tuple(peers), tuple(regions)
        self.faults = Faults()
        self.ended: Callable[[Fault], None] = _unheard
        """Called with every fault that ends by its time."""
        self.sever: Callable[[frozenset[str]], None] = _not_severed
        """Called with all regions that are cut off, whenever others are."""
        self._severed: frozenset[str] = frozenset()
        self._send, self._line, self._clock = send, line, clock
        self._held: dict[str, deque[tuple[float, RaftMessage]]] = {peer: deque() for peer in peers}
        self._release: dict[str, asyncio.TimerHandle] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def inject(self, fault: Fault) -> bool:
        """Put `fault` into effect; False if it was known already. Raises `Refused`, `Unavailable`, `OutcomeUnknown`."""
        if not self.faults.admit(fault, self._clock()):
            return False
        if fault.kind in PROCESS_KINDS:
            try:
                return await self._order(fault)
            except (Refused, Unavailable):
                self.faults.withdraw(fault)
                raise
            finally:
                self._arm()
        self._tell()
        self._arm()
        return True

    def active(self) -> list[tuple[Fault, float]]:
        """The faults in effect, each with the seconds that it still lasts."""
        return self.faults.active(self._clock())

    def heal(self, drill: str, *, abort: bool) -> list[Fault]:
        """End what can be ended from here: everything but what was done to the process. Return it."""
        ended = self.faults.heal(drill, abort=abort)
        self._tell()
        self._flush()
        self._arm()
        return ended

    def stop(self) -> None:
        """End every fault, timer and message held back."""
        self.heal("", abort=False)
        if self._timer is not None:
            self._timer.cancel()
        for handle in self._release.values():
            handle.cancel()

    # What the transport asks.

    def leaving(self, peer: str, message: RaftMessage) -> bool:
        """Whether `message` may leave for `peer` now; a message held back leaves later by itself."""
        if peer in self.faults.lost_out:
            return False
        delay_s = self.faults.delay_s.get(peer)
        held = self._held[peer]
        if delay_s is None and not held:
            return True
        if len(held) < limits.FAULT_HELD_MAX:
            held.append((self._clock() + (delay_s or 0.0), message))
            if len(held) == 1:
                self._wait_for(peer)
        return False

    def arriving(self, peer: str) -> bool:
        """Whether what came from `peer` is taken in."""
        return peer not in self.faults.lost_in

    def _wait_for(self, peer: str) -> None:
        delay_s = max(0.0, self._held[peer][0][0] - self._clock())
        self._release[peer] = asyncio.get_running_loop().call_later(delay_s, self._let_go, peer)

    def _let_go(self, peer: str) -> None:
        held, now = self._held[peer], self._clock()
        while held and held[0][0] <= now:
            self._send(peer, held.popleft()[1])
        if held:
            self._wait_for(peer)

    def _flush(self) -> None:
        """Send at once, in order, what is held back on links that are not slow any more."""
        for peer, held in self._held.items():
            if peer not in self.faults.delay_s and held:
                self._release[peer].cancel()
                while held:
                    self._send(peer, held.popleft()[1])

    def _tell(self) -> None:
        """Have those regions cut off that are to be, and no others."""
        if self._severed != self.faults.cut_off:
            self._severed = self.faults.cut_off
            self.sever(self._severed)

    # Time and orders.

    async def _order(self, fault: Fault) -> bool:
        if self._line is None:
            raise Unavailable("there is no process above this node", reason="SUPERVISOR_GONE")
        answer = await self._line.ask({"id": fault.id, "do": fault.kind.word, "duration_ms": fault.duration_ms})
        if problem := answer.get("problem"):
            raise Refused(str(problem), reason="FAULT_IMPOSSIBLE")
        if answer.get("repeated"):
            self.faults.end(fault)
            return False
        return True

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        end_s = self.faults.next_end_s
        delay_s = None if end_s is None else max(0.0, end_s - self._clock())
        self._timer = None if delay_s is None else asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        for fault in self.faults.expire(self._clock()):
            self.ended(fault)
        self._tell()
        self._flush()
        self._arm()


def _unheard(fault: Fault) -> None:
    """Nobody listens."""


def _not_severed(regions: frozenset[str]) -> None:
    """This node has to do with no other region."""
