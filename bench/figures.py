"""Samples and the figures made of them. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from math import ceil
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
BARE = "bare gRPC"
LEAST = "least state machine"


@dataclass(frozen=True, slots=True)
class Spec:
    """A figure: our samples against the peer's. `peer` empty: there is nothing to compare with.

    `quantile` of ours is what is told (0.5: the median). `target` is a number, or the name of samples of ours whose
    median it is; the figure is to be at most that, or with `at_least` at least. `note`: how it was measured.
    """

    name: str
    unit: str
    ours: str
    peer: str = ""
    peer_side: str = ETCD
    quantile: float = 0.5
    target: float | str | None = None
    at_least: bool = False
    note: str = ""


def figures(samples: Samples, specs: list[Spec]) -> list[dict[str, Any]]:
    """The figures as they go to the file; null for what was not measured. `ratio` is ours / peer."""
    return [_figure(samples, spec) for spec in specs]


def _figure(samples: Samples, spec: Spec) -> dict[str, Any]:
    ours = samples.of(OURS, spec.ours)
    peer = samples.of(spec.peer_side, spec.peer) if spec.peer else []
    ours_told, peer_median = _quantile(ours, spec.quantile), _median(peer)
    ratio = ours_told / peer_median if ours_told is not None and peer_median else None
    target = _median(samples.of(OURS, spec.target)) if isinstance(spec.target, str) else spec.target
    return {
        "name": spec.name,
        "ours": _rounded(ours_told),
        "peer": _rounded(peer_median),
        "ratio": _rounded(ratio),
        "unit": spec.unit,
        "n": len(ours),
        "ours_range": _range(ours),
        "peer_range": _range(peer),
        "peer_is": f"{spec.peer_side}: {spec.peer}" if peer else None,
        "target": _rounded(target),
        "target_is": None if spec.target is None else "at least" if spec.at_least else "at most",
        "reached": _reached(ours_told, target, at_least=spec.at_least),
        "note": spec.note or None,
    }


def _reached(value: float | None, target: float | None, *, at_least: bool) -> bool | None:
    if value is None or target is None:
        return None
    return value >= target if at_least else value <= target


def _quantile(values: list[float], q: float) -> float | None:
    """The median as statistics has it; any other quantile as the value that this part of all does not exceed."""
    if not values or q == 0.5:
        return _median(values)
    return sorted(values)[max(0, ceil(q * len(values)) - 1)]


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
    Spec("stream_write_64_vs_bare", "writes/s", "stream_64", "stream_64", BARE),
    Spec("stream_write_256_vs_bare", "writes/s", "stream_256", "stream_256", BARE),
    Spec("unary_write_64_vs_bare", "writes/s", "unary_64", "unary_64", BARE),
    Spec("single_write_p50_vs_bare", "ms", "stream_1_p50", "stream_1_p50", BARE),
    Spec("stream_write_64_vs_least", "writes/s", "stream_64", "stream_64", LEAST),
    Spec("stream_write_256_vs_least", "writes/s", "stream_256", "stream_256", LEAST),
    Spec("single_write_p50_vs_least", "ms", "stream_1_p50", "stream_1_p50", LEAST),
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
    Spec("fanout_500_vs_bare", "ms", "fanout_500", "fanout_500", BARE),
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

_LINKS = "three regions of one node each; links of 40 ms each way by relays in the client's process"
_REGION = "three nodes, mutual TLS, synced; 64 in flight over the SDK's stream; in turns"
_ALONE = "planning, applying and storing alone, in one process, not synced; in turns"
_OF_BEFORE = "cut / before"
_OF_NONE = "with / without"

FLEET_SPECS = [
    Spec("shared_p50", "ms", "shared", target="shared_bound", note="start of a write to the last region; " + _LINKS),
    Spec("shared_p99", "ms", "shared", quantile=0.99, target=300, note="likewise"),
    Spec("shared_after_ack_p50", "ms", "shared_after_ack", target="shared_bound", note="from its acknowledgement on"),
    Spec("shared_after_ack_p99", "ms", "shared_after_ack", quantile=0.99, target=300, note="likewise"),
    Spec("shared_commit_p50", "ms", "shared_commit", note="start of a write to its acknowledgement at home"),
    Spec("fresh_region_10k", "s", "fresh", target=5, note="opening of links to a whole copy; " + _LINKS),
    Spec("fresh_region_10k_copying", "s", "fresh_copying", note="of this, from the first sign of a copy"),
    Spec("isolated_writes", _OF_BEFORE, "isolated", target=0.9, at_least=True, note="64 in flight; " + _LINKS),
    Spec("healed_writes", "healed / before", "healed", note="likewise"),
    Spec("connected_writes", "writes/s", "connected_rate", note="before a cut"),
    Spec("cut_off_writes", "writes/s", "isolated_rate", note="from the moment of the cut on"),
    Spec("ledger_writes", _OF_NONE, "ledger_writes", target=0.9, at_least=True, note=_REGION),
    Spec("ledger_writes_per_cpu", _OF_NONE, "ledger_writes_cpu", note="per second of the nodes on the processor"),
    Spec("ledger_switches", _OF_NONE, "ledger_switches", target=0.9, at_least=True, note="all audited; likewise"),
    Spec("ledger_switches_per_cpu", _OF_NONE, "ledger_switches_cpu", note="per second of the nodes on the processor"),
    Spec("ledger_alone_writes", _OF_NONE, "alone_writes", target=0.9, at_least=True, note=_ALONE),
    Spec("ledger_alone_writes_per_cpu", _OF_NONE, "alone_writes_cpu", note="per second on the processor"),
    Spec("ledger_alone_switches", _OF_NONE, "alone_switches", target=0.9, at_least=True, note="all audited; likewise"),
    Spec("ledger_alone_switches_per_cpu", _OF_NONE, "alone_switches_cpu", note="per second on the processor"),
    Spec("verify_1m_leaves", "s", "verify_1000000", target=60, note="verify.py, a process of its own"),
    Spec("verify_1m_leaves_peak", "MiB", "verify_1000000_peak", note="likewise"),
    Spec("verify_50k_leaves", "s", "verify_50000", note="quick runs only"),
]
