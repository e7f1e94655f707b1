"""What a node lets others see of itself: counts, Prometheus metrics over HTTP, and structured logs.

Counting happens where things happen, in plain integers on the loop's thread; metrics are put together when somebody
asks for them. Labels are words of this program (methods, reasons, roles, names of nodes), never anything a caller
sent: no user, tenant, flag or workflow appears in a metric or a log line, and neither does any value.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import dataclasses
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

import prometheus_client
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from controlplane import limits
from controlplane.federation.links import Links
from controlplane.node import AGE_UNKNOWN_MS, Node
from controlplane.replication import Log, LogStatus, PeerStatus, Role
from controlplane.replication.transport import LinkCounters
from controlplane.v1 import records_pb2

LATENCY_BUCKETS_S: Final = tuple(base * 10**power for power in range(-4, 1) for base in (1, 2, 5))

_HTTP_LINE_BYTES_MAX = 8192
_HTTP_TIMEOUT_S = 10.0
_HTTP_BACKLOG = 16
_PAGE_S = 1.0
_LIBRARIES_LIMITED: Final = frozenset({"asyncio", "grpc"})
LINES_LOGGED: Final = 10
LINES_PERIOD_S: Final = 10.0
"""Of what callers can cause by the thousand, so many lines are logged in so many seconds."""


class Histogram:
    """A histogram of seconds that costs a fraction of a microsecond to feed."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect.bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def family(self, name: str, text: str) -> Metric:
        """Return it as Prometheus wants it."""
        bounds = [*map(repr, LATENCY_BUCKETS_S), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self._sum_s)


class Counts:
    """What one node counts."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        """By method and outcome: "ok", or the name of the error."""
        self.denials: Counter[str] = Counter()
        """By reason."""
        self.break_glass: Counter[tuple[str, str]] = Counter()
        """By peer and what came of it: "shown" to it, "read" there by callers from here, "denied", "unrecorded"."""
        self.defects = 0
        self.hang_ups = 0
        """Calls whose caller was gone before it was answered."""
        self.cut_off = 0
        """Connections of callers that did not read."""
        self.unread_bytes = 0
        self.leader_changes = 0
        self.sessions = 0
        self.proposal_s = Histogram()
        self.sync_s = Histogram()


class MeasuredLog:
    """A `Log` that counts how long entries take to commit and how often the leader changes."""

    def __init__(self, log: Log, counts: Counts, clock: Callable[[], float]) -> None:
        self._log, self._counts, self._clock = log, counts, clock
        self._leader: str | None = None
        self.start, self.stop, self.barrier = log.start, log.stop, log.barrier
        self.transfer, self.status, self.on_change = log.transfer, log.status, log.on_change
        log.on_change(self._changed)

    async def append(self, entry: bytes, *, timeout_s: float) -> int:
        """See `Log`."""
        began = self._clock()
        index = await self._log.append(entry, timeout_s=timeout_s)
        self._counts.proposal_s.observe(self._clock() - began)
        return index

    def _changed(self) -> None:
        leader = self._log.status().leader
        if leader is not None and leader != self._leader:
            self._leader = leader
            self._counts.leader_changes += 1


class NodeCollector(Collector):
    """Reads a node when Prometheus asks. Used on the loop's thread only."""

    def __init__(self, node: Node, counts: Counts, waiting: Callable[[], int]) -> None:
        self._node, self._counts, self._waiting = node, counts, waiting

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the node."""
        found = self._node.status()
        yield from _of_log(found.log)
        yield from _of_counts(self._counts)
        yield _gauge("revision", "Newest revision applied here", found.revision)
        yield _gauge("state_age_seconds", "Upper bound of the age of the state served here", found.log.fresh_s)
        text = "How far recorded times, which never go back, are ahead of this node's clock"
        yield _gauge("recorded_time_ahead_seconds", text, self._node.ahead_ms() / 1000)
        yield _gauge("store_records", "Live records", found.records)
        yield _gauge("store_live_bytes", "Bytes of live records", found.live_bytes)
        yield _gauge("store_quota_bytes", "Live bytes at which ordinary writes are refused", found.quota_bytes)
        yield _gauge("queue_depth", "Calls that wait to be planned", found.queued)
        yield _gauge("routed_waiting", "Calls that wait for the leader or its answer", self._waiting())
        yield _gauge("watchers", "Watches open here", found.watchers)
        conflicts = "Transactions planned again because what they read had changed"
        yield CounterMetricFamily("controlplane_conflicts", conflicts, value=found.conflicts)
        engaged = GaugeMetricFamily("controlplane_switches_engaged", "Engaged kill switches", labels=["scope"])
        for scope, number in _engaged(self._node).items():
            engaged.add_metric([scope], number)
        yield engaged


class LinkCollector(Collector):
    """Reads what happened on the links to other nodes."""

    def __init__(self, counters: LinkCounters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        """Yield a counter for each."""
        for field in dataclasses.fields(self._counters):
            text = f"Links to other nodes: {field.name.replace('_', ' ')}"
            yield CounterMetricFamily(
                f"controlplane_link_{field.name}", text, value=getattr(self._counters, field.name)
            )


class CertificateCollector(Collector):
    """Tells when the node's certificate will be over, so that somebody hears of it before it is."""

    def __init__(self, expires_s: Callable[[], float]) -> None:
        """`expires_s`: as of now, in Unix seconds."""
        self._expires_s = expires_s

    def collect(self) -> Iterator[Metric]:
        """Yield that."""
        text = "When the certificate that this node uses will be over"
        yield _gauge("certificate_expiry_timestamp_seconds", text, self._expires_s())


