"""`python -m chaos leaks`: what must not leave a region is planted, everything is broken, and then it is looked for.

Three regions of real nodes. Each scenario plants anew, does its worst, waits until what is shared has arrived (else it
did not happen, and a search would mean nothing), and searches the other regions: their folders as they lie on disk,
what their nodes print and count, what their callers were told, and what went to them over the links, in clear. In the
end the nodes stop, and every row of their stores is read. The control experiment looks for what may be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Final, Literal

import click
import grpc
from rich.console import Console
from rich.table import Table

from chaos import leaks_peer
from chaos.leaks_fleet import READY_S, Fleet, Hear
from chaos.leaks_peer import PLAIN, Asked, Caller, Ear, Unplanted
from chaos.leaks_search import ABROAD, HOME, NEIGHBOUR, Finding, Searched, Words, words
from chaos.scratch import scratch
from controlplane.config import split_address
from controlplane.loopback import PINNED, Certificate, run_cpctl
from controlplane.v1 import api_pb2 as api

OTHERS: Final = (NEIGHBOUR, ABROAD)
_ARRIVES_S = 45.0
_HOLDS_S = 30.0
_POLL_S = 0.05
_SCENARIO_S = 180.0
_TOOL_S = 60.0
_FLAPS = 8
_LISTED: Final[Mapping[str, int]] = {"pinned": 100, "state": 100, "config": 700}
"""Records before a fresh region comes, by partition: enough of those that it lists for a page after each end."""
_FILES: Final[Mapping[str, Literal["ca", "cert", "key"]]] = {"authority": "ca", "certificate": "cert", "key": "key"}
_ENDS = ((ABROAD, False), (HOME, False), (ABROAD, True), (HOME, True))
"""Which side ends, and whether politely."""


class NotHappened(Exception):
    """A scenario did not take place: a search after it would say nothing."""


@dataclass(slots=True)
class Report:
    """What became of one scenario."""

    name: str
    done: list[str] = field(default_factory=list)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Searched, by region and sort of place."""
    findings: list[Finding] = field(default_factory=list)
    problem: str = ""
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """In one word."""
        return "LEAKED" if self.findings else "NOT HAPPENED" if self.problem else "clean"


