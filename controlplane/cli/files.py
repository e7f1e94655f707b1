"""Files that people name: what cannot be used is told before anything is done with it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.text import Text


class FileUnusable(click.ClickException):
    """A file or folder that was named cannot be used, and nothing was done; the text names it."""

    exit_code = 2
    kind, reason = "Invalid", "FILE_UNUSABLE"
    """As programs are told, like one of the eight errors."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Say so to people."""
        said = Text.assemble(("error: ", "bold red"), self.message)
        Console(file=file, stderr=file is None, highlight=False).print(said, soft_wrap=True)


class Unwritten(FileUnusable):
    """What was asked for is done, but its output, or a file about it, could not be written; the text names it."""

    exit_code = 13
    kind, reason = "Unwritten", "OUTPUT_UNWRITTEN"


def usable(path: Path) -> AbstractContextManager[None]:
    """Turn what the system has against `path` into `FileUnusable`."""
    return _told(path, FileUnusable)


def written(path: Path) -> AbstractContextManager[None]:
    """Turn what the system has against `path`, when it is too late for `usable`, into `Unwritten`."""
    return _told(path, Unwritten)


@contextmanager
def _told(path: Path, kind: type[FileUnusable]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: {error.strerror or error}") from error


def check_folder(folder: Path, *, make: bool = False) -> None:
    """See whether files can be made in `folder`, with `make` after making it. Raises `FileUnusable`."""
    with usable(folder):
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            # A full disk still takes an empty file.
            probe.write(b"\0" * 4096)
