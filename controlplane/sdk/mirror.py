"""PURE. A local copy of an environment's flags and kill switches that knows how old it may be.

An agent asks it before every act, so a question costs a dictionary look-up and no call. It is fed with what a watch
delivers and with *marks*, and is told the time; it neither reads clocks nor does I/O.

1. Content changes only as a whole: a transaction at a time, or from one complete listing to another. Readers, in any
   thread, see one immutable `_View`.
2. What it has is everything up to `revision`, of the kinds it watches. Revisions never go back; what comes twice is
   ignored.
3. **Age.** A mark says: a question sent at `sent_s` on the local clock was answered by a node that stood at revision R
   and whose state lacked nothing older than `age_ms`. The answer left after the question did, so that state lacks
   nothing that was committed before `sent_s - age_ms`. Once the mirror holds everything up to R, neither does the
   mirror. No clocks are compared, and neither delay nor a silent server can make it look fresher than it is.
4. Configuration wants the last known good and says when it is stale; *permission fails closed*: asking a mirror older
   than its bound, or one that never was complete, raises `MirrorStale`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import TypeVar

from controlplane.features import flags, switches
from controlplane.sdk.exceptions import MirrorStale
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records

KINDS = ("flag", "switch")
"""What a mirror watches."""
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


@dataclass(slots=True)
class _View:
    """One state of the records, never changed but for the answers remembered."""

    flags: dict[str, tuple[records.Flag, int]]
    switches: dict[tuple[int, str], api.SwitchView]
    engaged: dict[tuple[int, str], api.SwitchView] = field(init=False)
    configs: dict[tuple[str, str], AgentConfig] = field(init=False, default_factory=dict)
    stops: dict[_Asked, tuple[api.SwitchView, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.engaged = {scope: view for scope, view in self.switches.items() if view.switch.engaged}


class Mirror:
    """Flags and kill switches, as of `revision`. Times are seconds on one monotonic clock of the caller's choice."""

    def __init__(self, age_max_s: float) -> None:
        self.age_max_s = age_max_s
        self.revision = 0
        self.synced = False
        self._fresh_s = -inf
        self._view = _View({}, {})
        self._listing: list[api.Change] | None = None
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
        tools: tuple[str, ...] = (),
    ) -> tuple[api.SwitchView, ...]:
        """Return the engaged switches that cover the subject; none: it may act. Raises MirrorStale."""
        if now_s - self._fresh_s > self.age_max_s:
            raise MirrorStale(now_s - self._fresh_s, self.age_max_s)
        view = self._view
        if not view.engaged:
            return ()
        asked = (tenant, agent_type, workflow, tools)
        answer = view.stops.get(asked)
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
        found = self._view.flags.get(name)
        return found[0] if found else None

    def engaged(self) -> tuple[api.SwitchView, ...]:
        """Return every engaged switch, whatever it covers and however old that knowledge is."""
        return tuple(self._view.engaged.values())

    # Feeding

    def feed(self, reply: api.WatchReply) -> list[api.SwitchView]:
        """Take in one message of the watch; return the kill switches that it changed.

        A new listing replaces the content when it is complete, not before.
        """
        if reply.kind == api.WatchReply.SNAPSHOT:
            self._listing = [*(self._listing or ()), *reply.changes]
            return []
        if reply.kind == api.WatchReply.SYNCED:
            return self._complete(reply.revision)
        changed = self._change(reply.changes) if reply.revision > self.revision else []
        if self.synced:
            self._advance(reply.revision)
        return changed

    def restart(self, *, listing: bool) -> None:
        """Begin anew after the watch broke: with a listing, or from `revision` on. The content stays meanwhile."""
        self._listing = [] if listing else None

    def mark(self, sent_s: float, revision: int, age_ms: int) -> None:
        """Note that a question sent at `sent_s` was answered by a node at `revision`, of that age (rule 3)."""
        fresh_s = sent_s - age_ms / 1000
        if self.synced and revision <= self.revision:
            self._fresh_s = max(self._fresh_s, fresh_s)
        elif not self._marks or fresh_s >= self._marks[-1][1] + MARK_EVERY_S:
            if len(self._marks) == MARKS_MAX:
                self._marks.pop()
            self._marks.append((revision, fresh_s))

    def _complete(self, revision: int) -> list[api.SwitchView]:
        listing, self._listing = self._listing or [], None
        if self.synced and revision < self.revision:
            return []
        before = self._view.switches
        self._view = _View(*_sorted_out(listing))
        self.synced = True
        self._advance(revision)
        return [view for scope, view in self._view.switches.items() if before.get(scope) != view]

    def _change(self, changes: Iterable[api.Change]) -> list[api.SwitchView]:
        changed_flags, changed_switches = dict(self._view.flags), dict(self._view.switches)
        touched = []
        for change in changes:
            if change.kind == "flag":
                _put_flag(changed_flags, change)
            elif change.kind == "switch" and change.HasField("switch"):
                touched.append(_put_switch(changed_switches, change))
        if changes:
            self._view = _View(changed_flags, changed_switches)
        return touched

    def _advance(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        while self._marks and self._marks[0][0] <= self.revision:
            self._fresh_s = max(self._fresh_s, self._marks.popleft()[1])

    def _evaluate(self, user: str, tenant: str) -> AgentConfig:
        if not self.synced:
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


def _judge(view: _View, asked: _Asked) -> tuple[api.SwitchView, ...]:
    tenant, agent_type, workflow, tools = asked
    subject = api.Subject(tenant=tenant, agent_type=agent_type, workflow=workflow, tools=tools)
    answer = tuple(switches.covering(subject, lambda scope: view.engaged.get((scope.kind, scope.name))))
    _remember(view.stops, asked, answer)
    return answer


def _sorted_out(
    changes: Iterable[api.Change],
) -> tuple[dict[str, tuple[records.Flag, int]], dict[tuple[int, str], api.SwitchView]]:
    listed_flags: dict[str, tuple[records.Flag, int]] = {}
    listed_switches: dict[tuple[int, str], api.SwitchView] = {}
    for change in changes:
        if change.kind == "flag":
            _put_flag(listed_flags, change)
        elif change.kind == "switch" and change.HasField("switch"):
            _put_switch(listed_switches, change)
    return listed_flags, listed_switches


def _put_flag(into: dict[str, tuple[records.Flag, int]], change: api.Change) -> None:
    if change.HasField("flag"):
        into[change.name] = (change.flag, change.meta.revision)
    else:
        into.pop(change.name, None)


def _put_switch(into: dict[tuple[int, str], api.SwitchView], change: api.Change) -> api.SwitchView:
    scope = change.switch.scope
    view = into[scope.kind, scope.name] = api.SwitchView(switch=change.switch, meta=change.meta)
    return view


def _remember(answers: dict[K, V], asked: K, answer: V) -> None:
    if len(answers) >= ANSWERS_MAX:
        answers.clear()
    answers[asked] = answer
