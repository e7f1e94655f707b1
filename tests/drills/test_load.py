"""What a drill reads of a region before it breaks something."""

from __future__ import annotations

from controlplane import limits, sdk
from controlplane.drills.load import engaged_in
from controlplane.testing import control_plane

__all__ = ["control_plane"]


async def test_switches_behind_many_released_ones_are_found(control_plane, monkeypatch):
    monkeypatch.setattr(limits, "SWITCHES_SCANNED_MAX", 3)
    async with control_plane.connect(mirror=False) as plane:
        scopes = [sdk.Scope(kind=sdk.SCOPE_TENANT, name=f"tenant-{number}") for number in range(8)]
        for scope in scopes:
            await plane.engage(scope, reason="test")
        for scope in scopes[:-1]:
            await plane.release(scope, reason="test")
        assert not (await plane.list_switches(engaged_only=True)).switches
        assert [each.switch.scope.name for each in await engaged_in(plane)] == ["tenant-7"]
