"""What RocksDB takes for a tear: a changed length is found, wherever it is; a real tear is not taken for one."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from controlplane import framing
from controlplane.errors import Fatal
from controlplane.kernel.store import Batch
from controlplane.replication.journal import Journal
from controlplane.replication.tail import Add, Meta
from controlplane.storage import RocksStore

HEADER = struct.Struct("<IHB")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of more than one block, as a crash leaves it."""
    writer = Journal(tmp_path / "j")
    for index in range(1, 31):
        writer.write([Meta(index, "n1"), Add(index, index, b"%d" % index * 700)])
    shutil.copytree(tmp_path / "j", tmp_path / "copy")
    writer.close()
    return tmp_path / "copy"


def log_of(journal: Path) -> Path:
    (log,) = journal.glob("*.log")
    return log


def records(content: bytes) -> list[int]:
    """Where each begins."""
    found, at = [], 0
    while at + HEADER.size <= len(content):
        if 32768 - at % 32768 < HEADER.size:
            at += 32768 - at % 32768
            continue
        found.append(at)
        at += HEADER.size + HEADER.unpack_from(content, at)[1]
    return found


def changed(path: Path, at: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_a_changed_length_is_refused_in_every_record(journal: Path) -> None:
    whole = log_of(journal).read_bytes()
    assert len(whole) > 32768
    found = 0
    for at in records(whole):
        for bit in (4, 6, 7):
            log_of(journal).write_bytes(whole)
            changed(log_of(journal), at + 5, bit)
            found += "length" in framing.damage(journal)
            with pytest.raises(Fatal, match="is damaged"):
                Journal(journal)
    assert found > 10, "RocksDB alone would have dropped what follows"


def test_a_changed_length_in_the_manifest_is_refused(journal: Path) -> None:
    (manifest,) = journal.glob("MANIFEST-*")
    for at in records(manifest.read_bytes()):
        changed(manifest, at + 5, 6)
        with pytest.raises(Fatal, match="is damaged"):
            Journal(journal)
        changed(manifest, at + 5, 6)
    Journal(journal).close()


def test_a_changed_kind_is_refused_before_rocksdb_reads_it_for_ever(journal: Path) -> None:
    whole = log_of(journal).read_bytes()
    for at in records(whole)[::5]:
        for bit in range(8):
            log_of(journal).write_bytes(whole)
            changed(log_of(journal), at + 6, bit)
            with pytest.raises(Fatal, match="is damaged"):
                Journal(journal)


def test_a_store_refuses_a_changed_kind_and_forgives_a_changed_length(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "s")
    for number in range(9):
        store.commit(Batch(puts={b"%d" % number: b"x" * 50}))
    store.sync()
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    store.close()
    log = log_of(tmp_path / "copy" / "000001")
    third = records(log.read_bytes())[2]
    changed(log, third + 6, 2)
    with pytest.raises(Fatal, match="cannot be read: the kind of the record"):
        RocksStore(tmp_path / "copy")
    changed(log, third + 6, 2)
    changed(log, third + 5, 6)
    behind = RocksStore(tmp_path / "copy")
    assert [key for key, _ in behind.scan(b"", b"z")] == [b"0", b"1"]
    behind.close()


def test_a_tear_is_no_damage(journal: Path) -> None:
    log = log_of(journal)
    whole = log.read_bytes()
    for cut in range(len(whole) - 5000, len(whole), 97):
        log.write_bytes(whole[:cut])
        assert framing.damage(journal) == ""
        log.write_bytes(whole[:cut] + bytes(500))
        assert framing.damage(journal) == ""


def test_an_empty_file_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "000001.log").touch()
    assert framing.damage(tmp_path) == ""
