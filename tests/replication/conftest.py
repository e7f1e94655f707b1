"""Certificates for the regions of these tests; the regions themselves are in `livenodes`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controlplane.certs import Authority, create_authority
from controlplane.credentials import Pem
from controlplane.identity import Identity
from tests.replication.livenodes import FLEET, REGION, signed_by


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return create_authority(FLEET, tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def credentials(authority: Authority) -> Callable[..., Pem]:
    """Make a certificate; by default that of a peer of the tests' region."""

    def make(
        name: str, *, fleet: str = FLEET, region: str = REGION, role: str = "peer", environment: str = "all"
    ) -> Pem:
        return signed_by(authority, Identity(fleet, environment, region, role, name))

    return make
