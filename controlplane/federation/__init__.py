"""Federation: what goes between regions, over gRPC with mutual TLS.

Theory of operation. Regions are autonomous: each has a log of its own, and works on when it is cut off. Two things
pass between them. *Copies*: the leader of one region follows the shared records of another (`follower`), which shows
them (`exporter`); records come with a cursor and end up in the follower's own log. *Calls*: one for a partition whose
home is another region is handed to it, once (`links`). What passed is written down by both sides (`passages`,
`doors`), and what each may see is decided by `geography` alone.

Everything here runs on each node and works on the leader only, but for the forwarding of calls.
"""

from __future__ import annotations

import asyncio
from random import Random

from controlplane.config import RegionConfig
from controlplane.credentials import Credentials
from controlplane.federation.doors import Doors
from controlplane.federation.exporter import Exporter
from controlplane.federation.follower import Follower
from controlplane.federation.links import Links
from controlplane.federation.mover import Mover
from controlplane.federation.ways import Channels, Ways
from controlplane.node import Node

__all__ = ["Federation"]


class Federation:
    """Everything between this node and other regions. `node` must have started before `start`, and outlive `stop`."""

    def __init__(
        self, config: RegionConfig, node: Node, ways: Credentials | Ways, random: Random | None = None
    ) -> None:
        """`ways` lead to the other regions: over gRPC with these credentials, unless they are of another kind."""
        random = random or Random()  # noqa: S311 - not a secret
        self.links = Links(config, node, Channels(ways) if isinstance(ways, Credentials) else ways)
        self.doors = Doors(node)
        self.exporter = Exporter(node, self.links)
        self.mover = Mover(node, self.links)
        self._followers = [Follower(node, link, reach, random) for link in self.links for reach in link.imported]

    def start(self) -> None:
        """Begin. No peer has to be reachable, now or ever."""
        self.doors.start()
        self.exporter.start()
        self.mover.start()
        for follower in self._followers:
            follower.start()

    def drain(self) -> None:
        """Show nothing more to followers of other regions."""
        self.exporter.drain()

    async def stop(self) -> None:
        """End, and write down what passed so far; bounded by a few seconds."""
        await self.mover.stop()
        await asyncio.gather(*(follower.stop() for follower in self._followers))
        await self.exporter.stop()
        await self.doors.stop()
        await self.links.close()
