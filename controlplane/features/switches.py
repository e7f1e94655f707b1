"""Kill switches: engaged or released, never deleted. An agent is stopped if any that covers it is engaged.

A switch lies in a partition that stays at home, with who threw it and why. What other regions learn of it is a `Stop`
under an opaque id, in a partition that travels; a region can only stop more by hearing of one. An agent is stopped if
any region's switch covers it: each region releases its own, and one that cannot be reached is answered for by an
exception that names exactly one stop of it.

Engaging needs one person and is idempotent. Nothing about a switch depends on a clock, and a switch that was never
thrown has no record. `covering` and `heeded` are the same functions on server, in the SDK and in checkers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

from controlplane import limits
from controlplane.errors import Invalid
from controlplane.features import checks
from controlplane.kernel import keys, machine
from controlplane.kernel.machine import Changed
from controlplane.kernel.store import View
from controlplane.kernel.transaction import Kind, Reader, Row, Tx, scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition, Scope, ScopeKind, Stop, StopException, Switch
from controlplane.v1.state_pb2 import Event

SWITCH = Kind("switch", Switch, history_kept=None, reserved=True)
STOP = Kind("stop", Stop, history_kept=None, reserved=True)
EXCEPTION = Kind("exception", StopException, history_kept=None, reserved=True)

_WORDS = {
    ScopeKind.SCOPE_REGION: "region",
    ScopeKind.SCOPE_ENVIRONMENT: "environment",
    ScopeKind.SCOPE_TENANT: "tenant",
    ScopeKind.SCOPE_AGENT_TYPE: "agent_type",
    ScopeKind.SCOPE_TOOL: "tool",
    ScopeKind.SCOPE_WORKFLOW: "workflow",
}
_SWITCH, _STOP = keys.text(SWITCH.name), keys.text(STOP.name)
_KINDS = {word: kind for kind, word in _WORDS.items()}
_NAMELESS = (ScopeKind.SCOPE_REGION, ScopeKind.SCOPE_ENVIRONMENT)


def record_name(scope: Scope) -> str:
    """The record's name for a scope, such as "tenant:acme". Raises `Invalid` for a scope that makes no sense."""
    word = _WORDS.get(scope.kind)
    if word is None:
        raise Invalid("unknown kind of scope", reason="SCOPE_UNKNOWN", field="scope.kind")
    if scope.kind in _NAMELESS:
        if scope.name:
            raise Invalid(
                f"scope {word} takes no name: it means the caller's own",
                reason="SCOPE_NAME_UNEXPECTED",
                field="scope.name",
            )
        return f"{word}:"
    return f"{word}:{checks.name(scope.name, 'scope.name')}"


def engage(tx: Tx, request: api.EngageSwitchRequest) -> api.EngageSwitchReply:
    """Stop everything in the scope. Engaging an engaged switch changes nothing and says so."""
    row, changed = _throw(tx, request.scope, engaged=True)
    return api.EngageSwitchReply(switch=_view(row), changed=changed)


def release(tx: Tx, request: api.ReleaseSwitchRequest) -> api.ReleaseSwitchReply:
    """Let the scope go on, as far as this switch is concerned. The record stays, and says who released it."""
    row, changed = _throw(tx, request.scope, engaged=False)
    return api.ReleaseSwitchReply(switch=_view(row), changed=changed)


def list_switches(reader: Reader, request: api.ListSwitchesRequest) -> api.ListSwitchesReply:
    """Switches by the name of their scope.

    A page of the engaged ones ends, with what it has found, where `limits.SWITCHES_SCANNED_MAX` were looked at: it may
    be empty, and there may be more all the same.
    """
    looked_at, seen = 0, ""

    def wanted() -> Iterator[Row[Switch]]:
        nonlocal looked_at, seen
        for row in reader.list(SWITCH, after=request.after):
            if looked_at == limits.SWITCHES_SCANNED_MAX:
                return
            looked_at, seen = looked_at + 1, row.name
            if row.value.engaged or not request.engaged_only:
                yield row

    rows, more = checks.page(wanted(), request.limit)
    following = rows[-1].name if more else ""
    if not more and looked_at == limits.SWITCHES_SCANNED_MAX:
        more, following = True, seen
    return api.ListSwitchesReply(switches=[_view(row) for row in rows], more=more, next=following)


