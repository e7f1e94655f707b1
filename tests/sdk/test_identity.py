"""Who the client is: certificates that are accepted, refused, foreign or missing, at a real node with mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane import certs, sdk
from controlplane.identity import Identity
from controlplane.loopback import LoopbackRegion, ending
from controlplane.sdk import SCOPE_TOOL, Denied, Invalid, Scope, Unavailable
from controlplane.sdk.sync import ControlPlane


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackRegion]:
    region = LoopbackRegion(tmp_path_factory.mktemp("region"), size=1, fleet="test", environment="test")
    with ending(region.nodes):
        region.start()
        agent = region.identity("agent", "first")
        for _ in range(3):
            try:
                with ControlPlane(region.addresses, **agent):
                    break
            except Unavailable:
                continue
        else:
            pytest.fail(region.nodes[0].tail())
        yield region


async def test_an_agent_may_do_what_agents_do(region: LoopbackRegion) -> None:
    async with sdk.ControlPlane.connect(region.addresses, **region.identity("agent", "a")) as cp:
        await cp.create_workflow("mine", b"")
        assert (await cp.get_workflow("mine")).workflow.meta.actor == "controlplane://test/test/eu-west/agent/a"
        with pytest.raises(Denied) as denied:
            await cp.engage(Scope(kind=SCOPE_TOOL, name="t"), reason="may I?")
        assert denied.value.reason == "ROLE_DENIED"
        cp.ensure_alive(tools=("t",))


async def test_certificates_may_be_given_as_bytes(region: LoopbackRegion) -> None:
    given = region.identity("agent", "b")
    read = {name: file.read_bytes() for name, file in given.items() if isinstance(file, Path)}
    async with sdk.ControlPlane.connect(region.addresses, mirror=False, **read) as cp:
        assert (await cp.get_region()).region.name == "eu-west"


async def test_a_certificate_of_another_region_is_denied_at_once(region: LoopbackRegion, tmp_path: Path) -> None:
    authority = certs.load_authority(region.file.parent / "certificates")
    issued = certs.issue(authority, Identity("test", "test", "us-east", "agent", "a"), tmp_path)
    with pytest.raises(Denied) as denied:
        async with sdk.ControlPlane.connect(
            region.addresses, ca=issued.authority, cert=issued.certificate, key=issued.key
        ):
            pytest.fail("entered")
    assert denied.value.reason == "REGION_MISMATCH"


async def test_another_fleet_is_no_one_to_talk_to(
    region: LoopbackRegion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlplane.sdk.client.CONNECT_TIMEOUT_S", 0.5)
    authority = certs.create_authority("test", tmp_path)
    issued = certs.issue(authority, Identity("test", "test", "eu-west", "agent", "a"), tmp_path)
    with pytest.raises(Unavailable) as unavailable:
        async with sdk.ControlPlane.connect(
            region.addresses, ca=issued.authority, cert=issued.certificate, key=issued.key
        ):
            pytest.fail("entered")
    assert "certificates" in unavailable.value.hint


def test_a_missing_file_is_named(region: LoopbackRegion, tmp_path: Path) -> None:
    with pytest.raises(Invalid) as invalid:
        sdk.ControlPlane.connect(region.addresses, ca=tmp_path / "none", cert=b"", key=b"")
    assert invalid.value.reason == "CREDENTIALS_UNREADABLE"
    assert "none" in str(invalid.value)
