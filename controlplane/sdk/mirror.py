"""PURE. A local copy of an environment's flags, kill switches and other regions' stops that knows how old it may be.

An agent asks it before every act, so a question costs a dictionary look-up and no call. It is fed with what a watch
delivers and with *marks*, and is told the time; it neither reads clocks nor does I/O.

1. Content changes only as a whole: a transaction at a time, or from one complete listing to another. Readers, in any
   thread, see one immutable `_View`.
2. It has everything up to `revision`. Revisions never go back, unless it is told that the region was started over; what
   comes twice is ignored. It has a part for each of the watches that feed it, and `revision` is that of the part
   behind: what other regions stop is one part, and where flags and switches lie in two partitions, they are two more.
3. **Age.** A mark says: a question sent at `sent_s` on the local clock was answered by a node that stood at revision R
   and whose state lacked nothing older than `age_ms`. The answer left after the question did, so that state lacks
   nothing that was committed before `sent_s - age_ms`. Once the mirror holds everything up to R, neither does the
   mirror. No clocks are compared, and neither delay nor a silent server can make it look fresher than it is.
   The age is that of the own region's state. What that region has heard of the others may be older: a region that is
   cut off goes on, with what it knew.
4. Configuration wants the last known good and says when it is stale; *permission fails closed*: asking a mirror older
   than its bound, or one that never was complete, raises `MirrorStale`.
5. **Other regions.** Their stops are known by ids. An asked subject is looked up under the ids that it would have; so
   the fleet has to be known, and as long as it is not, every stop of another region stops everybody. The environment
   need not be: a watch shows the stops of one environment only, there are four, and no id is that of another's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from math import inf
from typing import NamedTuple, TypeVar

from controlplane.features import flags, switches
from controlplane.features.switches import Heard
from controlplane.identity import ENVIRONMENTS
from controlplane.kernel.transaction import Row
from controlplane.sdk.exceptions import MirrorStale
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records

KINDS = ("flag", "switch", "exception")
"""What a mirror holds of its own region,"""
STOPS = ("stop",)
"""and of the others."""
_APART = (("flag",), ("switch", "exception"))
MARKS_MAX = 64
"""Marks that wait for the watch to catch up."""
MARK_EVERY_S = 0.05
"""Closer marks than this are not worth keeping apart."""
ANSWERS_MAX = 4096
"""Answers remembered per view; all of them go with the view."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How an agent is to run, evaluated at one revision.

    `fields` says of each field which flag and variant it came from, why, and the flag's revision. `stale`: the mirror
    was older than its bound when asked, so this is the last known good.
    """

    prompt_version: str
    model: str
    tools_enabled: tuple[str, ...]
    max_iterations: int
    guardrails: tuple[str, ...]
    revision: int
    fields: Mapping[str, api.ConfigField] = field(repr=False, compare=False)
    stale: bool = False


K = TypeVar("K")
V = TypeVar("V")
_Asked = tuple[str, str, str, tuple[str, ...]]
_StopKey = tuple[str, int, int, str]
"""Region, epoch, revision of creation and id: one record, also where a region told of stops in one partition after
another."""


class _Stop(NamedTuple):
    """A stop of another region."""

    id: str
    engaged: bool
    heard: Heard


class _Changed(NamedTuple):
    """A change, and the epoch that it has at its home, if it is a copy."""

    change: api.Change
    epoch: int


@dataclass(slots=True)
class _View:
    """One state of the records by name, never changed but for the answers remembered."""

    fleet: str = ""
    flags: dict[str, Row[records.Flag]] = field(default_factory=dict)
    switches: dict[str, api.SwitchView] = field(default_factory=dict)
    exceptions: dict[str, records.StopException] = field(default_factory=dict)
    stops: dict[_StopKey, _Stop] = field(default_factory=dict)
    engaged: dict[str, api.SwitchView] = field(init=False)
    abroad: dict[str, list[Heard]] = field(init=False)
    stopping: bool = field(init=False)
    configs: dict[tuple[str, str], AgentConfig] = field(init=False, default_factory=dict)
    answers: dict[_Asked, tuple[api.SwitchView, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.engaged = {name: view for name, view in self.switches.items() if view.switch.engaged}
        told: dict[str, list[tuple[Heard, bool]]] = {}
        for stop in self.stops.values():
            told.setdefault(stop.id, []).append((stop.heard, stop.engaged))
        found = {each: switches.in_force(stops) for each, stops in told.items()}
        self.abroad = {each: stops for each, stops in found.items() if stops}
        self.stopping = bool(self.engaged or self.abroad)

    def without(self, kinds: tuple[str, ...]) -> _View:
        """Return a view that lacks these kinds."""
        return _View(
            self.fleet,
            {} if "flag" in kinds else self.flags,
            {} if "switch" in kinds else self.switches,
            {} if "exception" in kinds else self.exceptions,
            {} if "stop" in kinds else self.stops,
        )

    def changed(self, changes: Iterable[_Changed]) -> _View:
        """Return the view after a transaction."""
        after = _View(self.fleet, dict(self.flags), dict(self.switches), dict(self.exceptions), dict(self.stops))
        for change, epoch in changes:
            if change.HasField("flag"):
                after.flags[change.name] = _row(change)
            elif change.HasField("switch"):
                after.switches[change.name] = api.SwitchView(switch=change.switch, meta=change.meta)
            elif change.HasField("exception"):
                after.exceptions[change.name] = change.exception
            elif change.kind == "flag":
                after.flags.pop(change.name, None)
            elif change.kind == "exception":
                after.exceptions.pop(change.name, None)
            elif change.kind == "stop" and change.home:
                after._take_stop(change, epoch)
        after.__post_init__()
        return after

    def _take_stop(self, change: api.Change, epoch: int) -> None:
        at = change.meta
        key = (change.home, epoch, at.created, change.name)
        if change.HasField("stop"):
            meta = api.Meta(revision=at.revision, created=at.created, version=at.version, at_ms=at.at_ms)
            self.stops[key] = _Stop(change.name, change.stop.engaged, Heard(change.home, epoch, meta))
        else:
            self.stops.pop(key, None)

    def told(self) -> dict[_StopKey, api.StopView]:
        """Return the stops of other regions, with what is known of them here; of each the newest epoch."""
        if not self.stops:
            return {}
        own = chain(self.switches, map(switches.scope_of_exception, self.exceptions))
        known = {each: name for name in own for each in _ids(self.fleet, name)} if self.fleet else {}
        newest: dict[tuple[str, str], int] = {}
        for stop in self.stops.values():
            of = (stop.heard.region, stop.id)
            newest[of] = max(stop.heard.epoch, newest.get(of, 0))
        return {
            key: switches.stop_view(
                stop.id, stop.heard, self.exceptions.get, engaged=stop.engaged, name=known.get(stop.id)
            )
            for key, stop in self.stops.items()
            if stop.heard.epoch == newest[stop.heard.region, stop.id]
        }


@dataclass(slots=True)
class _Part:
    """What one watch delivers."""

    revision: int = 0
    synced: bool = False
    awaits_listing: bool = True
    listing: list[_Changed] = field(default_factory=list)


class Mirror:
    """Flags, kill switches and other regions' stops, as of `revision`.

    Times are seconds on one monotonic clock of the caller's choice.
    """

    def __init__(self, age_max_s: float) -> None:
        self.age_max_s = age_max_s
        self.revision = 0
        self.synced = False
        self._filled = False
        self._fresh_s = -inf
        self._view = _View()
        self._parts: dict[tuple[str, ...], _Part] = {KINDS: _Part(), STOPS: _Part()}
        self._marks: deque[tuple[int, float]] = deque()

    # Asking

    def age_s(self, now_s: float) -> float:
        """Return an upper bound on the age of the content; infinity before the first complete listing."""
        return now_s - self._fresh_s

    def stopped(
        self,
        now_s: float,
        tenant: str = "",
        agent_type: str = "",
        workflow: str = "",
        tools: Collection[str] = (),
    ) -> tuple[api.SwitchView, ...]:
        """Return what stops the subject; nothing: it may act. Raises MirrorStale; TypeError if `tools` is one string.

        That is every engaged switch of its own region that covers it, and every stop of another region that does and
        is not excepted here: the latter with `region`, and with the scope that it was found under. While the fleet is
        not known (rule 5), their scope has no kind, and is named by the id.
        """
        if now_s - self._fresh_s > self.age_max_s:
            raise MirrorStale(now_s - self._fresh_s, self.age_max_s)
        # Also while nothing is stopped: what cannot be asked must not be found out when something is.
        names = tools if type(tools) is tuple else _names(tools)
        view = self._view
        if not view.stopping:
            return ()
        asked = (tenant, agent_type, workflow, names)
        answer = view.answers.get(asked)
        return answer if answer is not None else _judge(view, asked)

    def config(self, now_s: float, user: str, tenant: str) -> AgentConfig:
        """Return the configuration for a user of a tenant. Raises MirrorStale only before the first listing."""
        answer = self._view.configs.get((user, tenant))
        if answer is None:
            answer = self._evaluate(user, tenant)
        if now_s - self._fresh_s > self.age_max_s:
            return replace(answer, stale=True)
        return answer

    def flag(self, name: str) -> records.Flag | None:
        """Return a flag's record, if there is one."""
        row = self._view.flags.get(name)
        return row.value if row else None

    def engaged(self) -> tuple[api.SwitchView, ...]:
        """Return every engaged switch of the own region, whatever it covers and however old that knowledge is."""
        return tuple(self._view.engaged.values())

    def stops(self) -> tuple[api.StopView, ...]:
        """Return the stops of other regions, released ones too, however old that knowledge is."""
        return tuple(self._view.told().values())

    # Feeding

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """The kinds of each part: what has to be watched."""
        return tuple(self._parts)

    def split(self) -> tuple[tuple[str, ...], ...]:
        """Have parts of their own for flags and for switches, which are returned. Only before either was fed."""
        del self._parts[KINDS]
        self._parts |= {kinds: _Part() for kinds in _APART}
        return _APART

    def of_fleet(self, fleet: str) -> None:
        """Learn of which fleet the region is, as its nodes say."""
        if fleet and fleet != self._view.fleet:
            self._view = replace(self._view, fleet=fleet)

    def resume_at(self, kinds: tuple[str, ...]) -> int | None:
        """Return the revision from which a part's watch can go on; None: it needs a listing."""
        part = self._parts[kinds]
        return part.revision if part.synced else None

    def start_over(self) -> None:
        """Learn that the region no longer has what this is of: permission waits for a new listing of every part.

        What is here stays until then, as the last known good configuration.
        """
        self.revision, self.synced, self._fresh_s = 0, False, -inf
        self._marks.clear()
        for part in self._parts.values():
            part.revision, part.synced, part.awaits_listing = 0, False, True
            part.listing.clear()

    def restart(self, kinds: tuple[str, ...], *, listing: bool) -> None:
        """Learn that a part's watch begins anew, with a listing or where it was; what came of an earlier one goes."""
        part = self._parts[kinds]
        part.listing.clear()
        part.awaits_listing = listing

    def feed(self, kinds: tuple[str, ...], reply: api.WatchReply) -> list[api.SwitchView]:
        """Take in one message of a part's watch; return the kill switches, and stops of other regions, that it changed.

        A stop of another region is returned with `region`; `engaged` says if it is heeded here. Its scope is that of
        the own region's switch or exception for the same; where there is none it has no kind, and is named by the id.
        A new listing replaces the content when it is complete, not before.
        """
        before, part = self._view, self._parts[kinds]
        changes = [_Changed(change, reply.epoch) for change in reply.changes]
        if reply.kind == api.WatchReply.SNAPSHOT:
            part.listing.extend(changes)
        elif reply.kind == api.WatchReply.SYNCED:
            self._complete(kinds, part, reply.revision)
        elif reply.kind != api.WatchReply.STARTED and not part.awaits_listing and reply.revision > part.revision:
            if changes:
                self._view = before.changed(changes)
            self._advance(part, reply.revision)
        return _differences(before, self._view)

    def mark(self, sent_s: float, revision: int, age_ms: int) -> None:
        """Note that a question sent at `sent_s` was answered by a node at `revision`, of that age (rule 3)."""
        fresh_s = sent_s - age_ms / 1000
        if self.synced and revision <= self.revision:
            self._fresh_s = max(self._fresh_s, fresh_s)
        elif not self._marks or fresh_s >= self._marks[-1][1] + MARK_EVERY_S:
            if len(self._marks) == MARKS_MAX:
                self._marks.pop()
            self._marks.append((revision, fresh_s))

    def _complete(self, kinds: tuple[str, ...], part: _Part, revision: int) -> None:
        listing, part.listing, part.awaits_listing = part.listing, [], False
        if revision < part.revision:
            # The node that listed is behind; what is here is newer, and this watch will get there.
            return
        self._view = self._view.without(kinds).changed(listing)
        part.synced = True
        self._advance(part, revision)

    def _advance(self, part: _Part, revision: int) -> None:
        part.revision = revision
        self.synced = all(each.synced for each in self._parts.values())
        self._filled |= self.synced
        self.revision = min(each.revision for each in self._parts.values())
        while self.synced and self._marks and self._marks[0][0] <= self.revision:
            self._fresh_s = max(self._fresh_s, self._marks.popleft()[1])

    def _evaluate(self, user: str, tenant: str) -> AgentConfig:
        if not self._filled:
            raise MirrorStale(inf, self.age_max_s)
        view, revision = self._view, self.revision
        config, fields = flags.agent_config(view.flags.get, user, tenant)
        answer = AgentConfig(
            prompt_version=config.prompt_version,
            model=config.model,
            tools_enabled=tuple(config.tools_enabled),
            max_iterations=config.max_iterations,
            guardrails=tuple(config.guardrails),
            revision=revision,
            fields={each.name: each for each in fields},
        )
        _remember(view.configs, (user, tenant), answer)
        return answer