def check(reader: Reader, request: api.CheckSwitchesRequest) -> api.CheckSwitchesReply:
    """The engaged switches that cover a subject; none: it may act."""
    checks.between(len(request.subject.tools), 0, limits.SUBJECT_TOOLS_MAX, "number of tools")
    rows = (reader.get(SWITCH, name) for name in covering(request.subject))
    return api.CheckSwitchesReply(stopped_by=[_view(row) for row in rows if row and row.value.engaged])


def covering(subject: api.Subject) -> Iterator[str]:
    """Names of all records that could stop `subject`, the widest first."""
    yield "region:"
    yield "environment:"
    if subject.tenant:
        yield f"tenant:{subject.tenant}"
    if subject.agent_type:
        yield f"agent_type:{subject.agent_type}"
    if subject.workflow:
        yield f"workflow:{subject.workflow}"
    for tool in subject.tools:
        yield f"tool:{tool}"


def travels(name: str) -> bool:
    """Whether a switch of this record name means anything to other regions."""
    return name != "region:"


def opaque(fleet: str, environment: str, name: str) -> str:
    """The id under which a switch's record name is known to other regions.

    It hides what is stopped from those who do not know the scope. It is no secret: who can guess the scope can check
    the guess.
    """
    return hashlib.sha256(f"controlplane stop v1\0{fleet}\0{environment}\0{name}".encode()).hexdigest()[:32]


def is_news(switch: Row[Switch] | None, stop: Row[Stop] | None) -> bool:
    """Whether other regions have yet to be told of a switch, `stop` being what they were told last.

    A switch that was released and engaged again is news although they were told of neither: an exception for the stop
    that they know must not cover this one.
    """
    if stop is None:
        return switch is not None and switch.value.engaged
    if switch is None:
        # A switch is never deleted. If it is gone all the same, nobody has released it.
        return False
    return switch.value.engaged != stop.value.engaged or (switch.value.engaged and switch.revision > stop.revision)


def unannounced(fleet: str, thrown: Reader, told: Reader, after: str = "") -> tuple[list[str], str]:
    """Names of the switches in `thrown` of which other regions have yet to be told by way of `told`.

    Among the first `limits.SWITCHES_SCANNED_MAX` that sort behind `after`; and after which name it goes on (empty:
    there are no more).
    """
    rows = [*islice(thrown.list(SWITCH, after=after), limits.SWITCHES_SCANNED_MAX)]
    environment = told.partition.environment
    news = [
        row.name
        for row in rows
        if travels(row.name) and is_news(row, told.get(STOP, opaque(fleet, environment, row.name)))
    ]
    return news, rows[-1].name if len(rows) == limits.SWITCHES_SCANNED_MAX else ""


def announce(tx: Tx, fleet: str, thrown: Partition, names: Iterable[str]) -> api.RequestHeader | None:
    """In a stop partition: tell other regions how the switches of these names, which lie in `thrown`, stand now.

    None if there is nothing to tell. At most `limits.WRITES_PER_TXN_MAX` names.
    """
    told = False
    for name in filter(travels, names):
        switch = tx.read_in(scope_of(thrown), SWITCH, name)
        identifier = opaque(fleet, tx.partition.environment, name)
        if is_news(switch, tx.get(STOP, identifier)):
            tx.put(STOP, identifier, Stop(engaged=switch is not None and switch.value.engaged))
            told = True
    return api.RequestHeader() if told else None


def make_exception(tx: Tx, request: api.ExceptSwitchRequest) -> api.ExceptSwitchReply:
    """Do not heed exactly one stop of another region. It is recorded here, with who and why; it frees nothing else."""
    name = record_name(request.scope)
    _check_reason(tx)
    checks.name(request.region, "region")
    wanted = StopException(region=request.region, epoch=request.epoch, revision=request.revision)
    if not travels(name) or not request.epoch or not request.revision or "/" in request.region:
        raise Invalid(
            "an exception names a scope, and region, epoch and revision of the stop that is not heeded",
            reason="EXCEPTION_MALFORMED",
            hint="cpctl kill list shows them",
        )
    if request.region == tx.partition.home:
        raise Invalid(
            "this region can release its own switches",
            reason="EXCEPTION_OF_OWN",
            field="region",
            hint="cpctl kill release",
        )
    of = exception_name(request.region, name)
    row = tx.get(EXCEPTION, of)
    if row is not None and row.value == wanted:
        return api.ExceptSwitchReply(changed=False)
    tx.put(EXCEPTION, of, wanted)
    return api.ExceptSwitchReply(changed=True)


