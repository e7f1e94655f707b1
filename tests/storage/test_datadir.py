"""Whose a data folder is, who may open it, and what it says when it may not be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from controlplane import datadir
from controlplane.datadir import DataFolder, Standing, Start, open_folder, write_durably
from controlplane.errors import Fatal
from controlplane.kernel.store import Batch
from controlplane.replication.journal import Journal
from controlplane.replication.tail import Meta
from controlplane.storage import RocksStore


def opened(path: Path, start: Start = Start.NORMAL, **owner: str) -> DataFolder:
    return open_folder(path, start=start, **{"fleet": "f", "region": "r", "node": "n1", **owner})


def test_an_empty_folder_needs_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"is empty. Start with --bootstrap .* or with --replace"):
        opened(tmp_path)
    assert not (tmp_path / "IDENTITY").exists()


@pytest.mark.parametrize(
    ("start", "standing"), [(Start.BOOTSTRAP, Standing.BOOTSTRAPPING), (Start.REPLACE, Standing.REPLACING)]
)
def test_joining_survives_a_crash_with_or_without_the_flag(tmp_path: Path, start: Start, standing: Standing) -> None:
    folder = opened(tmp_path, start)
    first = folder.identity
    folder.close()
    for again in (start, Start.NORMAL):
        folder = opened(tmp_path, again)
        assert folder.identity == first
        assert folder.identity.standing is standing
        folder.close()


@pytest.mark.parametrize("start", [Start.BOOTSTRAP, Start.REPLACE])
def test_a_folder_with_data_is_not_begun_anew(tmp_path: Path, start: Start) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    folder.stand(Standing.MEMBER)
    folder.close()
    with pytest.raises(Fatal, match=f"already holds data .* Start without --{start.value}"):
        opened(tmp_path, start)
    opened(tmp_path).close()


@pytest.mark.parametrize("what", ["fleet", "region", "node"])
def test_a_folder_of_another_owner_is_refused(tmp_path: Path, what: str) -> None:
    opened(tmp_path, Start.BOOTSTRAP).close()
    with pytest.raises(Fatal, match=f"belongs to {what} .*, not to 'other'"):
        opened(tmp_path, **{what: "other"})


def test_every_new_folder_is_another_incarnation(tmp_path: Path) -> None:
    found = set()
    for n in range(3):
        folder = opened(tmp_path / str(n), Start.BOOTSTRAP)
        found.add(folder.identity.incarnation)
        folder.close()
    assert len(found) == 3


@pytest.mark.parametrize("start", list(Start))
def test_a_folder_that_cannot_be_made_or_looked_at_is_named(tmp_path: Path, start: Start) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "below", Path("/proc/x"), tmp_path / ("x" * 300)):
        with pytest.raises(Fatal, match=f"^{path}: cannot be a data folder: .*Point --data"):
            opened(path, start)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "LOCK").mkdir()
    with pytest.raises(Fatal, match="cannot be a data folder: Is a directory"):
        opened(tmp_path, Start.BOOTSTRAP)


def test_an_identity_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "IDENTITY").mkdir()
    with pytest.raises(Fatal, match="IDENTITY: cannot read: Is a directory"):
        opened(tmp_path)


@pytest.mark.parametrize("start", list(Start))
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path, start: Start) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(Fatal, match=r"is no data folder and is not empty: letter\.txt"):
        opened(tmp_path, start)
    assert [each.name for each in tmp_path.iterdir()] == ["letter.txt"]


def test_what_a_file_system_or_a_crash_leaves_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    for name in ("LOCK", "IDENTITY.new"):
        (tmp_path / name).touch()
    opened(tmp_path, Start.BOOTSTRAP).close()


def test_two_processes_cannot_share_it(tmp_path: Path) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    code = (
        "import sys; from pathlib import Path; from controlplane.datadir import *\n"
        "open_folder(Path(sys.argv[1]), fleet='f', region='r', node='n1', start=Start.NORMAL)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=20, check=False
    )
    assert "is in use by another process" in other.stderr
    folder.close()
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=20, check=False).returncode == 0


@pytest.mark.parametrize("name", ["IDENTITY", "MEMBERS"])
def test_damage_is_named_with_the_next_step(tmp_path: Path, name: str) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    folder.remember({"n2": "abc"})
    folder.close()
    content = bytearray((tmp_path / name).read_bytes())
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 0x20
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(Fatal, match=rf"{name} is damaged.*--replace"):
            opened(tmp_path)


def test_a_lost_identity_is_not_taken_for_an_empty_folder(tmp_path: Path) -> None:
    opened(tmp_path, Start.BOOTSTRAP).close()
    (tmp_path / "IDENTITY").unlink()
    for start in Start:
        with pytest.raises(Fatal, match="IDENTITY is missing but data is there"):
            opened(tmp_path, start)


@pytest.mark.parametrize("again", [Start.BOOTSTRAP, Start.NORMAL])
def test_databases_that_a_crash_left_half_made_are_made_anew(tmp_path: Path, again: Start) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    folder.close()
    # What RocksDB has written, and the store before it, when the name of the one file that counts is still missing.
    for name in ("journal/MANIFEST-000001", "store/000001/MANIFEST-000001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "store/000001/000004.log").touch()
    second = opened(tmp_path, again)
    assert second.identity == folder.identity
    Journal(second.journal).close()
    RocksStore(second.store).close()
    second.close()


def test_what_was_written_is_never_taken_for_half_made(tmp_path: Path) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    journal, store = Journal(folder.journal), RocksStore(folder.store)
    journal.write([Meta(7, "n2")])
    store.commit(Batch(puts={b"key": b"value"}))
    for database in (journal, store, folder):
        database.close()
    again = opened(tmp_path, Start.BOOTSTRAP)
    assert again.identity.standing is Standing.BOOTSTRAPPING
    assert Journal(again.journal).recover().term == 7
    assert RocksStore(again.store).get(b"key") == b"value"
    again.close()


@pytest.mark.parametrize("standing", [Standing.MEMBER, Standing.REPLACING])
def test_others_have_peers_with_data_and_are_sent_to_them(tmp_path: Path, standing: Standing) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    folder.stand(standing)
    (folder.journal / "MANIFEST-000001").write_bytes(b"half")
    folder.close()
    again = opened(tmp_path)
    with pytest.raises(Fatal, match="start with --replace"):
        Journal(again.journal)
    again.close()


def test_a_disk_that_refuses_a_new_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datadir.os, "fsync", refuses)
    with pytest.raises(Fatal, match=r"No space left on device\. Check the disk"):
        opened(tmp_path, Start.BOOTSTRAP)
    monkeypatch.undo()
    opened(tmp_path, Start.BOOTSTRAP).close()
    monkeypatch.setattr(datadir.os, "fsync", refuses)
    with pytest.raises(Fatal, match=r"No space left on device\. Check the disk"):
        opened(tmp_path)


def test_an_unknown_format_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datadir, "FORMAT", 2)
    opened(tmp_path, Start.BOOTSTRAP).close()
    monkeypatch.undo()
    with pytest.raises(Fatal, match="a format this version does not know"):
        opened(tmp_path)


def test_it_remembers_members(tmp_path: Path) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    folder.remember({"n2": "a", "n3": "b"})
    folder.remember({"n2": "c"})
    folder.close()
    folder = opened(tmp_path)
    assert folder.members == {"n2": "c", "n3": "b"}
    folder.close()


def test_ballast_takes_real_room_and_gives_it_back(tmp_path: Path) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    assert folder.lay_ballast(3 << 20)
    taken = (tmp_path / "BALLAST").stat()
    assert (taken.st_size, folder.ballast_bytes) == (3 << 20, 3 << 20)
    assert taken.st_blocks * 512 >= 3 << 20
    assert folder.lay_ballast(3 << 20)
    assert folder.drop_ballast() == 3 << 20
    assert folder.ballast_bytes == 0
    assert not folder.lay_ballast(folder.free_bytes())
    assert folder.ballast_bytes == 0
    folder.close()


def test_ballast_is_given_up_when_the_disk_runs_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)
    folder.lay_ballast(4 << 20)
    assert not folder.relieve()
    monkeypatch.setattr(DataFolder, "free_bytes", lambda _: 1 << 20)
    assert folder.relieve()
    assert (folder.ballast_bytes, folder.relieve()) == (0, False)
    monkeypatch.undo()
    folder.lay_ballast(4 << 20)
    folder.close()
    monkeypatch.setattr(DataFolder, "free_bytes", lambda _: 0)
    folder = opened(tmp_path)
    assert folder.ballast_bytes == 0
    folder.close()


def test_ballast_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(tmp_path, Start.BOOTSTRAP)

    def refuses(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datadir.os, "fsync", refuses)
    assert not folder.lay_ballast(1 << 20)
    assert folder.ballast_bytes == 0
    folder.close()


def test_a_file_is_synced_before_it_is_renamed_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_durably(tmp_path / "file", b"old")
    synced: list[tuple[str, bytes]] = []

    def noted(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, (tmp_path / "file").read_bytes()))

    monkeypatch.setattr(datadir.os, "fsync", noted)
    write_durably(tmp_path / "file", b"new")
    assert synced == [("file.new", b"old"), (tmp_path.name, b"new")]


def test_a_write_that_dies_half_way_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_durably(tmp_path / "file", b"old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_durably(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