class Run:
    """One fleet, what is planted in it, and all that its other regions came to hold or hear."""

    def __init__(
        self, folder: Path, seed: int, seconds: float, sizes: Mapping[str, int], *, drills: bool = False
    ) -> None:
        self.words: Words = words(Random(seed))
        self.seconds = seconds
        self.ears = {region: Ear() for region in sizes}
        """What callers of each region were told."""
        self.passed: dict[str, list[tuple[str, bytes]]] = {region: [] for region in sizes}
        """What went to each region over a link."""
        named = {"home-only": self.words.pinned, "jurisdiction": self.words.law}
        self.fleet = Fleet(folder, named, sizes, self._on_link, drills=drills)
        self.partitions = {
            f"{HOME}.prod.pinned": self.words.pinned,
            f"{HOME}.prod.{self.words.pinned}": self.words.pinned,
            f"{HOME}.prod.state": self.words.law,
            f"{HOME}.prod.{self.words.law}": self.words.law,
            f"{HOME}.prod.config": self.words.shared,
        }
        self.planted = 0
        self.revision = 0
        self._callers: dict[tuple[str, str], Caller] = {}
        self._looked: Counter[int] = Counter()

    # -- callers

    def caller(self, region: str, name: str = "maria", *, role: str = "operator") -> Caller:
        """Somebody of a region who talks to its first node; always the same one."""
        key = region, f"{role}-{name}"
        if key not in self._callers:
            identity = self.fleet.regions[region].identity(role, f"{name}.{role}")
            self._callers[key] = self.at(region, region, identity)
        return self._callers[key]

    def at(self, region: str, at: str, identity: Certificate) -> Caller:
        """Somebody of `region` who talks to the first node of `at`, past all links."""
        return Caller(
            self.fleet.regions[at].addresses[0], _credentials(identity), self.ears[region], f"{region} at {at}"
        )

    async def close(self) -> None:
        """Hang up."""
        await asyncio.gather(*(caller.channel.close() for caller in self._callers.values()))
        self._callers.clear()

    def _on_link(self, region: str) -> Hear:
        return lambda what, message: self.passed[region].append((what, message))

    # -- steps of scenarios

    async def ready(self, *regions: str) -> None:
        """Wait until these regions answer."""
        for region in regions:
            asked = Asked("ListFlags", api.ListFlagsRequest(limit=1).SerializeToString())
            async with asyncio.timeout(READY_S):
                while await self.caller(region).ask(asked, timeout_s=2.0) is None:  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)

    async def plant(self) -> str:
        """Plant once more; the tag by which this time's records are told from the others."""
        self.planted += 1
        tag = f"{self.planted}"
        writers = {word: self.caller(HOME, f"writer-{word}") for word in self.words}
        self.revision = await leaks_peer.plant(writers, self.words, self.partitions, tag)
        return tag

    async def arrived(self, tag: str) -> None:
        """Wait until what may be elsewhere is there. Raises `NotHappened`."""
        for region, partition, word in (
            (ABROAD, f"{HOME}.prod.config", self.words.shared),
            (NEIGHBOUR, f"{HOME}.prod.config", self.words.shared),
            (NEIGHBOUR, f"{HOME}.prod.state", self.words.law),
        ):
            if not await self.has(region, partition, f"new-{tag}", word, timeout_s=_ARRIVES_S):
                raise NotHappened(f"new-{tag} of {partition} did not come to {region}")

    async def has(self, region: str, partition: str, name: str, word: str, *, timeout_s: float) -> bool:
        """Whether a copy of a flag that has `word` in it is in a region, now or after a while."""
        header = api.RequestHeader(partition=partition, consistency=api.LOCAL)
        asked = Asked("GetFlag", api.GetFlagRequest(header=header, name=name).SerializeToString())
        end = time.monotonic() + timeout_s
        while True:
            reply = await self.caller(region).ask(asked)
            if reply is not None and word.encode() in reply:
                return True
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_POLL_S)

    async def ask_everything(self, region: str, *, whole: bool = True) -> None:
        """Have callers of a region ask for all of it: there, at the home, in a node's name. Not `whole`: only there."""
        known = [*(each for each in self.partitions if each.rpartition(".")[2] not in self.words), ""]
        known += [f"{HOME}.prod.switches", f"{HOME}.prod.stops"]
        own = list(leaks_peer.every_request(known if whole else known[:3], self.revision, own=True))
        for role in ("operator", "agent") if whole else ("operator",):
            await self.caller(region, role=role).everything(own)
        if not whole:
            return
        await self.caller(region).in_session(own)
        requests = list(leaks_peer.every_request(known, self.revision, own=False))
        stranger = self.fleet.regions[region].identity("operator", f"stranger-{self.planted}")
        node = self.fleet.certificate(region)
        for at in (each for each in self.fleet.regions if each != region):
            if at == ABROAD:
                continue
            terms = self.fleet.terms(region, at)
            caller = f"controlplane://demo/prod/{region}/operator/maria"
            async with self.at(region, at, stranger) as direct, self.at(region, at, node) as peer:
                # The same answer to each of them: one of each kind of call will do.
                await direct.everything({each.method: each for each in requests}.values())
                await peer.everything({each.method: each for each in requests}.values())
                await peer.forwarded(requests, terms, caller)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[Counter[str]]:
        """Meanwhile, write shared records and pinned ones at home, whether or not it is there."""
        over, written = asyncio.Event(), Counter[str]()

        async def write() -> None:
            number = 0
            while not over.is_set():
                number += 1
                partition, word = list(self.partitions.items())[number % len(self.partitions)]
                reply = await self.write_flag(partition, f"load-{number % 50}", word)
                written["done" if reply is not None else "refused"] += 1
                await asyncio.sleep(0.005 if reply is not None else _POLL_S)

        task = asyncio.create_task(write())
        try:
            yield written
        finally:
            over.set()
            await task

    async def write_flag(self, partition: str, name: str, word: str) -> bytes | None:
        """Set a flag at home, with a word in it."""
        header = leaks_peer.header(self.words, partition)
        request = api.SetFlagRequest(header=header, flag=leaks_peer.text_flag(name, word))
        writer = self.caller(HOME, f"writer-{self.words.pinned}")
        return await writer.ask(Asked("SetFlag", request.SerializeToString()), timeout_s=2.0)

    async def write_many(self, partition: str, count: int) -> None:
        """So many flags. Raises `Unplanted`."""
        word = self.partitions[partition]
        turn = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with turn:
                if await self.write_flag(partition, f"many-{number:04}", word) is None:
                    raise Unplanted("a flag could not be set")

        await asyncio.gather(*(one(number) for number in range(count)))

    # -- the search

    async def search(self, report: Report, *, control: bool = False) -> None:
        """Look at what other regions hold, and heard since the last time. `control`: for what may be there, ever."""
        for region in OTHERS:
            wanted = {"shared": self.words.shared} if control else self.words.forbidden(region)
            searched = Searched(region, wanted)
            await asyncio.to_thread(searched.files, self.fleet.folder / region)
            for sort, heard in (("told to callers", self.ears[region].heard), ("links", self.passed[region])):
                since = 0 if control else self._looked[id(heard)]
                for what, message in heard[since:]:
                    searched.look(sort, what, message)
                if not control:
                    self._looked[id(heard)] = len(heard)
            for place, text in await self._metrics(region):
                searched.look("metrics", place, text)
            for file in sorted(self.fleet.folder.glob(f"{region}*.tar")):
                searched.bundle(file)
            report.sizes[region] = searched.sizes
            report.findings += searched.findings

    def search_rows(self, report: Report, *, control: bool = False) -> None:
        """Read every row of the stores of other regions, whose nodes have ended."""
        for region in OTHERS:
            wanted = {"shared": self.words.shared} if control else self.words.forbidden(region)
            searched = Searched(region, wanted)
            for number, name in enumerate(self.fleet.regions[region].names):
                searched.rows(self.fleet.regions[region].data_folder(number) / "store", name)
            searched.files(self.fleet.folder / region)
            report.sizes[region] = searched.sizes
            report.findings += searched.findings

    def searchable_at_home(self) -> bool:
        """Whether the same search finds all three words on the home's disk."""
        searched = Searched(HOME, self.words._asdict())
        searched.files(self.fleet.folder / HOME)
        return {finding.what for finding in searched.findings} >= {*self.words._fields}

    async def _metrics(self, region: str) -> list[tuple[str, bytes]]:
        found = []
        for node, address in zip(
            self.fleet.regions[region].nodes, self.fleet.regions[region].metrics_addresses, strict=True
        ):
            if node.running:
                found.append((address, await _page(address)))
        return found


