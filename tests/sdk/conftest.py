"""One control plane per module: a server that has run for a while is also a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlplane.testing import Plane, control_plane, plane

__all__ = ["control_plane"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Plane]:
    """A control plane whose time is not moved and whose leader stays: for tests that use names of their own."""
    with plane() as running:
        yield running
