"""Metrics and logs: numbers that add up, a port that bad callers cannot hold, lines that carry no payload."""

import asyncio
import contextlib
import io
import json
import logging
import sys

import pytest
import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from controlplane import limits, telemetry
from controlplane.replication.transport import LinkCounters
from controlplane.telemetry import Counts, Histogram, LinkCollector, MetricsServer, NodeCollector, RateLimit
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2
from tests.server.regions import running, until, write_header


def test_a_histogram_counts_each_duration_once():
    histogram = Histogram()
    for seconds in (0.00005, 0.0001, 0.004, 3.0, 100.0):
        histogram.observe(seconds)
    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in histogram.family("x", "text").samples}
    assert samples["x_bucket", "0.0001"] == 2
    assert samples["x_bucket", "0.005"] == 3
    assert samples["x_bucket", "+Inf"] == samples["x_count", None] == 5
    assert samples["x_sum", None] == pytest.approx(103.00415)


def test_a_rate_limit_lets_some_through_per_period():
    now = [0.0]
    limit = RateLimit(2, 10.0, lambda: now[0])
    assert [limit.allows() for _ in range(4)] == [True, True, False, False]
    assert limit.suppressed == 2
    now[0] = 10.0
    assert limit.allows()


async def ask(port, head):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    try:
        return (await asyncio.wait_for(reader.read(), 5)).decode()
    except ConnectionResetError:
        return ""
    finally:
        writer.close()


async def test_every_metric_parses_and_kill_switches_are_counted(tmp_path):
    async with running(tmp_path) as region, region.caller("operator") as operator:
        scope = records_pb2.Scope(kind=records_pb2.SCOPE_TENANT, name="a-tenant")
        await operator.call("EngageSwitch", api.EngageSwitchRequest(header=write_header(reason="drill"), scope=scope))
        member = region.members["n1"]
        server = MetricsServer([NodeCollector(member.node, member.server.counts, lambda: 0)])
        port = await server.start("127.0.0.1", 0)
        answer = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        head, body = answer.split("\r\n\r\n", 1)
        assert head.startswith("HTTP/1.1 200")
        values = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(body)
            for sample in family.samples
        }
        assert values["controlplane_switches_engaged", "tenant"] == 1
        assert values["controlplane_switches_engaged", "tool"] == 0
        assert values["controlplane_raft_leader",] == 1
        assert values["controlplane_calls_total", "EngageSwitch", "ok"] == 1
        assert "a-tenant" not in body
        await server.stop()


def test_what_happened_on_links_is_counted():
    samples = [sample for family in LinkCollector(LinkCounters(links_broken=3)).collect() for sample in family.samples]
    values = {sample.name: sample.value for sample in samples if sample.name.endswith("_total")}
    assert values["controlplane_link_links_broken_total"] == 3
    assert values["controlplane_link_messages_dropped_total"] == 0


async def test_bad_callers_of_the_metrics_port(monkeypatch):
    monkeypatch.setattr(telemetry, "_HTTP_TIMEOUT_S", 0.2)
    server = MetricsServer([])
    port = await server.start("127.0.0.1", 0)
    assert (await ask(port, b"GET /other HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 404")
    assert (await ask(port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 404")
    assert await ask(port, b"x" * 100_000) == ""
    assert await ask(port, b"GET /metrics") == ""
    assert (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 200")
    await server.stop()


async def test_the_metrics_port_holds_few_connections(monkeypatch):
    monkeypatch.setattr(limits, "METRICS_CONNECTIONS_MAX", 3)
    server = MetricsServer([])
    port = await server.start("127.0.0.1", 0)
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    assert await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n") == ""
    idle.pop()[1].close()
    async with asyncio.timeout(5):
        while not await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n"):
            pass
    for _, writer in idle:
        writer.close()
    await server.stop()


async def test_a_caller_that_does_not_read_metrics_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(telemetry, "_HTTP_TIMEOUT_S", 0.5)
    large = GaugeMetricFamily("large", "text", labels=["x"])
    for number in range(100):
        large.add_metric([f"{number}" * 100_000], 1.0)

    class Large(Collector):
        def collect(self):
            return [large]

    server = MetricsServer([Large()])
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    await until(lambda: server._open)
    await until(lambda: not server._open)
    left = 0
    with contextlib.suppress(ConnectionResetError):
        while piece := await asyncio.wait_for(reader.read(1024 * 1024), 10):
            left += len(piece)
    assert left < len(server._page)
    writer.close()
    await server.stop()


async def test_metrics_are_put_together_once_a_second(monkeypatch):
    asked = 0

    class Collected(Collector):
        def collect(self):
            nonlocal asked
            asked += 1
            return iter(())

    server = MetricsServer([Collected()])
    port = await server.start("127.0.0.1", 0)
    registered = asked
    for _ in range(5):
        assert (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 200")
    assert asked == registered + 1
    monkeypatch.setattr(server, "_page_until", 0.0)
    await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert asked == registered + 2
    await server.stop()


async def test_who_is_told_what_is_heard_before_it_leaves():
    heard = []
    server = MetricsServer([], lambda host, page: heard.append((host, page)))
    port = await server.start("127.0.0.1", 0)
    answer = await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    await ask(port, b"GET /other HTTP/1.1\r\n\r\n")
    assert heard == [("127.0.0.1", answer.partition("\r\n\r\n")[2].encode())]
    await server.stop()


async def test_a_measured_log_counts_commits_and_leaders(tmp_path):
    async with running(tmp_path) as region:
        member = region.members["n1"]
        counts = Counts()
        log = telemetry.MeasuredLog(member.log, counts, asyncio.get_running_loop().time)
        await log.barrier(timeout_s=5)
        assert log.status().leader == "n1"


@pytest.mark.parametrize("form", ["json", "text"])
def test_log_lines(form, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        telemetry.configure_logs(form, "info", node="n1")
        structlog.get_logger("test").info("serving", address="127.0.0.1:1")
        structlog.get_logger("test").debug("hidden")
        logging.getLogger("other").warning("odd %s", "thing")
        for _ in range(100):
            logging.getLogger("grpc._cython").error("flood")
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 + 10
    assert all("n1" in line for line in lines)
    if form == "json":
        first, second = map(json.loads, lines[:2])
        assert (first["event"], first["level"], first["address"]) == ("serving", "info", "127.0.0.1:1")
        assert second["event"] == "odd thing"