# -- scenarios


async def listing(run: Run, report: Report) -> None:
    """A fresh region lists everything, while either side ends in the middle of it."""
    for word, count in _LISTED.items():
        await run.write_many(f"{HOME}.prod.{word}", count)
    tag = await run.plant()
    tee = run.fleet.tees[ABROAD, HOME][0]
    for number, (side, politely) in enumerate(_ENDS):
        tee.hold_after_page = True
        if number == 0:
            run.fleet.start(ABROAD, "--bootstrap")
        await _until(lambda: not tee.hold_after_page, "no page of a listing was seen that is not the last")
        await run.fleet.end(side, politely=politely)
        tee.release()
        run.fleet.start(side)
    await run.ready(HOME, ABROAD)
    await run.arrived(tag)
    last = f"many-{_LISTED['config'] - 1:04}"
    if not await run.has(ABROAD, f"{HOME}.prod.config", last, run.words.shared, timeout_s=_ARRIVES_S):
        raise NotHappened("the listing did not come to its end")
    report.done.append(f"{sum(_LISTED.values())} records, {tee.seen['page']} pages, {len(_ENDS)} ends in the middle")


async def following(run: Run, report: Report) -> None:
    """Either side ends, by SIGTERM and SIGKILL, while records are written and followed."""
    written: Counter[str]
    for side, politely in _ENDS:
        async with run.writing() as written:
            await _until(lambda written=written: written["done"] > 5, "nothing was written")  # type: ignore[misc]
            await run.fleet.restart(side, politely=politely)
            await run.ready(side)
        report.done.append(f"{side} {'ended' if politely else 'killed'}, {written['done']} writes")
    await run.arrived(await run.plant())


