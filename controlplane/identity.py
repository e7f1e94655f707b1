"""Who is calling: the identity that stands in a certificate as a URI.

`controlplane://fleet/environment/region/role/name`. A caller has one spelling: there are no escapes, and no
part may be empty, missing or too many.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from controlplane.errors import Invalid

SCHEME: Final = "controlplane"
ROLES: Final = ("agent", "operator", "approver", "reviewer", "peer")
PEOPLE: Final = frozenset({"operator", "approver", "reviewer"})
"""Roles of people."""
ENVIRONMENTS: Final = ("dev", "test", "staging", "prod")
EVERY_ENVIRONMENT: Final = "all"
"""A node serves every environment of its region; only peers may carry this."""

_TEXT_MAX = 512
_PREFIX = f"{SCHEME}://"
_WORD = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@+-]{0,126}[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """One caller. Constructing one checks every part; raises `Invalid` (IDENTITY_MALFORMED)."""

    fleet: str
    environment: str
    region: str
    role: str
    name: str

    def __post_init__(self) -> None:
        word = "must be a lower-case word of letters, digits and '-'"
        _require(word_is_valid(self.fleet), f"the fleet {word}")
        _require(word_is_valid(self.region), f"the region {word}")
        _require(self.role in ROLES, f"the role must be one of {', '.join(ROLES)}")
        _require(self._environment_is_valid(), f"the environment must be one of {', '.join(ENVIRONMENTS)}")
        _require(name_is_valid(self.name), "the name must be at most 128 letters, digits and . _ @ + -")

    def _environment_is_valid(self) -> bool:
        if self.environment == EVERY_ENVIRONMENT:
            return self.role == "peer"
        return self.environment in ENVIRONMENTS

    @property
    def uri(self) -> str:
        """The one text that stands for this identity."""
        return f"{_PREFIX}{self.fleet}/{self.environment}/{self.region}/{self.role}/{self.name}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Return the identity that `uri` names. Raises `Invalid` (IDENTITY_MALFORMED)."""
        _require(len(uri) <= _TEXT_MAX and uri.startswith(_PREFIX), f"it must start with {_PREFIX}")
        parts = uri.removeprefix(_PREFIX).split("/")
        _require(len(parts) == 5, "it must have exactly five parts")
        return cls(*parts)


def word_is_valid(text: str) -> bool:
    """Whether `text` may name a fleet or a region: a DNS label in lower case."""
    return _WORD.fullmatch(text) is not None


def name_is_valid(text: str) -> bool:
    """Whether `text` may name a node, an agent or a person."""
    return _NAME.fullmatch(text) is not None


def _require(valid: bool, problem: str) -> None:
    if not valid:
        raise Invalid(
            f"not an identity: {problem}",
            reason="IDENTITY_MALFORMED",
            hint=f"write it as {_PREFIX}<fleet>/<environment>/<region>/<role>/<name>",
        )