def _names(tools: Collection[str]) -> tuple[str, ...]:
    if isinstance(tools, str | bytes):
        # Its letters would be taken for tools, and none of them is stopped.
        raise TypeError(f"tools is a collection of names, not one: say tools=({tools!r},)")
    return tuple(tools)


def _judge(view: _View, asked: _Asked) -> tuple[api.SwitchView, ...]:
    tenant, agent_type, workflow, tools = asked
    subject = api.Subject(tenant=tenant, agent_type=agent_type, workflow=workflow, tools=tools)
    answer = [view.engaged[name] for name in switches.stopping(subject, view.engaged.__contains__)]
    if view.fleet:
        answer += switches.heeded(subject, lambda name: _heard(view, name), view.exceptions.get)
    else:
        answer += [_shown(stop, view.stops[key].heard) for key, stop in view.told().items() if stop.engaged]
    _remember(view.answers, asked, tuple(answer))
    return tuple(answer)


def _heard(view: _View, name: str) -> Iterable[Heard]:
    if not view.abroad:
        return ()
    return chain.from_iterable(view.abroad.get(each, ()) for each in _ids(view.fleet, name))


@lru_cache(maxsize=1 << 14)
def _ids(fleet: str, name: str) -> tuple[str, ...]:
    """The ids that a switch's record name may have."""
    return tuple(switches.opaque(fleet, environment, name) for environment in ENVIRONMENTS)