async def cut(run: Run, report: Report) -> None:
    """A region is cut off, both sides go on, and it is healed."""
    tees = run.fleet.between(HOME, ABROAD)
    await run.fleet.cut(*tees)
    async with run.writing() as written:
        tag = await run.plant()
        await asyncio.gather(asyncio.sleep(run.seconds), run.ask_everything(ABROAD, whole=False))
    if await run.has(ABROAD, f"{HOME}.prod.config", f"new-{tag}", run.words.shared, timeout_s=0):
        raise NotHappened("what was written behind a cut arrived")
    await run.fleet.heal(*tees)
    await run.arrived(tag)
    report.done.append(f"{written['done']} writes behind the cut; {ABROAD} asked for everything meanwhile")


async def one_way(run: Run, report: Report) -> None:
    """One direction of a link is silent, then the other."""
    for towards in ("one", "other"):
        for tee in run.fleet.between(HOME, ABROAD):
            tee.hold(towards)
        async with run.writing() as written:
            tag = await run.plant()
            await asyncio.sleep(run.seconds)
        if towards == "one" and await run.has(
            ABROAD, f"{HOME}.prod.config", f"new-{tag}", run.words.shared, timeout_s=0
        ):
            raise NotHappened("what was written behind a silent link arrived")
        await run.fleet.cut(*run.fleet.between(HOME, ABROAD))
        await run.fleet.heal(*run.fleet.between(HOME, ABROAD))
        await run.arrived(tag)
        report.done.append(
            f"silent towards {'the caller' if towards == 'one' else 'the called'}, {written['done']} writes"
        )


async def flapping(run: Run, report: Report) -> None:
    """Links come and go."""
    tees = [tee for other in OTHERS for tee in run.fleet.between(HOME, other)]
    async with run.writing() as written:
        for _ in range(_FLAPS):
            await run.fleet.cut(*tees)
            await asyncio.sleep(run.seconds / _FLAPS / 2)
            await run.fleet.heal(*tees)
            await asyncio.sleep(run.seconds / _FLAPS)
    await run.arrived(await run.plant())
    report.done.append(f"{_FLAPS} cuts, {written['done']} writes")


async def narrowed(run: Run, report: Report) -> None:
    """The home's file lets nothing leave any more, and later everything again, with restarts of both sides."""
    fleet = run.fleet
    for other in OTHERS:
        fleet.may_leave[HOME, other] = []
    fleet.describe(HOME)
    await fleet.restart(HOME, politely=True)
    await run.ready(HOME)
    tag = await run.plant()
    await fleet.restart(ABROAD, politely=False)
    await run.ready(ABROAD)
    await asyncio.gather(asyncio.sleep(run.seconds), run.ask_everything(ABROAD, whole=False))
    for region in OTHERS:
        if await run.has(region, f"{HOME}.prod.config", f"new-{tag}", run.words.shared, timeout_s=0):
            report.findings.append(Finding("shared, while nothing may leave", region, f"new-{tag}", "a copy"))
    for other in OTHERS:
        del fleet.may_leave[HOME, other]
    fleet.describe(HOME)
    await fleet.restart(HOME, politely=False)
    await run.ready(HOME)
    await run.arrived(tag)
    report.done.append("may_leave = [] for both, written and asked meanwhile, and back: arrived only then")


async def asking(run: Run, report: Report) -> None:
    """Operators and agents of other regions ask for everything, in every way, and make every mistake."""
    await run.arrived(await run.plant())
    for region in OTHERS:
        await run.ask_everything(region)
        told = run.ears[region].answers
        if not told["ok"] or not told["PARTITION_PINNED"]:
            raise NotHappened(f"callers of {region} were not answered, or not denied: {dict(told)}")
        often = ", ".join(f"{reason} {number}" for reason, number in told.most_common(6))
        report.done.append(f"{region}: {sum(told.values())} replies and errors ({often})")


