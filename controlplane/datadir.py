"""The data folder of a node: whose it is, that only one process has it, and room kept for the worst day.

A folder that is lost, swapped, copied from another node or quietly emptied is more dangerous to a majority
protocol than a node that is down: such a node forgets votes and acknowledgements that others count on. So:

1. **Identity.** `IDENTITY` names fleet, region, node and *incarnation*, a random number that is new at every
   `--bootstrap` and `--replace`. It goes into every handshake; peers remember each other's (`MEMBERS`), and
   one whose incarnation changed without `--replace` is refused.
2. **An empty folder never starts by itself.** The operator says which of the two reasons it has to be empty:
   `--bootstrap` (a new region: every member is empty) or `--replace` (this disk was lost, the others have the
   data).
3. **Standing.** `BOOTSTRAPPING` and `REPLACING` last until the node has met its peers, or caught up; they
   survive a crash, so a node that stops half-way goes on where it was, with or without the flag. A journal or a store
   whose creation a crash cut off is made anew: no peer has data to restore a bootstrap from that never finished.
4. **One process.** `LOCK` is held with flock for as long as the folder is open; the kernel drops it with the
   process.
5. **Ballast.** A file of real bytes, given up when the disk runs short, so that stopping things and recording
   why still works on a disk that someone else filled.
6. **Durable** means: written to a new file, synced, renamed, folder synced. A crash leaves the old or the
   new.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from controlplane.errors import Fatal

FORMAT = 1
BALLAST_BYTES = 64 << 20
_BALLAST_STEP_BYTES = 1 << 20
_DATA = frozenset({"IDENTITY", "MEMBERS", "journal", "store"})
# What a start leaves that a crash ended before it knew whose the folder is, and what file systems put into new ones.
_BEFORE_IDENTITY = frozenset({"LOCK", "IDENTITY.new", "lost+found"})


class Start(Enum):
    """Why the operator says this node is starting."""

    NORMAL = "normal"
    BOOTSTRAP = "bootstrap"
    REPLACE = "replace"


class Standing(Enum):
    """How far this node is on its way to being a full member of its region."""

    BOOTSTRAPPING = "bootstrapping"
    REPLACING = "replacing"
    MEMBER = "member"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose folder it is, and how far it is on its way."""

    fleet: str
    region: str
    node: str
    incarnation: str
    standing: Standing


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: after a crash they are there, or gone, as now."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Replace the file at `path` so that a crash at any moment leaves the old content or the new, whole.

    Raises `Fatal` if the disk refuses; which of the two is there is then unknown.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise Fatal(f"{path}: cannot write: {error.strerror}. Check the disk, then start again.") from error


class DataFolder:
    """An open data folder. Create it with `open_folder`; it is this process's alone until `close`."""

    def __init__(self, path: Path, lock: BinaryIO, identity: Identity) -> None:
        self.path = path
        self.identity = identity
        self.members = _read_members(path)
        self._lock = lock

    @property
    def journal(self) -> Path:
        """Where the log's entries, term and vote live."""
        return self.path / "journal"

    @property
    def store(self) -> Path:
        """Where the replicated state lives."""
        return self.path / "store"

    @property
    def snapshots(self) -> Path:
        """Where snapshots are made and received; nothing in it outlives a start."""
        return self.path / "snapshots"

    def stand(self, standing: Standing) -> None:
        """Record durably that this node has come to `standing`."""
        self.identity = replace(self.identity, standing=standing)
        _write_checked(self.path / "IDENTITY", _identity_fields(self.identity))

    def remember(self, members: Mapping[str, str]) -> None:
        """Record durably which incarnation each peer has (name → incarnation)."""
        self.members = {**self.members, **members}
        _write_checked(self.path / "MEMBERS", self.members)

    @property
    def scrubbed(self) -> int:
        """The revision up to which nothing in this folder holds what had to be erased."""
        path = self.path / "SCRUBBED"
        return int(_read_checked(path)["revision"]) if path.exists() else 0

    def note_scrubbed(self, revision: int) -> None:
        """Record durably that nothing here holds what had to be erased up to `revision`."""
        _write_checked(self.path / "SCRUBBED", {"revision": revision})

    def free_bytes(self) -> int:
        """Bytes this process may still write to the folder's disk, the ballast not counted."""
        return shutil.disk_usage(self.path).free

    @property
    def ballast_bytes(self) -> int:
        """Size of the ballast at this moment; 0 once it was given up."""
        path = self.path / "BALLAST"
        return path.stat().st_size if path.exists() else 0

    def lay_ballast(self, size_bytes: int = BALLAST_BYTES) -> bool:
        """Fill the ballast with real bytes unless that would leave less than its size free; tell whether it is whole.

        Blocks for as long as the disk takes: not for the event loop's thread.
        """
        path = self.path / "BALLAST"
        if self.ballast_bytes == size_bytes:
            return True
        path.unlink(missing_ok=True)
        if self.free_bytes() < 2 * size_bytes:
            return False
        return _fill(path, size_bytes)

    def drop_ballast(self) -> int:
        """Give the ballast's bytes back to the disk; return how many they were."""
        freed = self.ballast_bytes
        (self.path / "BALLAST").unlink(missing_ok=True)
        return freed

    def relieve(self) -> bool:
        """Give the ballast up if less than half of its size is free; tell whether that was so."""
        return self.free_bytes() < self.ballast_bytes // 2 and self.drop_ballast() > 0

    def close(self) -> None:
        """Let another process open the folder."""
        self._lock.close()


