"""The small process above a node that runs with `--drills`: it makes the faults that a process cannot do to itself.

Theory of operation. It starts the node as its child and holds one end of a socket pair, over which the child passes
on what an operator asked for, one JSON object per line. The supervisor kills, stops or restarts the child and undoes
that by its own timer, so it needs neither the operator nor the node to end a fault.

1. It is no process manager: when the child ends by itself, the supervisor ends with the same exit code.
2. SIGTERM and SIGINT drain the child, which is let go on first if it is stopped. During a fault's down time they end
   the supervisor at once, with success: there is nothing to drain.
3. If the supervisor dies, the kernel continues the child (`follow`), which finds the line closed and drains.
4. A fault that is asked for twice strikes once. Only one is in effect at a time.
5. It imports nothing but the standard library and the table of bounds: it is small, and there is little to fail.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from controlplane import limits

LINE_OPTION: Final = "--drills-line"
"""The option of `controlplane serve` that names the child's end of the line."""
STRIKES_IN_S: Final = 0.1
"""From taking an order to the blow, so that the answer can reach the operator first."""

_JOIN_FLAGS: Final = frozenset({"--bootstrap", "--replace"})
# How a child ends that was killed, or drained, as ordered. Any other end is its own.
_EXPECTED: Final = {"kill": {-signal.SIGKILL}, "replace": {-signal.SIGKILL}, "restart": {0, -signal.SIGKILL}}
_DRAIN_S: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1


def become(arguments: Sequence[str], data: Path) -> NoReturn:
    """Turn this process into a supervisor whose child is `controlplane` with `arguments`."""
    os.execv(sys.executable, [sys.executable, "-m", __name__, str(data), *arguments])  # noqa: S606 - ourselves


def follow() -> None:
    """Have the kernel continue this process when the one that started it dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT))


class Supervisor:
    """One child at a time, and what is to be done to it."""

    def __init__(self, arguments: Sequence[str], data: Path, program: Sequence[str] = ("-m", "controlplane")) -> None:
        """`arguments` are those of `program`, which Python runs; `data` is what a replacement puts aside."""
        self._arguments, self._data, self._program = list(arguments), data, tuple(program)
        self._child: asyncio.subprocess.Process | None = None
        self._known: deque[str] = deque(maxlen=limits.FAULTS_REMEMBERED_MAX)
        self._order: dict[str, Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Run the node until it ends or is asked to; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        arguments = self._arguments
        while True:
            code = await self._live(arguments)
            order, self._order = self._order, None
            if self._stopping.is_set() or order is None or code not in _EXPECTED.get(order["do"], ()):
                return code if code >= 0 else 128 - code
            arguments = [each for each in self._arguments if each not in _JOIN_FLAGS]
            if order["do"] == "replace":
                self._put_aside(order["id"])
                arguments.append("--replace")
            if not await self._down(order["duration_ms"] / 1000):
                return 0

    def stop(self) -> None:
        """Drain the child and end."""
        self._stopping.set()
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGTERM)

    async def _live(self, arguments: Sequence[str]) -> int:
        """Start the child, do what it asks until it ends, and return its exit code."""
        mine, its = socket.socketpair()
        with its:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._program,
                *arguments,
                LINE_OPTION,
                str(its.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[its.fileno()],
            )
        reader, writer = await asyncio.open_unix_connection(sock=mine, limit=limits.DRILL_LINE_BYTES_MAX)
        if self._stopping.is_set():
            self._signal(signal.SIGTERM)
        listening = asyncio.create_task(self._listen(reader, writer))
        try:
            return await self._child.wait()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self._disarm()
            self._child = None
            writer.close()

    async def _down(self, seconds: float) -> bool:
        """Wait before the next start; False: asked to end meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return not self._stopping.is_set()

    # Orders.

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError):
            while line := await reader.readline():
                writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                await writer.drain()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            order = json.loads(line)
            return {"id": str(order["id"]), **self._take(order)}
        except (ValueError, KeyError, TypeError) as error:
            return {"id": "", "problem": f"not an order: {error!r}"}

    def _take(self, order: dict[str, Any]) -> dict[str, Any]:
        blow = self._blows()[order["do"]]
        if not 0 < int(order["duration_ms"]) <= limits.FAULT_MS_MAX:
            return {"problem": "the duration is out of range"}
        if order["id"] in self._known:
            return {"repeated": True}
        if self._order is not None or self._stopping.is_set():
            return {"problem": "another fault is in effect, or the node is stopping"}
        if order["do"] == "replace" and self._data.is_mount():
            return {"problem": f"{self._data} is a mount point and cannot be put aside; mount its parent instead"}
        self._known.append(order["id"])
        self._order = order
        self._timer = asyncio.get_running_loop().call_later(STRIKES_IN_S, blow)
        return {"repeated": False}

    def _blows(self) -> dict[str, Callable[[], None]]:
        return {"kill": self._kill, "replace": self._kill, "pause": self._pause, "restart": self._restart}

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _restart(self) -> None:
        self._signal(signal.SIGTERM)
        self._timer = asyncio.get_running_loop().call_later(_DRAIN_S, self._kill)

    def _pause(self) -> None:
        assert self._order is not None
        self._signal(signal.SIGSTOP)
        self._timer = asyncio.get_running_loop().call_later(self._order["duration_ms"] / 1000, self._resume)

    def _resume(self) -> None:
        self._order = None
        self._signal(signal.SIGCONT)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.send_signal(number)

    def _put_aside(self, order: str) -> None:
        """Keep the old disk as evidence, beside the new one."""
        with suppress(FileNotFoundError):
            self._data.rename(self._data.with_name(f"{self._data.name}.{time.strftime('%Y%m%d-%H%M%S')}.{order[:8]}"))


async def _supervise(data: Path, arguments: Sequence[str]) -> int:
    return await Supervisor(arguments, data).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(_supervise(Path(sys.argv[1]), sys.argv[2:])))