async def peer(run: Run, report: Report) -> None:
    """A peer with a true certificate follows by its own rules."""
    await run.arrived(await run.plant())
    ways = [(ABROAD, HOME, NEIGHBOUR), (ABROAD, NEIGHBOUR, HOME), (NEIGHBOUR, HOME, ABROAD)]
    tees = [tee for one, other, _ in ways for tee in run.fleet.tees[one, other]]
    # The true followers would take the streams away from those that lie.
    await run.fleet.cut(*tees)

    async def lie(one: str, other: str, third: str) -> str:
        terms = run.fleet.terms(one, other)
        hellos = list(leaks_peer.every_hello(terms, third, "eu" if one == ABROAD else "us", run.revision))
        async with run.at(one, other, run.fleet.certificate(one)) as caller:
            counts = [await caller.follow(*hello) for hello in hellos]
        if not any(count > 1 for count in counts):
            raise NotHappened(f"{other} showed nothing to {one}")
        answered = sum(count > 1 for count in counts)
        return f"{one} at {other}: {len(hellos)} streams, {answered} answered, {sum(counts)} messages"

    report.done += await asyncio.gather(*(lie(*way) for way in ways))
    await run.fleet.heal(*tees)
    await run.arrived(await run.plant())


async def cpctl(run: Run, report: Report) -> None:
    """What people abroad see in their terminals: commands, their errors, and residency reports."""
    await run.arrived(await run.plant())
    there = ("--partition", f"{HOME}.prod.pinned")
    shared = ("--partition", f"{HOME}.prod.config")
    state = ("--partition", f"{HOME}.prod.state")
    commands: list[Sequence[str]] = [("status",), ("member", "health"), ("kill", "list")]
    for where in (there, shared, state):
        commands += [("flag", "list", *where), ("flag", "history", PLAIN, *where), ("workflow", "list", *where)]
        commands += [("workflow", "get", PLAIN, *where), ("election", "list", *where), ("log", *where)]
    turn = asyncio.Semaphore(3)

    async def one(region: str, arguments: Sequence[str], role: str) -> int:
        identity = run.fleet.regions[region].identity(role, f"{role}-{time.monotonic_ns()}")
        async with turn:
            code, out, problem = await run_cpctl(identity, run.fleet.regions[region].addresses[:1], *arguments)
        run.ears[region].hear(f"cpctl {' '.join(arguments)}", (out + problem).encode())
        return code

    work = [one(ABROAD, arguments, "operator") for arguments in commands]
    work.append(one(NEIGHBOUR, ("log", *shared), "operator"))
    codes = await asyncio.gather(*work)
    if 0 not in codes or 3 not in codes:
        raise NotHappened(f"no command was answered, or none denied: exit codes {sorted(set(codes))}")
    for region in OTHERS:
        bundle = run.fleet.folder / f"{region}.tar"
        if await one(region, ("region", "report", "--out", str(bundle)), "reviewer") or not bundle.exists():
            raise NotHappened(f"{region} wrote no report: {run.ears[region].heard[-1][1]!r}")
    report.done.append(f"{len(codes)} commands ({dict(Counter(codes))} by exit code), {len(OTHERS)} residency reports")


async def replaced(run: Run, report: Report) -> None:
    """A member of the other region loses its disk, and gets all from its peers."""
    tag = await run.plant()
    await run.arrived(tag)
    region = run.fleet.regions[ABROAD]
    lost = region.nodes[2]
    lost.kill()
    run.fleet.empty(ABROAD, 2)
    async with run.writing():
        lost.start("--replace")
        identity = region.identity("operator", "at-the-new-one")
        header = api.RequestHeader(partition=f"{HOME}.prod.config", consistency=api.LOCAL)
        asked = Asked("GetFlag", api.GetFlagRequest(header=header, name=f"new-{tag}").SerializeToString())
        async with Caller(region.addresses[2], _credentials(identity), run.ears[ABROAD], "new member") as there:
            end = time.monotonic() + _ARRIVES_S
            while (reply := await there.ask(asked)) is None or run.words.shared.encode() not in reply:
                if time.monotonic() > end:
                    raise NotHappened("the new member has no copies")
                await asyncio.sleep(_POLL_S)
    await run.arrived(await run.plant())
    report.done.append("n3 lost its disk, and has all copies again")


