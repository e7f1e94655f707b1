"""Links made of network namespaces: each node a host of its own on a bridge of ours, cut by the kernel's filter.

Needs root, `ip` and `nft`; without them, `Unsupported`. Here a cut loses packets, so that TCP's own backing off shows,
and one direction takes the other's acknowledgements with it.

1. **Only what is ours is touched.** Everything made bears a name with this process's id, rules live inside our own
   namespaces, and addresses are of 198.18.0.0/15 (kept for tests of networks) in a subnet that no route leads to.
2. **Nothing is left.** `close` removes all of it, whatever failed; `open` first removes what a process that is gone has
   left behind.
3. **Counted.** Each rule counts the packets it dropped; counts of earlier cuts are kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from chaos.real import Unsupported
from chaos.real.links import Pace, Pair

_COMMAND_TIMEOUT_S: Final = 10.0
_SUBNETS: Final = 512
_NAMESPACE: Final = re.compile(r"chaos-(\d+)-\d+")
_BRIDGE: Final = re.compile(r"cx(\d+)b")
_TABLE: Final = "inet chaos"


class Namespaces:
    """A host for each of `size` nodes, called n1, n2, ...; `Links` between them."""

    def __init__(self, size: int) -> None:
        self._names = [f"n{number + 1}" for number in range(size)]
        self._mark = os.getpid()
        self._prefix = ""
        self._opened = False
        self._dropped = 0

    @property
    def hosts(self) -> Sequence[str]:
        """The address of each node."""
        return [f"{self._prefix}.{number + 1}" for number in range(len(self._names))]

    @property
    def commands(self) -> list[list[str]]:
        """What to put before a command of each node, so that it runs on its host."""
        return [["ip", "netns", "exec", self._space(number)] for number in range(len(self._names))]

    async def open(self) -> None:
        """Make it all. Raises `Unsupported`."""
        _check()
        await _sweep()
        self._prefix = await _free_prefix()
        self._opened = True
        bridge = f"cx{self._mark}b"
        await _run("ip", "link", "add", bridge, "type", "bridge")
        await _run("ip", "addr", "add", f"{self._prefix}.254/24", "dev", bridge)
        await _run("ip", "link", "set", bridge, "up")
        for number, host in enumerate(self.hosts):
            await self._add_host(number, host, bridge)

    async def close(self) -> None:
        """Remove all that was made. The processes in it must have ended."""
        if self._opened:
            self._opened = False
            await _remove(self._mark)

    async def cut(self, pairs: Iterable[Pair]) -> None:
        """See `Links`: packets are dropped where they arrive."""
        self._dropped += await self._count()
        pairs = tuple(pairs)
        await asyncio.gather(*(self._filter(number, pairs) for number in range(len(self._names))))

    async def dropped(self) -> int:
        """See `Links`: packets."""
        return self._dropped + await self._count()

    async def slow(self, paces: Mapping[Pair, Pace]) -> None:
        """See `Links`."""
        if paces:
            raise Unsupported("namespaces have no delays: slow links need the proxied topology")

    async def delayed(self) -> int:
        """See `Links`."""
        return 0

    async def reset(self, pairs: Iterable[Pair]) -> int:
        """See `Links`."""
        raise Unsupported("namespaces break no single connections: that needs the proxied topology")

    def _space(self, number: int) -> str:
        return f"chaos-{self._mark}-{number + 1}"

    async def _add_host(self, number: int, host: str, bridge: str) -> None:
        space, outer = self._space(number), f"cx{self._mark}v{number + 1}"
        await _run("ip", "netns", "add", space)
        await _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
        await _run("ip", "link", "set", outer, "master", bridge, "up")
        await _run("ip", "-n", space, "addr", "add", f"{host}/24", "dev", "eth0")
        await _run("ip", "-n", space, "link", "set", "lo", "up")
        await _run("ip", "-n", space, "link", "set", "eth0", "up")
        await self._filter(number, ())

    async def _filter(self, number: int, pairs: Iterable[Pair]) -> None:
        """Replace a host's rules, all at once."""
        me, host_of = self._names[number], dict(zip(self._names, self.hosts, strict=True))
        rules = [f"ip saddr {host_of[a]} counter drop" for a, b in pairs if b == me]
        chain = "\n".join(["chain in {", "type filter hook input priority 0", *rules, "}"])
        script = f"table {_TABLE}\ndelete table {_TABLE}\ntable {_TABLE} {{\n{chain}\n}}\n"
        await _run("ip", "netns", "exec", self._space(number), "nft", "-f", "-", given=script)

    async def _count(self) -> int:
        """Packets that the present rules have dropped."""
        show = ("nft", "-j", "list", "table", *_TABLE.split())
        shown = await asyncio.gather(
            *(_run("ip", "netns", "exec", self._space(number), *show) for number in range(len(self._names)))
        )
        return sum(_packets(json.loads(text)) for text in shown)


def _packets(table: dict[str, Any]) -> int:
    rules = (item["rule"]["expr"] for item in table["nftables"] if "rule" in item)
    return sum(part["counter"]["packets"] for parts in rules for part in parts if "counter" in part)


def _check() -> None:
    missing = [program for program in ("ip", "nft") if shutil.which(program) is None]
    if missing:
        raise Unsupported(f"no {' and no '.join(missing)}: network namespaces need them")
    if os.geteuid() != 0:
        raise Unsupported("not root: network namespaces need it")


async def _sweep() -> None:
    """Remove what processes have left behind that are gone."""
    names = (await _run("ip", "netns", "list")).split() + (await _run("ip", "-br", "link", "show")).split()
    marks = {
        int(found[1]) for name in names for found in [_NAMESPACE.fullmatch(name) or _BRIDGE.fullmatch(name)] if found
    }
    for mark in sorted(marks):
        if not _exists(mark):
            await _remove(mark)


def _exists(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


async def _remove(mark: int) -> None:
    """Remove everything that bears this mark. A host's link goes with its namespace, or with its other end."""
    for space in (await _run("ip", "netns", "list")).split():
        if space.startswith(f"chaos-{mark}-"):
            await _run("ip", "netns", "del", space)
    for link in (await _run("ip", "-br", "link", "show")).split():
        name = link.partition("@")[0]
        if re.fullmatch(rf"cx{mark}(b|v\d+)", name):
            # A namespace that went a moment ago takes its link with it when the kernel comes to it.
            await _run("ip", "link", "del", name, may_fail=True)


async def _free_prefix() -> str:
    """Three bytes of a subnet that nobody here uses."""
    used = await _run("ip", "-4", "route", "show", "table", "all")
    for number in range(_SUBNETS):
        place = (os.getpid() + number) % _SUBNETS
        prefix = f"198.{18 + place // 256}.{place % 256}"
        if f"{prefix}." not in used:
            return prefix
    raise Unsupported("198.18.0.0/15 is in use on this machine")


async def _run(*argv: str, given: str = "", may_fail: bool = False) -> str:
    """Run a command; return what it printed. Raises `Unsupported` with what it complained of."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(_COMMAND_TIMEOUT_S):
        output, complaint = await process.communicate(given.encode())
    if process.returncode and not may_fail:
        raise Unsupported(f"{' '.join(argv)}: {complaint.decode(errors='replace').strip()}")
    return output.decode()
