"""Processes that are killed, paused, restarted, replaced, or hand over."""

from __future__ import annotations

from pathlib import Path
from random import Random

from chaos.real.cluster import Cluster
from chaos.real.victims import Pick, hold_all, leader_or_anyone, until


class Killed:
    """Processes end by SIGKILL, and are started again."""

    def __init__(self, name: str, pick: Pick) -> None:
        self.name, self._pick = name, pick
        self._ends: list[int] = []

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster, self._victims = cluster, await self._pick(cluster, random)
        self._break(random)
        self._ends = [await cluster.program(victim).ended(timeout_s=1) for victim in self._victims]
        return f"SIGKILL of {', '.join(self._victims)}"

    async def observed(self) -> bool:
        """See `Fault`: the kernel says that a signal ended them."""
        return bool(self._ends) and all(code == -9 for code in self._ends)

    async def heal(self) -> None:
        """See `Fault`."""
        for victim in self._victims:
            self._cluster.start(victim)

    def _break(self, random: Random) -> None:
        self._cluster.kill(*self._victims)


class PowerLost(Killed):
    """Processes end, and what was not synced is gone or torn."""

    gone_bytes = 0

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        await super().inject(cluster, random)
        return f"loss of power at {', '.join(self._victims)}, {self.gone_bytes} unsynced bytes gone"

    async def observed(self) -> bool:
        """See `Fault`: there was something to lose."""
        return await super().observed() and self.gone_bytes > 0

    def _break(self, random: Random) -> None:
        self.gone_bytes = self._cluster.lose_power(self._victims, random)


class Paused:
    """A process stops in the middle of whatever it does, silently, and goes on later as if no time had passed."""

    def __init__(self, name: str, pick: Pick) -> None:
        self.name, self._pick = name, pick
        self._state = ""

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster, (self._victim,) = cluster, await self._pick(cluster, random)
        cluster.pause(self._victim)
        await until(lambda: self._looked() == "T")
        return f"SIGSTOP of {self._victim}"

    async def observed(self) -> bool:
        """See `Fault`: the kernel said that it was stopped."""
        return self._state == "T"

    async def heal(self) -> None:
        """See `Fault`."""
        self._cluster.resume(self._victim)

    def _looked(self) -> str:
        stat = Path(f"/proc/{self._cluster.program(self._victim).pid}/stat").read_text()
        self._state = stat.rpartition(")")[2].split()[0]
        return self._state


class Rolled:
    """Every node is stopped as an operator does it and started again, one after the other, while the others serve."""

    name = "rolling-restart"

    def __init__(self) -> None:
        self._codes: list[int] = []

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._codes = []
        for name in random.sample(list(cluster.names), len(cluster.names)):
            self._codes.append(await cluster.stop(name))
            cluster.start(name)
            await cluster.settled()
        return "SIGTERM of every node in turn"

    async def observed(self) -> bool:
        """See `Fault`: each one ended as it should."""
        return bool(self._codes) and not any(self._codes)

    async def heal(self) -> None:
        """See `Fault`: nothing is left to mend."""


class Transferred:
    """The leader hands its office over."""

    name = "transfer"

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster = cluster
        before = await cluster.led()
        self._term = before.term
        target = random.choice([name for name in cluster.names if name != before.name])
        said = await cluster.transfer(target)
        return f"{before.name} hands over to {target}: {said}"

    async def observed(self) -> bool:
        """See `Fault`: somebody leads in a later term."""
        leader = await self._cluster.led()
        return leader.term > self._term

    async def heal(self) -> None:
        """See `Fault`: nothing is left to mend."""


class Replaced:
    """A node comes back with an empty disk, as one does whose disk was lost."""

    name = "replace-disk"

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster, (self._victim,) = cluster, await leader_or_anyone(cluster, random)
        self._before = self._identity()
        cluster.kill(self._victim)
        # Whoever replaces a disk sees to it that the others hold what was acknowledged: it may have been a majority.
        await hold_all(cluster)
        cluster.replace(self._victim)
        return f"{self._victim} starts with an empty disk"

    async def observed(self) -> bool:
        """See `Fault`: the folder has another incarnation."""
        return await until(lambda: self._identity() not in ("", self._before))

    async def heal(self) -> None:
        """See `Fault`: it mends itself."""

    def _identity(self) -> str:
        file = self._cluster.data(self._victim) / "IDENTITY"
        return file.read_text() if file.exists() else ""