class FederationCollector(Collector):
    """Reads how this region stands with others: which links are up, how old copies are, how much passed."""

    def __init__(self, links: Links) -> None:
        self._links = links

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all links."""
        up = GaugeMetricFamily("controlplane_federation_link_up", "1 while the link is up", labels=["peer"])
        paused = GaugeMetricFamily(
            "controlplane_federation_paused", "1 while the two sides disagree and nothing passes", labels=["peer"]
        )
        age = GaugeMetricFamily(
            "controlplane_federation_view_age_seconds", "Upper bound of the age of a copy", labels=["peer", "reach"]
        )
        for link in self._links.report():
            up.add_metric([link.region], float(link.state == "up"))
            paused.add_metric([link.region], float(link.state == "paused"))
            for view in link.views:
                age_s = view.age_ms / 1000 if view.age_ms < AGE_UNKNOWN_MS else float("inf")
                age.add_metric([link.region, _reach(view.reach)], age_s)
        yield from (up, paused, age)
        yield from self._counters()

    def _counters(self) -> Iterator[Metric]:
        passed = CounterMetricFamily(
            "controlplane_federation_transactions",
            "Transactions and pages of listings that passed",
            labels=["peer", "reach", "direction"],
        )
        differences = CounterMetricFamily(
            "controlplane_federation_differences", "Times that both sides saw different things pass", labels=["peer"]
        )
        forwarded = CounterMetricFamily(
            "controlplane_federation_forwarded", "Calls that were handed to their home", labels=["peer"]
        )
        for link in self._links:
            for (reach, direction), number in link.transactions.items():
                passed.add_metric([link.region, _reach(reach), direction], number)
            differences.add_metric([link.region], link.differences)
            forwarded.add_metric([link.region], link.forwarded)
        yield from (passed, differences, forwarded)


def _reach(reach: records_pb2.Reach) -> str:
    return records_pb2.Reach.Name(reach).lower()


def _of_log(log: LogStatus) -> Iterator[Metric]:
    yield _gauge("raft_term", "Current term", log.term)
    yield _gauge("raft_leader", "1 on the node that leads", float(log.role is Role.LEADER))
    yield _gauge("raft_ready", "1 on a leader that may plan", float(log.ready))
    yield _gauge("raft_has_leader", "1 where a leader is known", float(log.leader is not None))
    yield _gauge("raft_commit_index", "Index of the last entry known to be committed", log.commit)
    yield _gauge("raft_applied_index", "Index of the last entry applied", log.applied)
    yield _gauge("raft_commit_lag", "Entries in the log that are not committed yet", log.last - log.commit)
    yield _gauge("raft_apply_lag", "Committed entries that are not applied yet", log.commit - log.applied)
    yield _of_peers("raft_peer_connected", "1 while the link is up", log, lambda peer: float(peer.connected))
    yield _of_peers("raft_peer_match_index", "Entries known to be on its disk (leader)", log, lambda peer: peer.match)


def _of_peers(name: str, text: str, log: LogStatus, value: Callable[[PeerStatus], float]) -> Metric:
    family = GaugeMetricFamily(f"controlplane_{name}", text, labels=["peer"])
    for peer, state in log.peers.items():
        family.add_metric([peer], value(state))
    return family


def _of_counts(counts: Counts) -> Iterator[Metric]:
    calls = CounterMetricFamily("controlplane_calls", "Calls answered", labels=["method", "outcome"])
    for (method, outcome), number in counts.calls.items():
        calls.add_metric([method, outcome], number)
    yield calls
    denials = CounterMetricFamily("controlplane_denials", "Calls denied", labels=["reason"])
    for reason, number in counts.denials.items():
        denials.add_metric([reason], number)
    yield denials
    glass = CounterMetricFamily(
        "controlplane_break_glass_reads", "Emergency reads of what is pinned", labels=["peer", "outcome"]
    )
    for (peer, outcome), number in counts.break_glass.items():
        glass.add_metric([peer, outcome], number)
    yield glass
    yield CounterMetricFamily("controlplane_defects", "Calls that failed by a defect", value=counts.defects)
    yield CounterMetricFamily("controlplane_hang_ups", "Calls whose caller was gone first", value=counts.hang_ups)
    yield CounterMetricFamily("controlplane_cut_off", "Callers cut off: they did not read", value=counts.cut_off)
    yield _gauge("unread_bytes", "Replies that wait for their callers to read", counts.unread_bytes)
    yield CounterMetricFamily("controlplane_leader_changes", "Leaders seen", value=counts.leader_changes)
    yield _gauge("sessions", "Sessions open here", counts.sessions)
    yield counts.proposal_s.family("controlplane_proposal_seconds", "From proposing an entry to its application")
    yield counts.sync_s.family("controlplane_sync_seconds", "From handing a batch to the disk until it is synced")


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"controlplane_{name}", text, value=value)


def _engaged(node: Node) -> Mapping[str, int]:
    kinds = records_pb2.ScopeKind.DESCRIPTOR.values_by_number
    numbers = {kind.name.removeprefix("SCOPE_").lower(): 0 for number, kind in kinds.items() if number}
    for partition in node.partitions.values():
        for scope in node.engaged.switches(partition):
            numbers[kinds[scope.kind].name.removeprefix("SCOPE_").lower()] += 1
    return numbers


class MetricsServer:
    """Serves /metrics over plain HTTP, one answer per connection, on the loop that everything else runs on.

    Whoever can reach it may ask, so it holds few connections, and what it says is put together once a second at most.
    """

    def __init__(self, collectors: Iterable[Collector], told: Callable[[str, bytes], None] | None = None) -> None:
        """`told` hears, before they are sent, which metrics go to which address."""
        self._told = told
        self._registry = CollectorRegistry()
        for collector in (*collectors, prometheus_client.ProcessCollector(registry=None)):
            self._registry.register(collector)
        self._server: asyncio.Server | None = None
        self._open = 0
        self._page, self._page_until = b"", float("-inf")

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port."""
        # asyncio accepts as many at once as may wait, and each costs a descriptor before it can be refused.
        limit, backlog = _HTTP_LINE_BYTES_MAX, _HTTP_BACKLOG
        self._server = await asyncio.start_server(self._serve, host, port, limit=limit, backlog=backlog)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= limits.METRICS_CONNECTIONS_MAX:
            writer.close()
            return
        self._open += 1
        # To drain is to wait until all has left.
        writer.transport.set_write_buffer_limits(0)
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_HTTP_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head, str((writer.get_extra_info("peername") or ("",))[0])))
                    await writer.drain()
        finally:
            self._open -= 1
            if writer.transport.get_write_buffer_size():
                # A caller that has not read by now is not waited for.
                writer.transport.abort()
            writer.close()

    def _answer(self, head: bytes, host: str) -> bytes:
        if not head.startswith((b"GET /metrics ", b"GET /metrics?")):
            return _http("404 Not Found", "text/plain", b"the metrics are at /metrics\n")
        page = self._newest()
        if self._told is not None:
            self._told(host, page)
        return _http("200 OK", prometheus_client.CONTENT_TYPE_LATEST, page)

    def _newest(self) -> bytes:
        now = asyncio.get_running_loop().time()
        if now >= self._page_until:
            self._page, self._page_until = prometheus_client.generate_latest(self._registry), now + _PAGE_S
        return self._page