class _Drilling:
    """Operators with cpctl: each of a region, and one who counts at the home and at its neighbour as well."""

    def __init__(self, run: Run, report: Report) -> None:
        self._run, self._report = run, report
        self._environ = {**os.environ, "XDG_CONFIG_HOME": str(run.fleet.folder / "settings")}
        self._people = {of: run.fleet.regions[of].identity("operator", f"drills-{of}") for of in (HOME, ABROAD)}
        self.commands = 0

    async def prepare(self) -> None:
        """Make the contexts `home` and `neighbour`, and a key for each one's records."""
        for context, region in (("home", HOME), ("neighbour", NEIGHBOUR)):
            served = self._run.fleet.regions[region]
            at = served.identity("operator", "takes-part")
            files = [f"--{option}={at[part]}" for option, part in _FILES.items()]
            await self._cpctl(HOME, at, "context", "set", context, "--address", served.addresses[0], *files)
        for region, who in self._people.items():
            await self._cpctl(region, who, "drill", "key", "new", str(self._key(region)))

    async def drill(self, region: str, *chosen: str) -> None:
        """Plan, run, report and verify a drill. Raises `NotHappened`."""
        who, where = self._people[region], self._run.fleet.folder / region / "drills"
        await self._cpctl(region, who, "drill", "plan", *chosen)
        # A move says how long writes may pause, not how long anything is down.
        down = () if chosen[0] == "move-home" else ("--down", f"{self._run.seconds:g}")
        given = (*down, "--calm", "0.3", "--yes", "--reason", "leaks", "--out", str(where))
        signs = ("--signing-key", str(self._key(region)))
        told = await self._cpctl(region, who, "drill", "run", *chosen, *given, *signs)
        made = sorted(where.glob(f"*-{chosen[0]}-*.json"))
        if not made:
            raise NotHappened(f"{chosen[0]} of {region} left no record: {told[-500:]!r}")
        await self._cpctl(region, who, "drill", "report", str(made[-1]))
        await self._cpctl(region, who, "drill", "verify", str(made[-1]), "--trust", f"{self._key(region)}.pub")
        kept = json.loads(made[-1].read_bytes())["record"]
        if kept["ended_early"]:
            raise NotHappened(f"{chosen[0]} of {region} ended early: {kept['ended_early']}")
        self._report.done.append(f"{chosen[0]} of {region} ({kept['verdict']})")

    def _key(self, region: str) -> Path:
        return self._run.fleet.folder / region / "drill.key"

    async def _cpctl(self, region: str, identity: Certificate, *arguments: str) -> bytes:
        run, addresses = self._run, self._run.fleet.regions[region].addresses[:1]
        _, out, problem = await run_cpctl(identity, addresses, *arguments, environ=self._environ)
        told, command = (out + problem).encode(), f"cpctl {' '.join(arguments[:4])}"
        self.commands += 1
        if region != HOME:
            run.ears[region].hear(command, told)
        elif run.words.pinned.encode() in told.lower():
            self._report.findings.append(Finding("pinned", HOME, command, repr(told[-200:])))
        return told


