"""What the benchmark makes of its samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.figures import ETCD, OURS, SPECS, TUNED, Samples, Spec, figures
from bench.report import plot, table

PROMISED = {
    "stream_write_64_vs_unary",
    "stream_write_64_vs_coalesced",
    "stream_write_256_vs_coalesced",
    "unary_write_64",
    "single_write_p50",
    "failover_kill_ms",
    "failover_silent_ms",
    "fanout_500",
    "mirror_check_us",
    "snapshot_stall_ms",
    "restart_100k_s",
    "rss_idle_mb",
}


def test_every_promised_figure_is_there_and_named_once() -> None:
    names = [spec.name for spec in SPECS]
    assert set(names) >= PROMISED
    assert len(set(names)) == len(names)


def test_a_ratio_is_ours_by_the_peers_median() -> None:
    samples = Samples()
    samples.add(OURS, "stream_64", 10.0, 30.0, 20.0)
    samples.add(ETCD, "unary_64", 5.0, 10.0, 1000.0)
    [figure] = figures(samples, [Spec("a", "writes/s", "stream_64", "unary_64")])
    assert (figure["ours"], figure["peer"], figure["ratio"], figure["n"]) == (20.0, 10.0, 2.0, 3)
    assert figure["ours_range"] == [10.0, 30.0]
    assert figure["peer_is"] == f"{ETCD}: unary_64"


def test_the_peer_can_be_another_one() -> None:
    samples = Samples()
    samples.add(OURS, "kill", 40.0)
    samples.add(ETCD, "kill", 1000.0)
    samples.add(TUNED, "kill", 200.0)
    [figure] = figures(samples, [Spec("a", "ms", "kill", "kill", TUNED)])
    assert figure["ratio"] == 0.2


@pytest.mark.parametrize("measured", [[], [(OURS, "x")], [(ETCD, "x")]])
def test_what_was_not_measured_is_null(measured: list[tuple[str, str]]) -> None:
    samples = Samples()
    for side, name in measured:
        samples.add(side, name, 1.0)
    [figure] = figures(samples, [Spec("a", "ms", "x", "x")])
    assert figure["ratio"] is None
    assert (figure["ours"] is None) == ((OURS, "x") not in measured)
    assert (figure["peer"] is None) == ((ETCD, "x") not in measured)


def test_the_report_copes_with_gaps(tmp_path: Path) -> None:
    samples = Samples()
    made = figures(samples, SPECS)
    assert json.loads(json.dumps(made)) == made
    table(made)
    samples.add(OURS, "stream_64", 3.0)
    plot(samples, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