def _http(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


class RateLimit:
    """Lets something happen `most` times in each period, such as a line of a log, and counts the other times."""

    def __init__(self, most: int, period_s: float, clock: Callable[[], float]) -> None:
        self._most, self._period_s, self._clock = most, period_s, clock
        self._began = float("-inf")
        self._used = 0
        self.suppressed = 0

    def allows(self) -> bool:
        """Whether it may happen once more now."""
        now = self._clock()
        if now - self._began >= self._period_s:
            self._began, self._used = now, 0
        self._used += 1
        if self._used > self._most:
            self.suppressed += 1
        return self._used <= self._most


def configure_logs(form: str, level: str, **fields: str) -> None:
    """Send this process's logs to standard error, as `form` "json" or "text", each line with `fields`."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _adder(fields),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Few())
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_final(form)))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


class _Few(logging.Filter):
    """Lets some lines of each library through in a period: what they log, callers can cause by the thousand."""

    def __init__(self) -> None:
        super().__init__()
        self._limits = {name: RateLimit(LINES_LOGGED, LINES_PERIOD_S, time.monotonic) for name in _LIBRARIES_LIMITED}

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`. Those that pass say how many did not."""
        limit = self._limits.get(record.name.partition(".")[0])
        if limit is None:
            return True
        record.suppressed = limit.suppressed
        return limit.allows()


def _final(form: str) -> list[structlog.typing.Processor]:
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if form == "json":
        return [remove, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # The usual tracebacks show local variables, and with them what requests and entries hold.
    plain = structlog.dev.plain_traceback
    return [remove, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _adder(fields: Mapping[str, str]) -> structlog.typing.Processor:
    def add(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**event, **fields}

    return add