class Heard(NamedTuple):
    """An engaged stop of another region, as its copy says. `meta` is that region's, without who and why."""

    region: str
    epoch: int
    meta: api.Meta


def in_force(told: Iterable[tuple[Heard, bool]]) -> list[Heard]:
    """What is engaged of all that was told under one id; of each region its newest epoch counts.

    A stop of an earlier epoch stays in force until the region says something of the same id in a later one: to begin
    an epoch anew, or to restore an old state, releases nothing.
    """
    found = list(told)
    newest: dict[str, int] = {}
    for stop, _ in found:
        newest[stop.region] = max(stop.epoch, newest.get(stop.region, 0))
    return [stop for stop, engaged in found if engaged and stop.epoch == newest[stop.region]]


def heeded(
    subject: api.Subject,
    heard: Callable[[str], Iterable[Heard]],
    exception: Callable[[str], StopException | None],
) -> Iterator[api.SwitchView]:
    """The stops of other regions that cover `subject`, but for those that an exception names exactly.

    `heard` finds the engaged stops for a switch of a name, `exception` the exception of a name (`exception_name`).
    """
    for name in filter(travels, covering(subject)):
        for stop in heard(name):
            if not excepts(exception(exception_name(stop.region, name)), stop):
                switch = Switch(scope=scope_of_name(name), engaged=True)
                yield api.SwitchView(switch=switch, meta=stop.meta, region=stop.region)


class Engaged:
    """What is engaged in a store: switches, and stops that tell others of them.

    Those that were released stay in the store for ever, so nobody counts by reading it: `look` does, once, and `took`
    looks at what changed.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, str], dict[str, Switch | Stop]] = {}

    def look(self, view: View) -> None:
        """Begin anew with a store."""
        self._found.clear()
        for scope in machine.scopes(view):
            for kind in (SWITCH, STOP):
                for _, packed in view.scan(*keys.children(keys.RECORD + scope + keys.text(kind.name))):
                    self._take(Event.FromString(packed))

    def took(self, changed: Iterable[Changed]) -> None:
        """Take in what an entry changed."""
        for each in changed:
            # A name may look like a kind.
            if _SWITCH in each.key or _STOP in each.key:
                self._take(each.event)

    def switches(self, partition: Partition) -> Sequence[Scope]:
        """What the engaged switches of a partition stop."""
        found = self._found.get((scope_of(partition), SWITCH.name), {}).values()
        return [switch.scope for switch in found if isinstance(switch, Switch)]

    def stops(self, partition: Partition) -> Sequence[str]:
        """The engaged stops of a partition, in order."""
        return sorted(self._found.get((scope_of(partition), STOP.name), ()))

    def _take(self, event: Event) -> None:
        key = keys.decode(event.key)
        if key.kind not in (SWITCH.name, STOP.name):
            return
        kind: Kind[Switch] | Kind[Stop] = SWITCH if key.kind == SWITCH.name else STOP
        found = self._found.setdefault((keys.scope_of(event.key), key.kind), {})
        value = kind.message.FromString(event.value) if event.HasField("value") else None
        if value is not None and value.engaged:
            found[key.name] = value
        else:
            found.pop(key.name, None)


class Abroad:
    """What other regions have stopped, as far as it is known here, in one environment.

    `own` reads the partition in which this region's exceptions lie, `readers` the copies of the other regions' stops,
    one for each epoch.
    """

    def __init__(self, fleet: str, environment: str, own: Reader, readers: Sequence[Reader]) -> None:
        self._fleet, self._environment, self._own, self._readers = fleet, environment, own, readers

    def stopping(self, subject: api.Subject) -> Iterator[api.SwitchView]:
        """The stops of other regions that cover `subject` and are heeded."""
        return heeded(subject, self._heard, self._exception) if self._readers else iter(())

    def stops(self, engaged_only: bool) -> Iterator[api.StopView]:
        """Stops of other regions, the engaged ones first, at most `limits.PAGE_MAX` of each partition.

        Those for whose scope this region has a switch or an exception say what they stop.
        """
        if not self._readers:
            return
        own = [row.name for row in self._own.list(SWITCH)]
        own += [scope_of_exception(row.name) for row in self._own.list(EXCEPTION)]
        known = {opaque(self._fleet, self._environment, name): name for name in own}
        for reader in self._readers:
            later = [each for each in self._readers if _is_later(each.partition, reader.partition)]
            engaged = (row for row in reader.list(STOP) if row.value.engaged)
            released = (row for row in reader.list(STOP) if not row.value.engaged and not engaged_only)
            for row in islice(chain(engaged, released), limits.PAGE_MAX):
                if any(each.get(STOP, row.name) for each in later):
                    continue
                name = known.get(row.name)
                stop = _heard(reader.partition, row)
                yield stop_view(row.name, stop, self._exception, engaged=row.value.engaged, name=name)

    def _heard(self, name: str) -> list[Heard]:
        identifier = opaque(self._fleet, self._environment, name)
        rows = [(reader.partition, reader.get(STOP, identifier)) for reader in self._readers]
        return in_force((_heard(partition, row), row.value.engaged) for partition, row in rows if row is not None)

    def _exception(self, name: str) -> StopException | None:
        row = self._own.get(EXCEPTION, name)
        return None if row is None else row.value


def stop_view(
    identifier: str,
    stop: Heard,
    exception: Callable[[str], StopException | None],
    *,
    engaged: bool,
    name: str | None,
) -> api.StopView:
    """What is known here of a stop of another region; `name` is that of the switch's record, if it is known."""
    return api.StopView(
        region=stop.region,
        id=identifier,
        engaged=engaged,
        epoch=stop.epoch,
        revision=stop.meta.revision,
        excepted=name is not None and excepts(exception(exception_name(stop.region, name)), stop),
        scope=None if name is None else scope_of_name(name),
    )


