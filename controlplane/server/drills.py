"""The drill calls of a node: for operators, answered by the node that is asked, loud in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controlplane import limits
from controlplane.drills import faults, supervisor
from controlplane.drills.faults import PROCESS_KINDS, Fault
from controlplane.drills.injector import Injector
from controlplane.errors import Denied
from controlplane.node import Call
from controlplane.replication import LogStatus
from controlplane.v1 import drill_pb2 as api

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node tells of itself to whoever runs a drill."""

    node: str
    config_hash: str = ""
    standing: Callable[[], str] = lambda: ""
    started_as: str = ""
    log: Callable[[], LogStatus] | None = None


class Drills:
    """Answers the calls of service Drills; without an injector (no `--drills`) it takes no faults."""

    def __init__(self, facts: Facts, injector: Injector | None = None) -> None:
        self._facts, self._injector = facts, injector
        if injector is not None:
            injector.ended = _ended
            _log.warning("drills_enabled", hint="operators may break this node on purpose")

    @property
    def collector(self) -> Collector:
        """What metrics say of drills."""
        return _DrillCollector(self._injector)

    async def answer(self, call: Call) -> bytes:
        """Answer one call. Raises `Invalid`, `Denied` (DRILLS_OFF), `Refused` or `Unavailable`."""
        match call.method:
            case "ListFaults":
                return self._list(call.read(api.ListFaultsRequest)).SerializeToString()
            case "HealFaults":
                return self._heal(call.read(api.HealFaultsRequest), call.actor).SerializeToString()
        return (await self._inject(call.read(api.InjectFaultRequest), call.actor)).SerializeToString()

    async def _inject(self, request: api.InjectFaultRequest, actor: str) -> api.InjectFaultReply:
        injector = self._required()
        fault = faults.read(request.fault, actor, injector.peers, injector.regions)
        _log.warning("fault_asked", **_fields(fault))
        new = await injector.inject(fault)
        if new:
            _log.warning("fault_injected", **_fields(fault))
        strikes_in_ms = round(supervisor.STRIKES_IN_S * 1000) if fault.kind in PROCESS_KINDS else 0
        return api.InjectFaultReply(node=self._facts.node, repeated=not new, strikes_in_ms=strikes_in_ms)

    def _heal(self, request: api.HealFaultsRequest, actor: str) -> api.HealFaultsReply:
        reason = faults.reason_of(request.reason)
        injector = self._required()
        drill, abort = request.drill, request.abort
        healed = [_active(fault, 0.0) for fault in injector.heal(drill, abort=abort)]
        _log.warning("faults_healed", count=len(healed), drill=drill, abort=abort, actor=actor, why=reason)
        return api.HealFaultsReply(node=self._facts.node, healed=healed)

    def _list(self, _: api.ListFaultsRequest) -> api.ListFaultsReply:
        reply = api.ListFaultsReply(
            node=self._facts.node,
            standing=self._facts.standing(),
            config_hash=self._facts.config_hash,
            duration_ms_max=limits.FAULT_MS_MAX,
            started_as=self._facts.started_as,
        )
        if self._facts.log is not None:
            log = self._facts.log()
            reply.role, reply.applied = log.role.value, log.applied
        if self._injector is not None:
            reply.enabled = True
            reply.faults.extend(_active(fault, left_s) for fault, left_s in self._injector.active())
            reply.aborted.extend(self._injector.faults.aborted)
        return reply

    def _required(self) -> Injector:
        if self._injector is None:
            raise Denied(
                "this node takes no faults",
                reason="DRILLS_OFF",
                hint="start it with controlplane serve --drills; docs/drills.md says what that means",
            )
        return self._injector


class _DrillCollector(Collector):
    """Reads the faults of a node when Prometheus asks."""

    def __init__(self, injector: Injector | None) -> None:
        self._injector = injector

    def collect(self) -> Iterator[Metric]:
        """Yield whether drills are possible, and how many faults are in effect."""
        enabled, active = float(self._injector is not None), self._injector.active() if self._injector else ()
        yield GaugeMetricFamily("controlplane_drills_enabled", "1 where faults may be injected", value=enabled)
        yield GaugeMetricFamily("controlplane_drill_faults", "Faults in effect", value=len(active))


def _active(fault: Fault, left_s: float) -> api.ActiveFault:
    return api.ActiveFault(fault=fault.message(), actor=fault.actor, remaining_ms=round(left_s * 1000))


def _ended(fault: Fault) -> None:
    _log.warning("fault_ended", **_fields(fault))


def _fields(fault: Fault) -> dict[str, str | int]:
    return {
        "kind": fault.kind.word,
        "drill": fault.drill,
        "fault": fault.id,
        "peers": ",".join(fault.peers),
        "duration_ms": fault.duration_ms,
        "actor": fault.actor,
        "why": fault.reason,
    }