def owner_of(path: Path) -> Identity | None:
    """Whose folder it is; None if it does not say. Raises `Fatal` if what it says is damaged."""
    return _read_identity(path) if (path / "IDENTITY").exists() else None


@contextmanager
def unused(path: Path) -> Iterator[None]:
    """Keep every process from opening the folder. Raises `Fatal` if one has it. A copy of a folder nobody can have."""
    if not (path / "LOCK").exists():
        yield
        return
    try:
        # It may lie on a disk that can be read, and no more.
        file = (path / "LOCK").open("rb")
    except OSError as error:
        raise Fatal(f"{path}: cannot read: {error.strerror}.") from error
    with _held(file, path):
        yield


def found(folders: Mapping[str, Path], *, fleet: str, region: str) -> None:
    """Say durably of folders, by node, that they are those of a region's members, of which each knows the others.

    What they hold has to be the same. Folders that these nodes had before are strangers to them from then on.
    """
    born = {node: secrets.token_hex(16) for node in folders}
    for node, path in folders.items():
        _write_checked(path / "MEMBERS", {other: born[other] for other in born if other != node})
        identity = Identity(fleet, region, node, born[node], Standing.MEMBER)
        _write_checked(path / "IDENTITY", _identity_fields(identity))


def open_folder(path: Path, *, fleet: str, region: str, node: str, start: Start) -> DataFolder:
    """Lock the folder and check that it is this node's, creating it where `start` allows that.

    Raises `Fatal` with the next step when it cannot be used or holds what is no node's data, another process holds it,
    it is another node's, it is damaged or of an unknown format, it is empty without a reason, or it holds data that
    `start` would contradict.
    """
    prepare(path)
    lock = _lock(path)
    try:
        identity = _admit(path, (fleet, region, node), start)
        _furnish(path, identity)
        opened = DataFolder(path, lock, identity)
        opened.relieve()
        return opened
    except BaseException:
        lock.close()
        raise