async def drills(run: Run, report: Report) -> None:
    """People abroad run drills, one of them with an operator of the home, and the home runs its own."""
    await run.arrived(await run.plant())
    people = _Drilling(run, report)
    await people.prepare()
    async with run.writing() as written:
        await people.drill(ABROAD, "region-cut")
        lost = ("region-loss", "--peer", HOME, "--copy", f"{HOME}.prod.config")
        await people.drill(ABROAD, *lost, "--there", "home")
        await people.drill(ABROAD, "kill-under-partition", "--there", "home", "--peer", HOME)
        await people.drill(ABROAD, "move-home", "--there", "home", "--move", f"{ABROAD}.prod.config")
        await people.drill(HOME, "region-cut")
    # What may not leave the jurisdiction moves within it, and who wrote it before, and why, does not move along. Nobody
    # writes meanwhile: who writes there is known there.
    moved, elsewhere = f"{HOME}.prod.state", f"{HOME}.prod.{PINNED}"
    await people.drill(HOME, "move-home", "--there", "neighbour", "--move", moved, "--partition", elsewhere)
    # The home's own records are no other region's; what is pinned has no place in them either.
    own = Searched(HOME, {"pinned": run.words.pinned, "law": run.words.law})
    own.files(run.fleet.folder / HOME / "drills")
    report.findings += own.findings
    report.sizes[HOME] = own.sizes
    await run.arrived(await run.plant())
    report.done.append(f"{people.commands} commands, {written['done']} writes meanwhile")


Scenario = Callable[[Run, Report], Awaitable[None]]
# Listing comes first: only then is the other region fresh.
SCENARIOS: Final[Mapping[str, Scenario]] = {
    "listing": listing,
    "following": following,
    "cut": cut,
    "one-way": one_way,
    "flapping": flapping,
    "narrowed": narrowed,
    "asking": asking,
    "peer": peer,
    "cpctl": cpctl,
}
_ALONE: Final[Mapping[str, Scenario]] = {"replaced": replaced, "drills": drills}
"""Each has regions of its own."""
_SIZES: Final[Mapping[str, Mapping[str, int]]] = {
    "replaced": {HOME: 1, NEIGHBOUR: 1, ABROAD: 3},
    "drills": {HOME: 1, NEIGHBOUR: 1, ABROAD: 1},
}
ALL: Final = "all"
SHORT: Final = "short"
"""What every change has to pass, in less than a minute: the others are the long ones."""
_SETS: Final[Mapping[str, Sequence[str]]] = {
    ALL: [*SCENARIOS, *_ALONE],
    SHORT: [name for name in SCENARIOS if name not in ("asking", "peer", "cpctl")],
}

Say = Callable[[str], None]


async def go(names: Sequence[str], seed: int, seconds: float, folder: Path, say: Say) -> list[Report]:
    """Run these scenarios, and the control experiment after them."""
    reports: list[Report] = []
    together = [name for name in names if name in SCENARIOS]
    if together:
        (folder / "fleet").mkdir()
        run = Run(folder / "fleet", seed, seconds, dict.fromkeys((HOME, *OTHERS), 1))
        reports += await _one_fleet(run, {name: SCENARIOS[name] for name in together}, say)
    for name in names:
        if name in _ALONE:
            (folder / name).mkdir()
            run = Run(folder / name, seed + 1, seconds, _SIZES[name], drills=name == "drills")
            reports += await _one_fleet(run, {name: _ALONE[name]}, say)
    return reports


async def _one_fleet(run: Run, scenarios: Mapping[str, Scenario], say: Say) -> list[Report]:
    reports = []
    fresh = "listing" in scenarios
    try:
        async with run.fleet.running(HOME, NEIGHBOUR, *(() if fresh else (ABROAD,))):
            say("starting regions")
            await run.ready(HOME, NEIGHBOUR, *(() if fresh else (ABROAD,)))
            for name, scenario in scenarios.items():
                say(name)
                reports.append(await _performed(name, run, scenario))
                say(f"{name}: {reports[-1].verdict} after {reports[-1].seconds:.0f} s {reports[-1].problem}".rstrip())
            control = Report("control")
            began = time.monotonic()
            say("control")
            await run.search(control, control=True)
            for region in OTHERS:
                await run.fleet.end(region, politely=True)
        say("at rest")
        rest = Report("at rest", ["nodes ended; every row of their stores read"])
        await asyncio.to_thread(run.search_rows, rest)
        rows = Report("control")
        await asyncio.to_thread(run.search_rows, rows, control=True)
        control.findings += rows.findings
        control.sizes = {region: {**control.sizes[region], **rows.sizes[region]} for region in OTHERS}
        reports += [rest, _turned(control, run)]
        control.seconds = time.monotonic() - began
    finally:
        await run.close()
    return reports


