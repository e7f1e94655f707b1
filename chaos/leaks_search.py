"""What is planted for a search for leaks, where it may be, and the search itself.

Three words, drawn anew for each run and found nowhere else: `pinned` stands in whatever must not leave its region (what
is in home-only partitions; who wrote any record and why, and the ids of their requests, wherever the record is), `law`
in whatever must not leave the jurisdiction, `shared` in what goes everywhere. The last one is the control experiment: a
search that does not find it abroad would find nothing at all.
"""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from controlplane.storage import RocksStore

HOME: Final = "eu-west"
NEIGHBOUR: Final = "eu-central"
ABROAD: Final = "us-east"
JURISDICTIONS: Final[Mapping[str, tuple[str, ...]]] = {"eu": (HOME, NEIGHBOUR), "us": (ABROAD,)}

_LETTERS = "bcdfghjkmnpqrstvwxz"
_WORD_CHARS = 12
_SHOWN = 24


class Words(NamedTuple):
    """What is planted: lower-case letters, to be part of any name, and so few that request ids have room for them."""

    pinned: str
    law: str
    shared: str

    def forbidden(self, region: str) -> dict[str, str]:
        """By what it is called: the words that must not be in a region, or be told to its callers."""
        return {HOME: {}, NEIGHBOUR: {"pinned": self.pinned}}.get(region, {"pinned": self.pinned, "law": self.law})


def words(random: Random) -> Words:
    """New ones."""
    return Words(*("".join(random.choices(_LETTERS, k=_WORD_CHARS)) for _ in Words._fields))


def forms(word: str) -> dict[str, bytes]:
    """How a word can be written down: as it is, in UTF-16, in hexadecimal, and in base64 wherever it begins there."""
    plain = word.encode()
    found = {"": plain, " in UTF-16": word.encode("utf-16-le"), " in hexadecimal": plain.hex().encode()}
    for ahead in range(3):
        # The characters that depend on nothing but the word.
        encoded = base64.b64encode(bytes(ahead) + plain)[ahead + 1 if ahead else 0 :]
        found[f" in base64, {ahead} bytes in"] = encoded.rstrip(b"=")[:-1]
    return found


class Finding(NamedTuple):
    """A word where it must not be."""

    what: str
    region: str
    place: str
    context: str


@dataclass(slots=True)
class Searched:
    """What a search went through: bytes by sort of place, and what it found."""

    region: str
    wanted: Mapping[str, str]
    sizes: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def look(self, sort: str, place: str, content: bytes) -> None:
        """Search one file, row, message or text."""
        self.sizes[sort] = self.sizes.get(sort, 0) + len(content)
        lower = content.lower()
        for what, word in self.wanted.items():
            for how, form in forms(word).items():
                # Base64 tells capitals apart; for all else they do not matter.
                at = (content if "base64" in how else lower).find(form)
                if at >= 0:
                    around = content[max(0, at - _SHOWN) : at + len(form) + _SHOWN]
                    self.findings.append(Finding(what + how, self.region, f"{sort}: {place}", repr(around)))

    def files(self, folder: Path) -> None:
        """Search every file below a folder as it lies there; names of files too."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = str(file.relative_to(folder))
                with_name = name.encode() + b"\n"
                try:
                    self.look(
                        "logs" if name.endswith(".log") and "/" not in name else "files",
                        name,
                        with_name + file.read_bytes(),
                    )
                except FileNotFoundError:
                    # A running node trims its journal and its store.
                    continue

    def rows(self, store: Path, place: str) -> None:
        """Search every row of a store whose node has ended: on disk, rows are compressed, and their keys shortened."""
        opened = RocksStore(store)
        try:
            for key, value in opened.scan(b"", b"\xff" * 8):
                self.look("rows", place, key + b"\n" + value)
        finally:
            opened.close()

    def bundle(self, file: Path) -> None:
        """Search a residency bundle: as it is, and member by member."""
        self.look("bundles", file.name, file.read_bytes())
        for name, content in _members(file.read_bytes()):
            self.look("bundles", f"{file.name}/{name}", name.encode() + b"\n" + content)


def _members(packed: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                yield member.name, content.read()
