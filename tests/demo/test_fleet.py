"""Each rule that makes a run of the fleet's demonstration red."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controlplane.demo.fleet import FleetRecord
from tests.demo.test_record import green as green_region
from tests.demo.test_record import spoil

PASSED = dict.fromkeys(("LEAVES", "RECORDS", "REACH", "COSIGNED b", "MATCHED b", "SCAN n1"), "PASS") | {
    "IDENTITY": "NOT CHECKED"
}


def green() -> FleetRecord:
    region = green_region()
    record = FleetRecord(agents=2, regions=2)
    for name in ("counted", "created", "stops", "stale_fence_refused", "fences", "leaders", "killed_s", "replicas"):
        setattr(record, name, getattr(region, name))
    record.first_write_s, record.lost, record.doubled = region.first_write_s, region.lost, region.doubled
    record.pinned_bytes_leaked, record.pinned_read_denied = 0, True
    record.isolated_writes, record.caught_up = 7, True
    record.lag_s, record.kill_abroad_s = [0.01, 0.03], [0.05, 0.2]
    record.claims = {"a": dict(PASSED), "b": dict(PASSED)}
    return record


def claim(name: str, status: str | None) -> Callable[[FleetRecord], None]:
    def change(record: FleetRecord) -> None:
        if status is None:
            del record.claims["a"][name]
        else:
            record.claims["a"][name] = status

    return change


def test_a_green_run_is_green() -> None:
    report = green().report(1.0)
    assert report["ok"], report["problems"]
    assert (report["regions"], report["pinned_bytes_leaked"], report["isolated_writes"]) == (2, 0, 7)
    assert report["report_verified"]
    assert report["kill_cross_region_ms_max"] == 200.0


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (spoil("pinned_bytes_leaked", 28), "28 bytes of pinned data"),
        (spoil("pinned_bytes_leaked", None), "bytes of pinned data"),
        (spoil("pinned_read_denied", False), "not denied"),
        (spoil("isolated_writes", 0), "did not go on"),
        (spoil("caught_up", False), "did not catch up"),
        (spoil("lag_s", []), "no shared record"),
        (spoil("kill_abroad_s", []), "no kill switch was seen to cross"),
        (spoil("claims", {}), "a report was not verified"),
        (spoil("claims", {"a": PASSED}), "a report was not verified"),
        (claim("FILES", "FAIL"), "a report was not verified"),
        (claim("REACH", "NOT CHECKED"), "a report was not verified"),
        (claim("RECORDS", None), "a report was not verified"),
        (claim("COSIGNED b", "NOT CHECKED"), "a report was not verified"),
        (claim("SCAN n1", "NOT CHECKED"), "a report was not verified"),
        (spoil("lost", 1), "1 acknowledged writes"),
    ],
)
def test_what_went_wrong_is_red_and_said(spoiled: Callable[[FleetRecord], None], said: str) -> None:
    record = green()
    spoiled(record)
    report = record.report(1.0)
    assert not report["ok"]
    assert any(said in problem for problem in report["problems"])