async def _performed(name: str, run: Run, scenario: Scenario) -> Report:
    report, began = Report(name), time.monotonic()
    try:
        async with asyncio.timeout(_SCENARIO_S):
            await scenario(run, report)
    except (NotHappened, Unplanted, TimeoutError) as error:
        report.problem = f"{type(error).__name__}: {error}"
    finally:
        run.fleet.release()
    await run.search(report)
    report.seconds = time.monotonic() - began
    return report


def _turned(control: Report, run: Run) -> Report:
    """The control experiment is good if what may be elsewhere is found in each sort of place that can hold it."""
    wanted = {"files", "rows", "links", "told to callers"}
    for region in OTHERS:
        found = {each.place.partition(":")[0] for each in control.findings if each.region == region}
        if missing := sorted(wanted - found):
            control.problem = f"shared words were not found in {', '.join(missing)} of {region}: the search is blind"
    if not run.searchable_at_home():
        control.problem = "the planted words were not found on the disk of their home: the search is blind"
    sorts = Counter(each.place.partition(":")[0] for each in control.findings)
    control.done.append(
        "shared words found: " + ", ".join(f"{sort} {number}" for sort, number in sorted(sorts.items()))
    )
    control.findings.clear()
    return control


@click.command("leaks")
@click.option("--scenario", type=click.Choice([*_SETS, *SCENARIOS, *_ALONE]), default=ALL, show_default=True)
@click.option("--seed", type=click.IntRange(1), default=1, show_default=True, help="What the words are drawn from.")
@click.option(
    "--seconds", type=click.FloatRange(0.5, 600.0), default=1.5, show_default=True, help="How long a fault lasts."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def leaks_command(*, scenario: str, seed: int, seconds: float, as_json: bool) -> None:
    """Plant words in what must not leave a region, break federation in every way, and look for them elsewhere.

    Exit code 1: one was found, a scenario did not take place, or the control experiment found nothing.
    """
    console = Console(stderr=True, highlight=False)
    names = _SETS.get(scenario, [scenario])
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="leaks-") as folder, console.status("") as status:
        if not console.is_terminal:
            status.stop()

        def say(what: str) -> None:
            console.print(what) if not console.is_terminal else status.update(what)

        reports = asyncio.run(go(names, seed, seconds, Path(folder), say))
    if as_json:
        print(json.dumps([{**asdict(each), "verdict": each.verdict} for each in reports], indent=1))
    else:
        show(reports, Console(highlight=False, width=None if console.is_terminal else 160))
    sys.exit(any(each.verdict != "clean" for each in reports))


def show(reports: Sequence[Report], console: Console) -> None:
    """Print what was done, what was searched, and what was found."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("scenario", "verdict", "s", "searched", "done"):
        table.add_column(heading, justify="right" if heading == "s" else "left", overflow="fold")
    for each in reports:
        searched = "\n".join(
            f"{region}: " + ", ".join(f"{sort} {number / 1e3:,.0f} kB" for sort, number in sorted(sorts.items()))
            for region, sorts in each.sizes.items()
        )
        table.add_row(each.name, each.verdict, f"{each.seconds:.0f}", searched, "; ".join(each.done) or each.problem)
    console.print(table)
    for each in reports:
        if each.problem:
            console.print(f"{each.name}: {each.problem}")
        for finding in each.findings:
            console.print(
                f"{each.name}: {finding.what} in {finding.region}, {finding.place}: {finding.context}", markup=False
            )


async def _until(condition: Callable[[], object], problem: str) -> None:
    end = time.monotonic() + _HOLDS_S
    while not condition():
        if time.monotonic() > end:
            raise NotHappened(problem)
        await asyncio.sleep(0.01)


async def _page(address: str) -> bytes:
    """The metrics of a node."""
    host, port = split_address(address)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(_TOOL_S):
            return await reader.read()
    finally:
        writer.close()


def _credentials(identity: Certificate) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        identity["ca"].read_bytes(), identity["key"].read_bytes(), identity["cert"].read_bytes()
    )
