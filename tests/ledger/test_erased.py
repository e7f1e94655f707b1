"""A report from a store that something was erased from, in the reviewer's hands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from controlplane.auditor import checkpoint_at
from controlplane.features import audit, federation
from controlplane.ledger import checkpoint
from controlplane.ledger.bundle import Record, Report
from tests.features.test_audit import passage, throw
from tests.features.test_erasure import EU, STATE, Region, create, erase, release
from tests.ledger.material import FLEET, Desk, signer, trust

NAME = "eu-west"
ORIGIN = checkpoint.origin_of(FLEET, NAME)


def records(region: Region) -> Iterator[Record]:
    for index in range(region.ledgers[0].size):
        for n, name, key, content in audit.opened(region.view, index):
            yield Record(index, n, name, key, json.loads(content) if key else {})


def report(region: Region) -> Report:
    size = region.ledgers[0].size
    first, last = (checkpoint.sign(checkpoint_at(region.view, ORIGIN, at), signer(ORIGIN)) for at in (1, size))
    leaves = [audit.leaf_at(region.view, index) for index in range(size)]
    return Report(
        fleet=FLEET,
        region=NAME,
        jurisdiction="eu",
        from_ms=0,
        to_ms=1,
        partitions=[],
        first=first,
        last=last,
        start=0,
        leaves=[leaf for leaf in leaves if leaf is not None],
        records=records(region),
        node=audit.node_reader(region.view),
    )


def test_a_verifier_says_erased_and_still_sees_what_left(desk: Desk, tmp_path: Path) -> None:
    region = Region(tmp_path / "store")
    region.run(STATE, throw, create("person", b"secret"))
    region.run(STATE, release, create("other", b"stays"))
    region.run(EU, lambda tx: federation.record_passage(tx, passage(7)))
    before = desk.says(desk.written(report(region)), trust=trust(), peers=[])
    assert before["RECORDS"] == ("PASS", before["RECORDS"][1])
    assert "ERASED" not in before["RECORDS"][1]
    region.run(STATE, erase("workflow", "person"))
    region.sweep()
    says = desk.says(desk.written(report(region)), trust=trust(), peers=[])
    assert says["RECORDS"][0] == "PASS"
    assert "1 switch" in says["RECORDS"][1].partition("ERASED")[0].rpartition(";")[2]
    for claim in ("FILES", "CHECKPOINT", "GROWTH", "LEAVES", "REACH"):
        assert says[claim][0] == before[claim][0] == "PASS", claim
    region.close()
