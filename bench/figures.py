"""Samples and the figures made of them. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Samples:
    """What was measured: values by side and by name, in the order they were taken."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, side: str, name: str, *values: float) -> None:
        """Note values of one side."""
        self.values[side, name].extend(values)

    def of(self, side: str, name: str) -> list[float]:
        """All values of one side under a name; empty if it was not measured."""
        return self.values.get((side, name), [])


OURS = "controlplane"
ETCD = "etcd 100/1000"
TUNED = "etcd 30/150"
SECURE = "etcd 100/1000 mTLS"


@dataclass(frozen=True, slots=True)
class Spec:
    """A figure: our samples against the peer's. `peer` empty: there is nothing to compare with."""

    name: str
    unit: str
    ours: str
    peer: str = ""
    peer_side: str = ETCD


def figures(samples: Samples, specs: list[Spec]) -> list[dict[str, Any]]:
    """The figures as they go to the file; null for what was not measured. `ratio` is ours / peer."""
    return [_figure(samples, spec) for spec in specs]


def _figure(samples: Samples, spec: Spec) -> dict[str, Any]:
    ours = samples.of(OURS, spec.ours)
    peer = samples.of(spec.peer_side, spec.peer) if spec.peer else []
    ours_median, peer_median = _median(ours), _median(peer)
    ratio = ours_median / peer_median if ours_median is not None and peer_median else None
    return {
        "name": spec.name,
        "ours": _rounded(ours_median),
        "peer": _rounded(peer_median),
        "ratio": _rounded(ratio),
        "unit": spec.unit,
        "n": len(ours),
        "ours_range": _range(ours),
        "peer_range": _range(peer),
        "peer_is": f"{spec.peer_side}: {spec.peer}" if peer else None,
    }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _range(values: list[float]) -> list[float] | None:
    return [float(f"{min(values):.4g}"), float(f"{max(values):.4g}")] if values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


SPECS = [
    Spec("stream_write_64_vs_unary", "writes/s", "stream_64", "unary_64"),
    Spec("stream_write_64_vs_coalesced", "writes/s", "stream_64", "stream_64"),
    Spec("stream_write_256_vs_coalesced", "writes/s", "stream_256", "stream_256"),
    Spec("stream_write_16_vs_coalesced", "writes/s", "stream_16", "stream_16"),
    Spec("stream_write_1_vs_unary", "writes/s", "stream_1", "unary_1"),
    Spec("unary_write_64", "writes/s", "unary_64", "unary_64"),
    Spec("single_write_p50", "ms", "stream_1_p50", "unary_1_p50"),
    Spec("single_unary_write_p50", "ms", "unary_1_p50", "unary_1_p50"),
    Spec("stream_write_64_vs_unary_mtls", "writes/s", "stream_64", "unary_64", SECURE),
    Spec("stream_write_64_vs_coalesced_mtls", "writes/s", "stream_64", "stream_64", SECURE),
    Spec("unary_write_64_vs_mtls", "writes/s", "unary_64", "unary_64", SECURE),
    Spec("single_write_p50_vs_mtls", "ms", "stream_1_p50", "unary_1_p50", SECURE),
    Spec("stream_write_64_p99", "ms", "stream_64_p99", "stream_64_p99"),
    Spec("stream_write_256_p99", "ms", "stream_256_p99", "stream_256_p99"),
    Spec("failover_kill_ms", "ms", "kill", "kill"),
    Spec("failover_kill_vs_tuned_ms", "ms", "kill", "kill", TUNED),
    Spec("failover_kill_sdk_ms", "ms", "kill_sdk"),
    Spec("failover_silent_ms", "ms", "silent", "silent"),
    Spec("failover_silent_vs_tuned_ms", "ms", "silent", "silent", TUNED),
    Spec("failover_silent_sdk_ms", "ms", "silent_sdk"),
    Spec("fanout_1", "ms", "fanout_1", "fanout_1"),
    Spec("fanout_100", "ms", "fanout_100", "fanout_100"),
    Spec("fanout_500", "ms", "fanout_500", "fanout_500"),
    Spec("fanout_500_vs_mtls", "ms", "fanout_500", "fanout_500", SECURE),
    Spec("fanout_1000", "ms", "fanout_1000", "fanout_1000"),
    Spec("mirror_check_us", "us", "mirror_check"),
    Spec("mirror_config_us", "us", "mirror_config"),
    Spec("snapshot_stall_ms", "ms", "snapshot_stall"),
    Spec("loop_stall_without_snapshot_ms", "ms", "quiet_stall"),
    Spec("stream_write_64_at_1k_records", "writes/s", "stream_64_at_1000", "stream_64_at_1000"),
    Spec("stream_write_64_at_10k_records", "writes/s", "stream_64_at_10000", "stream_64_at_10000"),
    Spec("stream_write_64_at_100k_records", "writes/s", "stream_64_at_100000", "stream_64_at_100000"),
    Spec("restart_100k_s", "s", "restart", "restart"),
    Spec("rss_idle_mb", "MiB", "rss_idle", "rss_idle"),
    Spec("rss_100k_mb", "MiB", "rss_full", "rss_full"),
]
