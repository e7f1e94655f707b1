"""One process of a simulated fleet: what `plane_node` has, and the product's server and federation on top of it.

The server is the product's own, but for its socket: calls of other regions come in as they leave its handlers'
arguments, over simulated connections (`world_ways`), and errors go out as statuses. Its own region's callers skip the
certificate and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaos.plane_chronicle import Chronicle
from chaos.plane_disk import RegionDisk
from chaos.plane_node import FLEET, Answer, Parts, Replica, SimRouter, _Asked
from chaos.sim_node import Clock
from chaos.world_ways import Address, Serving, SimWays
from controlplane.config import RegionConfig
from controlplane.errors import ControlPlaneError
from controlplane.federation import Federation
from controlplane.federation.links import ADOPT, FORWARD
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.kernel.machine import Applied
from controlplane.node import Call
from controlplane.server import Server

if TYPE_CHECKING:
    from chaos.world_region import Home


@dataclass(frozen=True, slots=True)
class FleetParts(Parts):
    """What a process is made of; a planted defect replaces one of them."""

    federation: Callable[..., Federation] = Federation


class Member(Replica):
    """A process of a region among others."""

    world: Home

    def __init__(self, world: Home, name: str, peers: list[str], disk: RegionDisk, clock: Clock, process: int) -> None:
        self.address: Address = (world.region, name)
        self.certificate = Identity(FLEET, EVERY_ENVIRONMENT, world.region, "peer", name).uri
        self.serves = False
        self.federation: Federation
        self.server: Server
        super().__init__(world, name, peers, disk, clock, process)

    def make_router(self, peers: list[str]) -> SimRouter:
        """See `Replica`; the server has it made."""
        return self.loop.enter(self._make_server, self.world.config, peers)

    def _make_server(self, config: RegionConfig, peers: list[str]) -> SimRouter:
        ways = SimWays(self, self.world.fleet.endpoints)
        self.federation = self.world.makes_federation(config, self.plane, ways, self.world.random)

        def router(_: str, plan: Any, *__: object) -> SimRouter:
            return SimRouter(self, peers, plan)

        self.server = Server(config, self.name, self.plane, None, federation=self.federation, router=router)
        found = self.server.router
        assert isinstance(found, SimRouter)
        return found

    async def _serve(self) -> None:
        await super()._serve()
        self.federation.start()
        self.server.eraser.start()
        self.serves = True

    def leave(self) -> None:
        """End everything between regions, politely."""
        self.loop.spawn(self.federation.stop())

    # Callers.

    def submit(self, call: Call, answer: Answer, *, final: bool = False) -> None:
        """See `Replica`."""
        self.server._desk.run(_Asked(call, answer, final=final))

    async def _follow(self, call: Call, tell: Answer) -> None:
        try:
            async with contextlib.aclosing(await self.server._desk.stream(call)) as messages:
                async for message in messages:
                    tell(message)
        except ControlPlaneError as error:
            tell(error)

    async def serve_stream(self, context: Serving) -> None:
        """Serve a stream of copies to its end."""
        await self.server._follow(None, context)  # type: ignore[arg-type]  # What the product uses of a context is there.

    async def serve_call(self, method: str, request: bytes, context: Serving) -> bytes:
        """Answer a call of another region's node."""
        serve = {FORWARD: self.server._forward, ADOPT: self.server._adopt}[method]
        return await serve(request, context)  # type: ignore[arg-type]  # As above.

    # Machine.

    def _took(self, applied: Applied) -> None:
        chronicle: Chronicle = self.world.chronicle
        before = chronicle.revision
        super()._took(applied)
        if chronicle.revision > before:
            self.world.fleet.borders.applied(self.world.region, applied)
            self.world.fleet.roaming.applied(self.world.region, applied)
            self.world.fleet.erasing.applied(self.world.region, applied, self.store.rows())