def prepare(path: Path) -> None:
    """Make the folder if it is not there. Raises `Fatal` where that cannot be, or if what is in it is no node's data.

    A folder of something else is not taken: what it holds would lie among the node's data from then on, and be moved
    away with it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = sorted(each.name for each in path.iterdir())
    except OSError as error:
        raise _unusable(path, error) from error
    strangers = [name for name in found if name not in _BEFORE_IDENTITY]
    if strangers and not _DATA.intersection(found):
        raise Fatal(
            f"{path} is no data folder and is not empty: {strangers[0]} is in it. Point --data at a folder of its own; "
            f"it is made if it is not there."
        )


def _unusable(path: Path, error: OSError) -> Fatal:
    return Fatal(f"{path}: cannot be a data folder: {error.strerror}. Point --data at one that can be written.")


def _admit(path: Path, owner: tuple[str, str, str], start: Start) -> Identity:
    if not (path / "IDENTITY").exists():
        return _create(path, owner, start)
    identity = _read_identity(path)
    _check_owner(path, identity, owner)
    _check_start(path, identity, start)
    return identity


def _furnish(path: Path, identity: Identity) -> None:
    """Make the folders there are in every data folder. Raises `Fatal` if the disk refuses."""
    try:
        for folder in (path / "journal", path / "store", path / "snapshots"):
            if identity.standing is Standing.BOOTSTRAPPING and folder.exists() and _unwritten(folder):
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True)
        sync_folder(path)
    except OSError as error:
        raise Fatal(f"{path}: cannot write: {error.strerror}. Check the disk, then start again.") from error


def _unwritten(database: Path) -> bool:
    """Whether RocksDB was never given a row for it: no table, and nothing in any log.

    Only then is nothing lost with it, whatever became of the record of this node's standing.
    """
    return not any(path.stat().st_size for path in database.rglob("*") if path.suffix in (".log", ".sst"))


def _create(path: Path, owner: tuple[str, str, str], start: Start) -> Identity:
    if any((path / name).exists() for name in _DATA):
        raise Fatal(
            f"{path}: IDENTITY is missing but data is there. Put the file back from a copy of this folder, "
            f"or empty the folder and start with --replace to fetch the data from the peers."
        )
    if start is Start.NORMAL:
        raise Fatal(
            f"{path} is empty. Start with --bootstrap if the whole region is new, or with --replace if this "
            f"node's disk was lost and the other nodes still have the data."
        )
    standing = Standing.BOOTSTRAPPING if start is Start.BOOTSTRAP else Standing.REPLACING
    identity = Identity(*owner, incarnation=secrets.token_hex(16), standing=standing)
    _write_checked(path / "IDENTITY", _identity_fields(identity))
    return identity


def _check_owner(path: Path, identity: Identity, owner: tuple[str, str, str]) -> None:
    for what, found, wanted in zip(
        ("fleet", "region", "node"), (identity.fleet, identity.region, identity.node), owner, strict=True
    ):
        if found != wanted:
            raise Fatal(
                f"{path} belongs to {what} {found!r}, not to {wanted!r}. Point --data at this node's own "
                f"folder, or at an empty one and start with --replace."
            )


def _check_start(path: Path, identity: Identity, start: Start) -> None:
    allowed = {
        Start.NORMAL: set(Standing),
        Start.BOOTSTRAP: {Standing.BOOTSTRAPPING},
        Start.REPLACE: {Standing.REPLACING},
    }
    if identity.standing not in allowed[start]:
        raise Fatal(
            f"{path} already holds data (standing: {identity.standing.value}). Start without --{start.value}; "
            f"to begin anew from the peers' data, move the folder away and start with --replace."
        )


def _lock(path: Path) -> BinaryIO:
    try:
        file = (path / "LOCK").open("ab")
    except OSError as error:
        raise _unusable(path, error) from error
    return _held(file, path)


def _held(file: BinaryIO, path: Path) -> BinaryIO:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise _unusable(path, error) from error
        raise Fatal(f"{path} is in use by another process. Stop that one first.") from error
    return file


def _fill(path: Path, size_bytes: int) -> bool:
    """Incompressible bytes, so that no file system can store them in less."""
    try:
        with path.open("wb") as file:
            for _ in range(0, size_bytes, _BALLAST_STEP_BYTES):
                file.write(os.urandom(min(_BALLAST_STEP_BYTES, size_bytes - file.tell())))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        return False
    sync_folder(path.parent)
    return True


def _identity_fields(identity: Identity) -> dict[str, str | int]:
    return {**asdict(identity), "standing": identity.standing.value, "format": FORMAT}


def _identity(fields: Mapping[str, str | int]) -> Identity:
    texts = {name: str(fields[name]) for name in ("fleet", "region", "node", "incarnation")}
    return Identity(**texts, standing=Standing(fields["standing"]))


def _read_identity(path: Path) -> Identity:
    fields = _read_checked(path / "IDENTITY")
    if fields.pop("format", None) != FORMAT:
        raise Fatal(f"{path / 'IDENTITY'} has a format this version does not know. Start the version that wrote it.")
    return _identity(fields)


def _read_members(path: Path) -> dict[str, str]:
    if not (path / "MEMBERS").exists():
        return {}
    return {name: str(incarnation) for name, incarnation in _read_checked(path / "MEMBERS").items()}


def _write_checked(path: Path, fields: Mapping[str, str | int]) -> None:
    body = json.dumps(dict(fields), sort_keys=True)
    write_durably(path, f"{zlib.crc32(body.encode()):08x} {body}\n".encode())


def _read_checked(path: Path) -> dict[str, str | int]:
    try:
        checksum, _, body = path.read_text("utf-8", "replace").strip().partition(" ")
    except OSError as error:
        raise Fatal(f"{path}: cannot read: {error.strerror}. Check the disk, then start again.") from error
    if checksum != f"{zlib.crc32(body.encode()):08x}":
        raise Fatal(
            f"{path} is damaged. Restore the node from its peers: move the data folder away and start with --replace."
        )
    fields: dict[str, str | int] = json.loads(body)
    return fields
