"""The control experiment: a region that does lose acknowledged writes has to be caught losing them.

Every disk says that it synced, and forgets what it was given when all of them lose their power at once. No protocol can
help that. A run under it that finds nothing says that runs find nothing.
"""

from __future__ import annotations

from random import Random
from typing import Final

from chaos.real.cluster import Cluster
from chaos.real.faults import Nemesis
from chaos.real.report import Report
from chaos.real.shim import LYING, Orders

NAME: Final = "all-disks-lie"
CAUGHT_BY: Final = frozenset({"linearizability", "STALE_READ", "ACKNOWLEDGED_LOST"})
"""Findings that say what really happened; any of them will do."""


class AllLie:
    """Every disk forgets."""

    name = NAME
    _gone_bytes = 0

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """Have all disks lie from now on."""
        self._cluster, self._random = cluster, random
        for name in cluster.names:
            cluster.shim(name).order(LYING, cluster.data(name))
        return "every sync is a lie"

    async def observed(self) -> bool:
        """Whether somebody was lied to."""
        return any(self._cluster.shim(name).counts().syncs_lied for name in self._cluster.names)

    async def heal(self) -> None:
        """Take the power from all, give it back, and lie no more."""
        cluster = self._cluster
        self._gone_bytes = cluster.lose_power(list(cluster.names), self._random)
        for name in cluster.names:
            cluster.shim(name).order(Orders())
            cluster.start(name)


CONTROL: Final = Nemesis(NAME, AllLie, ("direct",), shim=True)


def turned(report: Report) -> Report:
    """Judge a control run: what would make another run red is what this one had to find."""
    if report.skipped:
        return report
    caught = sorted(CAUGHT_BY & {finding.kind for finding in report.findings})
    found, report.findings = report.findings, []
    if caught:
        report.checked = {"had to be caught": f"and was, by {', '.join(caught)}"}
    else:
        report.found("control", "acknowledged writes were made to be lost, and nobody noticed")
        report.findings += [each for each in found if each.kind in ("broken", "node ended", "fault", "healing")]
    return report
