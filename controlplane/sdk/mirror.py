"""PURE. A local copy of an environment's flags and kill switches that knows how old it may be.

An agent asks it before every act, so a question costs a dictionary look-up and no call. It is fed with what a watch
delivers and with *marks*, and is told the time; it neither reads clocks nor does I/O.

1. Content changes only as a whole: a transaction at a time, or from one complete listing to another. Readers, in any
   thread, see one immutable `_View`.
2. It has everything up to `revision`. Revisions never go back; what comes twice is ignored. A watch sees one partition,
   so where flags and switches lie in two, the mirror has two parts, and `revision` is that of the one behind.
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
from controlplane.kernel.transaction import Row
from controlplane.sdk.exceptions import MirrorStale
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records

KINDS = ("flag", "switch")
"""What a mirror holds."""
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
    """One state of the records by name, never changed but for the answers remembered."""

    flags: dict[str, Row[records.Flag]]
    switches: dict[str, api.SwitchView]
    engaged: dict[str, api.SwitchView] = field(init=False)
    configs: dict[tuple[str, str], AgentConfig] = field(init=False, default_factory=dict)
    stops: dict[_Asked, tuple[api.SwitchView, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.engaged = {name: view for name, view in self.switches.items() if view.switch.engaged}

    def changed(self, changes: Iterable[api.Change]) -> _View:
        """Return the view after a transaction."""
        after = _View(dict(self.flags), dict(self.switches))
        for change in changes:
            if change.HasField("flag"):
                after.flags[change.name] = _row(change)
            elif change.HasField("switch"):
                after.switches[change.name] = api.SwitchView(switch=change.switch, meta=change.meta)
            elif change.kind == "flag":
                after.flags.pop(change.name, None)
        after.__post_init__()
        return after


@dataclass(slots=True)
class _Part:
    """What one watch delivers."""

    revision: int = 0
    synced: bool = False
    awaits_listing: bool = True
    listing: list[api.Change] = field(default_factory=list)


class Mirror:
    """Flags and kill switches, as of `revision`. Times are seconds on one monotonic clock of the caller's choice."""

    def __init__(self, age_max_s: float) -> None:
        self.age_max_s = age_max_s
        self.revision = 0
        self.synced = False
        self._fresh_s = -inf
        self._view = _View({}, {})
        self._parts: dict[tuple[str, ...], _Part] = {KINDS: _Part()}
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
        row = self._view.flags.get(name)
        return row.value if row else None

    def engaged(self) -> tuple[api.SwitchView, ...]:
        """Return every engaged switch, whatever it covers and however old that knowledge is."""
        return tuple(self._view.engaged.values())

    # Feeding

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """The kinds of each part: what has to be watched."""
        return tuple(self._parts)

    def split(self) -> None:
        """Have a part of its own for each kind. Only before anything was fed."""
        self._parts = {(kind,): _Part() for kind in KINDS}

    def resume_at(self, kinds: tuple[str, ...]) -> int | None:
        """Return the revision from which a part's watch can go on; None: it needs a listing."""
        part = self._parts[kinds]
        return part.revision if part.synced else None

    def restart(self, kinds: tuple[str, ...], *, listing: bool) -> None:
        """Learn that a part's watch begins anew, with a listing or where it was; what came of an earlier one goes."""
        part = self._parts[kinds]
        part.listing.clear()
        part.awaits_listing = listing

    def feed(self, kinds: tuple[str, ...], reply: api.WatchReply) -> list[api.SwitchView]:
        """Take in one message of a part's watch; return the kill switches that it changed.

        A new listing replaces the content when it is complete, not before.
        """
        before, part = self._view, self._parts[kinds]
        if reply.kind == api.WatchReply.SNAPSHOT:
            part.listing.extend(reply.changes)
        elif reply.kind == api.WatchReply.SYNCED:
            self._complete(kinds, part, reply.revision)
        elif reply.kind != api.WatchReply.STARTED and not part.awaits_listing and reply.revision > part.revision:
            if reply.changes:
                self._view = before.changed(reply.changes)
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
        others = _View({} if "flag" in kinds else self._view.flags, {} if "switch" in kinds else self._view.switches)
        self._view = others.changed(listing)
        part.synced = True
        self._advance(part, revision)

    def _advance(self, part: _Part, revision: int) -> None:
        part.revision = revision
        self.synced = all(each.synced for each in self._parts.values())
        self.revision = min(each.revision for each in self._parts.values())
        while self.synced and self._marks and self._marks[0][0] <= self.revision:
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
    answer = tuple(view.engaged[name] for name in switches.stopping(subject, view.engaged.__contains__))
    _remember(view.stops, asked, answer)
    return answer


def _differences(before: _View, after: _View) -> list[api.SwitchView]:
    if before is after:
        return []
    old = before.switches
    return [view for name, view in after.switches.items() if old.get(name) is not view and old.get(name) != view]


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
