"""Records of persons in a simulated fleet: who writes them, who has them erased, and that nothing is left of them then.

Every state is a word that is written nowhere else, so that it is known of each row of each store what it holds.

1. When a region notes that an erasure is swept, no row of its store holds a word that the record had up to then.
2. At the end every region that held one has noted that, and no node of any region holds a word of it.
3. Versions count on, and what was asked for before is not done again (`Chronicle` sees that).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from chaos.plane_clients import Client, Question, World
from chaos.plane_node import Broken, NotReached
from chaos.sim_oracle import Violation
from chaos.world_borders import law_word
from chaos.world_clients import Visit
from controlplane.errors import ControlPlaneError
from controlplane.kernel import keys
from controlplane.kernel.machine import Applied, Changed
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Erased, Partition, Reach, Workflow

if TYPE_CHECKING:
    from chaos.world_region import Home

_PERSONS = ("person0", "person1")
_WAITS_S = (0.3, 1.0)
_AGAIN_S = 1.0


class _Word(NamedTuple):
    """What was written of a person, and the home's revision at which it was."""

    revision: int
    text: bytes


class Erasing:
    """What is known of persons from outside."""

    def __init__(self, partitions: Iterable[Partition]) -> None:
        """`partitions` are those that persons are in."""
        self._partitions = {each.id for each in partitions}
        self.counts: Counter[str] = Counter()
        self._words: dict[bytes, list[_Word]] = {}
        self._versions: dict[bytes, int] = {}
        self._erased: dict[str, tuple[bytes, int]] = {}
        """By the name of the erasure: the record's key and the newest revision at which it was erased."""
        self._swept: dict[tuple[str, str], int] = {}
        """By region and name: up to where it is swept there."""

    def applied(self, region: str, applied: Applied, rows: Mapping[bytes, bytes]) -> None:
        """A region has applied an entry, and a node of it holds `rows` now. Raises `Violation`."""
        for each in applied.changed:
            key = keys.decode(each.key)
            if key.kind == "erased" and key.home == region:
                self._sweeps(region, key.name, Erased.FromString(each.event.value).revision, rows)
            elif key.home == region and key.partition in self._partitions:
                self._happens(key, each)

    def _happens(self, key: keys.Key, changed: Changed) -> None:
        event = changed.event
        if key.kind == "erasure":
            known = {keys.erasure_name(each): each for each in self._words}
            self._erased[key.name] = known[key.name], event.revision
            self.counts["persons erased"] += 1
        elif key.name in _PERSONS:
            if event.version <= self._versions.get(changed.key, 0):
                raise Violation(f"VERSION {key.name} of {key.home} has version {event.version} twice")
            self._versions[changed.key] = event.version
            words = self._words.setdefault(changed.key, [])
            if event.HasField("value"):
                words.append(_Word(event.revision, Workflow.FromString(event.value).state))

    def _sweeps(self, region: str, name: str, upto: int, rows: Mapping[bytes, bytes]) -> None:
        known = self._erased.get(name)
        if known is None:
            return
        self._swept[region, name] = upto
        self.counts["erasures swept"] += 1
        self._check_gone(region, known[0], upto, rows)

    def _check_gone(self, region: str, key: bytes, upto: int, rows: Mapping[bytes, bytes]) -> None:
        gone = [each.text for each in self._words[key] if each.revision <= upto]
        for row, value in rows.items():
            if any(text in value for text in gone):
                person = keys.decode(key)
                raise Violation(
                    f"NOT_ERASED {region} says that {person.name} of {person.home} is gone up to {upto}, and holds"
                    f" {row[:120]!r}"
                )

    def conclude(self, regions: Mapping[str, Home], holders: Mapping[str, set[str]]) -> None:
        """Check everything that must hold when all is quiet; `holders` may hold copies of a home's persons."""
        for name, (key, revision) in self._erased.items():
            for region in holders[keys.decode(key).home]:
                if self._swept.get((region, name), 0) < revision:
                    raise Violation(f"NOT_SWEPT {region} never swept the erasure of {keys.decode(key)} at {revision}")
            for region, home in regions.items():
                for node in home.replicas():
                    self._check_gone(region, key, revision, node.store.rows())


class Clerk(Client):
    """Writes down what is known of persons, has it erased, and asks again for what it had asked before."""

    def __init__(self, home: Home, number: int) -> None:
        # What was asked about a person is forgotten early: nobody but the clerk asks again.
        self._visit = Visit(home, home.region)
        super().__init__(cast(World, self._visit), number, "prod", "approver")
        law = next(p for p in home.partitions if p.environment == "prod" and p.reach == Reach.JURISDICTION)
        self._partition = law.id
        self._versions = dict.fromkeys(_PERSONS, 0)

    async def work(self) -> None:
        """See `Client`."""
        await self.pause(self.random.choice(_WAITS_S))
        name, chance = self.random.choice(_PERSONS), self.random.random()
        if chance < 0.25:
            await self._erase(name)
        elif chance < 0.4 and self._visit.asked:
            await self._again(*self.random.choice(self._visit.asked))
        else:
            await self._write(name)

    async def _write(self, name: str) -> None:
        state = f"{law_word(self.world.region)}{name}.{self.random.getrandbits(64):x}".encode()
        method, request = "CreateWorkflow", cast(Any, api.CreateWorkflowRequest(id=name, state=state))
        if version := self._versions[name]:
            method = "CompareAndSwapWorkflow"
            request = api.CompareAndSwapWorkflowRequest(id=name, version=version, state=state)
        try:
            self._versions[name] = (await self.write(method, request)).version
        except ControlPlaneError:
            await self._look(name)

    async def _look(self, name: str) -> None:
        try:
            reply = await self.read("GetWorkflow", api.GetWorkflowRequest(id=name))
            self._versions[name] = reply.workflow.version
        except ControlPlaneError:
            self._versions[name] = 0

    async def _erase(self, name: str) -> None:
        request = api.EraseRecordRequest(kind="workflow", name=name)
        request.header.partition = self._partition
        try:
            await self.write("EraseRecord", request, reason="it was asked for")
            self._versions[name] = 0
        except ControlPlaneError as error:
            self.world.done[f"erasures not made: {error.reason}"] += 1

    async def _again(self, revision: int, question: Question) -> None:
        """It may be answered as it was, or be forgotten; that it is not done again the chronicle sees."""
        if self.world.chronicle.revision - revision > self.world.chronicle.span // 4:
            return
        try:
            async with asyncio.timeout(_AGAIN_S):
                await self.world.ask(self.random.choice(self.world.names), question, _AGAIN_S)
        except (TimeoutError, Broken, NotReached, ControlPlaneError) as error:
            self.world.done[f"asked again for a person: {getattr(error, 'reason', 'BROKEN')}"] += 1
