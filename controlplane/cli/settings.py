"""Which region cpctl talks to: flags before environment variables before a context of the configuration file.

The file is `controlplane/config.toml` below XDG_CONFIG_HOME (default `~/.config`):

    current = "eu-west"

    [context.eu-west]
    addresses = ["10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"]
    authority = "/etc/controlplane/authority.crt"
    certificate = "/etc/controlplane/operator.crt"
    key = "/etc/controlplane/operator.key"

Paths in it are relative to its folder. Without any of the three the region is that of `controlplane dev`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import click

from controlplane.cli import tls
from controlplane.cli.files import FileUnusable, usable

DEV_ADDRESS = "127.0.0.1:7000"
_FILE_BYTES_MAX = 1 << 20
_CONTEXTS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """One region and how to be let in. Empty paths with `insecure` for `controlplane dev` only."""

    addresses: tuple[str, ...] = ()
    authority: str = ""
    certificate: str = ""
    key: str = ""
    insecure: bool = False

    def or_else(self, fallback: Settings) -> Settings:
        """These settings, completed from others; addresses and the right to go without TLS belong together."""
        if self.insecure or (self.addresses and not fallback.addresses):
            return self
        merged = {each.name: getattr(self, each.name) or getattr(fallback, each.name) for each in fields(self)}
        return replace(self, **merged)

    def checked(self) -> Settings:
        """These settings if a connection can be tried with them. Raises `click.UsageError` or `FileUnusable`."""
        if not self.addresses and not self._paths():
            return Settings(addresses=(DEV_ADDRESS,), insecure=True)
        if not self.addresses:
            raise click.UsageError("no address of the region: give --address, or choose a context with --context")
        if self.insecure:
            return self
        missing = [name for name in ("authority", "certificate", "key") if not getattr(self, name)]
        if missing:
            raise click.UsageError(f"no {' and no '.join(missing)} file: give --{missing[0]}, or --insecure for dev")
        for path in self._paths():
            if not Path(path).is_file():
                raise click.UsageError(f"{path} is not a file")
        tls.check(self.authority, self.certificate, self.key)
        return self

    def _paths(self) -> list[str]:
        return [path for path in (self.authority, self.certificate, self.key) if path]


@dataclass(frozen=True, slots=True)
class Contexts:
    """What the configuration file holds."""

    current: str | None
    table: dict[str, Settings]

    def named(self, name: str | None) -> Settings:
        """The context of that name, or the current one; empty settings if there is none. Raises `click.UsageError`."""
        wanted = name or self.current
        if wanted is None:
            return Settings()
        if wanted not in self.table:
            known = ", ".join(self.table) or "none"
            raise click.UsageError(f"there is no context {wanted!r}; known: {known} (cpctl context set {wanted} ...)")
        return self.table[wanted]


def config_file(environ: Mapping[str, str]) -> Path:
    """Where the configuration file is."""
    home = environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    return Path(home) / "controlplane" / "config.toml"


def load(file: Path) -> Contexts:
    """Read the configuration file; none is an empty one.

    Raises `click.UsageError` or `FileUnusable`, which say what is wrong with it.
    """
    try:
        with file.open("rb") as opened:
            table = tomllib.loads(opened.read(_FILE_BYTES_MAX).decode())
    except FileNotFoundError:
        return Contexts(None, {})
    except OSError as error:
        raise FileUnusable(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file} is not TOML: {error}") from None
    contexts = table.get("context", {})
    current = table.get("current")
    if not isinstance(contexts, dict) or not isinstance(current, str | None) or set(table) - {"context", "current"}:
        raise click.UsageError(f'{file}: write current = "NAME" and [context.NAME] tables, nothing else')
    return Contexts(
        current, {name: _settings(value, f"{file}: context.{name}", file) for name, value in contexts.items()}
    )


def _settings(value: Any, where: str, file: Path) -> Settings:
    wanted = {each.name for each in fields(Settings)}
    if not isinstance(value, dict) or set(value) - wanted:
        raise click.UsageError(f"{where}: write {', '.join(sorted(wanted))}, nothing else")
    addresses, insecure = value.get("addresses", []), value.get("insecure", False)
    paths = {key: value.get(key, "") for key in ("authority", "certificate", "key")}
    texts = [*addresses, *paths.values()] if isinstance(addresses, list) else [None]
    if not all(isinstance(text, str) for text in texts) or not isinstance(insecure, bool):
        raise click.UsageError(f"{where}: addresses is a list of texts, insecure true or false, the rest are texts")
    return Settings(
        tuple(addresses),
        **{key: str(file.parent / Path(path).expanduser()) if path else "" for key, path in paths.items()},
        insecure=insecure,
    )


def save(file: Path, contexts: Contexts) -> None:
    """Write the configuration file, whole or not at all; readable by its owner only.

    Raises `click.UsageError` for too many contexts, `FileUnusable` where nothing can be written.
    """
    if len(contexts.table) > _CONTEXTS_MAX:
        raise click.UsageError(f"more than {_CONTEXTS_MAX} contexts")
    lines = [f"current = {_toml(contexts.current)}", ""] if contexts.current else []
    for name, settings in contexts.table.items():
        lines.append(f"[context.{_toml(name)}]")
        lines += [f"{each.name} = {_toml(getattr(settings, each.name))}" for each in fields(settings)]
        lines.append("")
    with usable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_text("\n".join(lines), encoding="utf-8")
        fresh.chmod(0o600)
        fresh.replace(file)


def _toml(value: Any) -> str:
    # Texts, lists of texts and booleans are written alike in JSON and in TOML, but for one character.
    text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
