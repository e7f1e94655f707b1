"""The search of a disk finds what was planted, wherever it lies, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controlplane import residency
from controlplane.auditor import Auditor, LedgerKeys
from controlplane.geography import Atlas
from controlplane.kernel import keys
from controlplane.kernel.store import Batch, MemoryStore
from controlplane.ledger import notes
from controlplane.node import Call
from controlplane.server.reviewers import Reviewers
from controlplane.storage import RocksStore
from controlplane.v1.audit_pb2 import ScanDiskReply
from controlplane.v1.records_pb2 import GLOBAL
from tests.server.regions import FLEET, REGION, running
from tests.test_auditor import nobody

ATLAS = Atlas("f", "us", {"us": "us", "eu": "eu", "eu2": "eu", "us2": "us"}, {"eu": frozenset({GLOBAL})})
FOREIGN = [("eu", "HOME_ONLY"), ("eu", "JURISDICTION"), ("us2", "HOME_ONLY"), ("gone", "JURISDICTION"), ("eu", "WHAT")]
OWN = [("us", "HOME_ONLY"), ("us", "JURISDICTION"), ("us2", "JURISDICTION"), ("eu", "GLOBAL"), ("us", "GLOBAL")]


def rows(places: list[tuple[str, str]]) -> dict[bytes, bytes]:
    found = {}
    for home, reach in places:
        key = keys.within(keys.scope(home, reach, f"{home}.p", 1), "flag", "name")
        found |= {keys.RECORD + key: b"v", keys.event(keys.domain(home, reach), 7, 0): b"v", keys.history(key, 7): b"v"}
    return found


def no_pause() -> None:
    pass


@pytest.mark.parametrize("place", FOREIGN)
def test_a_foreign_row_is_found(place: tuple[str, str]) -> None:
    store = MemoryStore()
    store.commit(Batch(puts={**rows(OWN), **rows([place]), keys.STATE: b"s", b"o" + bytes(24): b"x"}))
    found = residency.search(store, [], ATLAS, no_pause)
    assert found.foreign == 3
    assert found.searched == {"records": 6, "events": 6, "history": 6, "other rows": 2}
    assert not any("name" in each for each in found.described)


def test_what_belongs_here_is_not_found() -> None:
    store = MemoryStore()
    store.commit(Batch(puts=rows(OWN)))
    assert residency.search(store, [], ATLAS, no_pause).foreign == 0


@pytest.mark.parametrize("at", [0, 100, residency._CHUNK_BYTES - 5, residency._CHUNK_BYTES, 3 * residency._CHUNK_BYTES])
def test_it_is_found_in_raw_bytes_also_across_two_chunks(tmp_path: Path, at: int) -> None:
    file = tmp_path / "000001.log"
    file.write_bytes(bytes(at) + keys.domain("eu", "HOME_ONLY") + b"rest" + bytes(50))
    found = residency.search(MemoryStore(), [file, tmp_path / "gone"], ATLAS, no_pause)
    assert found.foreign == 1
    assert found.searched["log bytes"] == file.stat().st_size


def test_what_a_real_store_wrote_and_deleted_is_still_in_its_log(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    store.commit(Batch(puts=rows([("eu", "HOME_ONLY")])))
    store.commit(Batch(deletes=set(rows([("eu", "HOME_ONLY")]))))
    view = store.snapshot()
    found = residency.search(view, residency.files_below(tmp_path), ATLAS, no_pause)
    view.close()
    store.close()
    assert "records" not in found.searched
    assert found.foreign >= 3


async def test_a_scan_says_when_the_disk_was_searched(tmp_path: Path) -> None:
    """Not when something was written last: a region may be idle for days."""
    key = Ed25519PrivateKey.generate()
    async with running(tmp_path) as region:
        (member,) = region.members.values()
        auditor = Auditor(member.node, LedgerKeys(FLEET, REGION, key, {}), nobody)
        reviewers = Reviewers(member.node, auditor, member.server.region, tmp_path)
        began_ms = time.time_ns() // 1_000_000
        call = Call("ScanDisk", b"", "", "prod", member.node.clock() + 30)
        reply = ScanDiskReply.FromString(await reviewers.answer(call))
        note = notes.parse(reply.note)
    assert note.opened([auditor.signed("n1").verifier])  # type: ignore[union-attr]
    assert began_ms <= json.loads(note.text)["at_ms"] <= time.time_ns() // 1_000_000
