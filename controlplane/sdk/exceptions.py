"""What an agent can meet besides the eight errors of a request."""

from __future__ import annotations

from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import ScopeKind


class SdkError(Exception):
    """The base of the conditions below: found by the SDK itself, never sent by a server."""


class ConflictError(SdkError):
    """Others updated the workflow first, every time: nothing was written."""

    def __init__(self, workflow_id: str, tries: int) -> None:
        super().__init__(f"could not update {workflow_id} after {tries} tries")
        self.workflow_id = workflow_id
        self.tries = tries


class MirrorStale(SdkError):
    """The mirror is too old to give permission: treat the agent as stopped until it is fresh again."""

    def __init__(self, age_s: float, age_max_s: float) -> None:
        super().__init__(f"the mirror's age may be {age_s:.3f} s; at most {age_max_s:.3f} s is allowed")
        self.age_s = age_s
        self.age_max_s = age_max_s


class Stopped(SdkError):
    """Engaged kill switches cover the agent: it must not act."""

    def __init__(self, switches: tuple[api.SwitchView, ...]) -> None:
        names = ", ".join(describe(view) for view in switches)
        super().__init__(f"stopped by {names}")
        self.switches = switches


class NotElected(SdkError):
    """The campaign was not won in the time allowed."""

    def __init__(self, election: str, waited_s: float) -> None:
        super().__init__(f"not elected for {election} within {waited_s:.1f} s")
        self.election = election


class LeaseLost(SdkError):
    """The lease can no longer be relied on: whatever it protected has to end."""

    def __init__(self, election: str) -> None:
        super().__init__(f"the lease on {election} was lost")
        self.election = election


def describe(view: api.SwitchView) -> str:
    """Return what a switch stops, as "tool:search" or "region", and which region's it is, if not the own one's."""
    scope = view.switch.scope
    word = ScopeKind.Name(scope.kind).removeprefix("SCOPE_").lower() if scope.kind else "stop"
    what = f"{word}:{scope.name}" if scope.name else word
    return f"{what} of {view.region}" if view.region else what
