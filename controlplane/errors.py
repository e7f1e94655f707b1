"""The eight ways a request can fail, and no others.

Seven are *definite*: the request did not happen. One, `OutcomeUnknown`, is indefinite: it may have happened, and the
way to find out is to ask again with the same request id. Anything that is not one of these is a defect of this
program: it is logged whole and leaves the server as INTERNAL without its text.

Each error carries a stable machine-readable `reason` (UPPER_SNAKE_CASE, part of the API) and, where it helps, a
`hint`: the command to run or the thing to change next. Texts never carry values, user ids or other payload.
"""

from __future__ import annotations


class ControlPlaneError(Exception):
    """The base of the eight errors; never raised itself."""

    def __init__(self, message: str, *, reason: str, hint: str = "", **details: str | int) -> None:
        super().__init__(message)
        self.reason = reason
        self.hint = hint
        self.details = {name: str(value) for name, value in details.items()}


class Invalid(ControlPlaneError):
    """The request itself is wrong, whatever the state: asking again cannot help."""


class Denied(ControlPlaneError):
    """The caller is not known, or may not do this here."""


class NotFound(ControlPlaneError):
    """What the request names does not exist, as of a revision."""


class Refused(ControlPlaneError):
    """The rules said no, as of a revision. A refusal is an answer: it is replicated and kept like any other."""


class Contended(ControlPlaneError):
    """Others kept writing what this request read; nothing was written."""


class Compacted(ControlPlaneError):
    """The history asked for is no longer kept; `details["oldest"]` names the oldest revision that is."""


class Unavailable(ControlPlaneError):
    """The request never reached a log: safe to ask again, here or elsewhere."""


class OutcomeUnknown(ControlPlaneError):
    """The request may or may not have happened: ask again with the same request id."""


class Fatal(Exception):
    """An invariant of this node is broken. The process stops: going on could only make it worse."""
