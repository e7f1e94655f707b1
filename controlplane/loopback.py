"""Programs of one machine that are started, broken and started again: what demo and benchmark run their regions on."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

_POLL_S = 0.005


class Program:
    """One child process, with its output in a file. `kill` in a `finally` ends it for certain."""

    def __init__(self, argv: Sequence[str], output: Path) -> None:
        self.argv = list(argv)
        self._output = output
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process exists (a paused one does)."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the latest start."""
        assert self._child is not None
        return self._child.pid

    def start(self, *more: str) -> None:
        """Start with `more` arguments; what it prints is appended to the output file."""
        assert not self.running
        with self._output.open("ab") as output:
            self._child = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                [*self.argv, *more], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if self._child is not None:
            self._child.send_signal(number)

    def pause(self) -> None:
        """Stop it in the middle of whatever it does, silently: its connections stay open."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once and wait for its end. Harmless when it is gone already."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    async def stop(self, *, timeout_s: float) -> int:
        """Ask it to end; return its exit code. Raises `TimeoutError` (the process is then still there)."""
        self.send(signal.SIGTERM)
        return await self.ended(timeout_s=timeout_s)

    async def ended(self, *, timeout_s: float) -> int:
        """Wait for its end; return its exit code. Raises `TimeoutError`."""
        assert self._child is not None
        end = time.monotonic() + timeout_s
        while (code := self._child.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.argv[0]} did not end within {timeout_s} s")
            await asyncio.sleep(_POLL_S)
        return code

    def rss_mb(self) -> float:
        """Resident memory in units of 2**20 bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise ProcessLookupError(self.pid)

    def tail(self, lines: int = 15) -> str:
        """The end of what it printed."""
        if not self._output.exists():
            return ""
        return "\n".join(self._output.read_text(errors="replace").splitlines()[-lines:])


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def ending(programs: Sequence[Program]) -> Iterator[None]:
    """Kill all of `programs` on the way out, paused ones too."""
    try:
        yield
    finally:
        for program in programs:
            program.kill()
