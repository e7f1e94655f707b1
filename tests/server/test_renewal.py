"""A whole region and its agents go over to another authority, one file after the other, and nothing else changes."""

from __future__ import annotations

import grpc
import pytest

from controlplane import certs, sdk
from controlplane.datadir import Start
from controlplane.errors import OutcomeUnknown
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from tests.server.regions import FLEET, REGION, Caller, running, until

AGENT = Identity(FLEET, "prod", REGION, "agent", "a")


class Agent:
    """An agent's files."""

    def __init__(self, folder):
        self.ca, self.cert, self.key = (folder / name for name in ("ca", "cert", "key"))

    @property
    def files(self):
        return {"ca": self.ca, "cert": self.cert, "key": self.key}

    def renew(self, authority, trusted):
        put(self.ca, trusted)
        replace(authority.sign(AGENT), self.cert, self.key)


def put(file, content):
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


def replace(signed, certificate, key):
    signed.save(certificate.with_suffix(".new"), key.with_suffix(".new2"), force=True)
    key.with_suffix(".new2").replace(key)
    certificate.with_suffix(".new").replace(certificate)


async def restarted(region, name):
    await region.members.pop(name).stop()
    await region.start(name, Start.NORMAL)


async def followed(region, revision):
    await until(lambda: all(member.node.revision >= revision for member in region.members.values()))


async def test_another_authority(tmp_path):
    async with running(tmp_path / "region", 3) as region:
        agent, old = Agent(tmp_path), region.authority
        agent.renew(old, old.file.read_bytes())
        before = agent.cert.read_bytes(), agent.key.read_bytes()
        addresses = [node.address for node in region.config.nodes]
        async with sdk.ControlPlane.connect(addresses, **agent.files) as plane:
            await plane.create_workflow("w", b"1")

            new = certs.create_authority(FLEET, tmp_path / "new")
            both = old.file.read_bytes() + new.file.read_bytes()
            put(region.config.authority, both)
            agent.renew(new, both)
            for node in region.config.nodes:
                identity = Identity(FLEET, EVERY_ENVIRONMENT, REGION, "peer", node.name)
                replace(new.sign(identity, ["127.0.0.1"]), node.certificate, node.key)
            put(region.config.authority, new.file.read_bytes())
            agent.renew(new, new.file.read_bytes())

            # Every node links anew with two that were started with the old files, and so does the agent.
            for version, name in enumerate(sorted(region.members), 1):
                await restarted(region, name)
                reply = await plane.compare_and_swap("w", version, b"2")
                await followed(region, reply.header.revision)

        async with sdk.ControlPlane.connect(addresses, **agent.files) as plane:
            assert (await plane.get_workflow("w")).workflow.version == 4
        outdated = grpc.ssl_channel_credentials(new.file.read_bytes(), before[1], before[0])
        for address in addresses:
            async with Caller(address, outdated) as caller:
                with pytest.raises(OutcomeUnknown):
                    await caller.call("GetRegion", timeout_s=2)
