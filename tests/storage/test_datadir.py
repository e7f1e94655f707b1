"""Whose a data folder is, who may open it, and what it says when it may not be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from controlplane import datadir
from controlplane.datadir import DataFolder, Standing, Start, open_folder, write_durably
from controlplane.errors import Fatal


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


def test_a_write_that_dies_half_way_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_durably(tmp_path / "file", b"old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_durably(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