def excepts(exception: StopException | None, stop: Heard) -> bool:
    """Whether an exception is for exactly this stop."""
    return exception is not None and (exception.region, exception.epoch, exception.revision) == (
        stop.region,
        stop.epoch,
        stop.meta.revision,
    )


def scope_of_name(name: str) -> Scope:
    """The scope that has this record name."""
    word, _, rest = name.partition(":")
    return Scope(kind=_KINDS[word], name=rest)


def exception_name(region: str, name: str) -> str:
    """The record's name of an exception for a region's switch of this record name."""
    return f"{region}/{name}"


def scope_of_exception(name: str) -> str:
    """The record name of the switch that an exception of this record name is for."""
    return name.partition("/")[2]


def stopping(subject: api.Subject, engaged: Callable[[str], bool]) -> list[str]:
    """The names among `covering(subject)` that are engaged."""
    return [name for name in covering(subject) if engaged(name)]


def _check_reason(tx: Tx) -> None:
    if not checks.free_text(tx.reason, "reason").strip():
        raise Invalid(
            "a kill switch is thrown for a reason, and none was given",
            reason="REASON_MISSING",
            field="header.reason",
        )


def _throw(tx: Tx, scope: Scope, *, engaged: bool) -> tuple[Row[Switch], bool]:
    name = record_name(scope)
    _check_reason(tx)
    row = tx.get(SWITCH, name)
    if row is not None and row.value.engaged == engaged:
        return row, False
    if row is None and not engaged:
        # It was never thrown: there is nothing to release, and no record to make of it.
        nobody = Switch(scope=scope)
        return Row(name, nobody, 0, 0, 0, "", "", "", 0), False
    by = (tx.actor, tx.reason) if engaged or row is None else (row.value.engaged_by, row.value.engaged_reason)
    switch = Switch(scope=scope, engaged=engaged, engaged_by=by[0], engaged_reason=by[1])
    return tx.put(SWITCH, name, switch), True


def _view(row: Row[Switch]) -> api.SwitchView:
    return api.SwitchView(switch=row.value, meta=checks.meta(row))


def _is_later(one: Partition, other: Partition) -> bool:
    return one.home == other.home and one.epoch > other.epoch


def _heard(partition: Partition, row: Row[Stop]) -> Heard:
    # Who and why in a copy's row are this region's own copying.
    meta = api.Meta(revision=row.revision, created=row.created, version=row.version, at_ms=row.at_ms)
    return Heard(partition.home, partition.epoch, meta)