def _shown(stop: api.StopView, heard: Heard) -> api.SwitchView:
    """A stop of another region as one looks at a switch."""
    scope = stop.scope if stop.HasField("scope") else records.Scope(name=stop.id)
    switch = records.Switch(scope=scope, engaged=stop.engaged and not stop.excepted)
    return api.SwitchView(switch=switch, meta=heard.meta, region=stop.region)


def _differences(before: _View, after: _View) -> list[api.SwitchView]:
    if before is after:
        return []
    old = before.switches
    own = [view for name, view in after.switches.items() if old.get(name) is not view and old.get(name) != view]
    if not before.stops and not after.stops:
        return own
    told, now = before.told(), after.told()
    still = {(stop.region, stop.id) for stop in now.values()}
    for key, stop in told.items():
        if stop.engaged and (stop.region, stop.id) not in still:
            # Its region shares it no longer.
            stop.engaged = False
            own.append(_shown(stop, before.stops[key].heard))
    return own + [_shown(stop, after.stops[key].heard) for key, stop in now.items() if told.get(key) != stop]


def _row(change: api.Change) -> Row[records.Flag]:
    meta = change.meta
    return Row(
        name=change.name,
        value=change.flag,
        revision=meta.revision,
        created=meta.created,
        version=meta.version,
        actor=meta.actor,
        action=meta.action,
        reason=meta.reason,
        at_ms=meta.at_ms,
    )


def _remember(answers: dict[K, V], asked: K, answer: V) -> None:
    if len(answers) >= ANSWERS_MAX:
        answers.clear()
    answers[asked] = answer
