"""The way to another region when certificates are replaced."""

from __future__ import annotations

import contextlib

import grpc.aio

from controlplane import certs
from controlplane.credentials import CredentialFiles
from controlplane.federation.ways import Channels
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.loopback import free_ports

OWNER = Identity("acme", EVERY_ENVIRONMENT, "eu-west", "peer", "n1")


def issued(folder):
    """Certificates of a new authority, in place of those that are there."""
    authority = certs.create_authority("acme", folder, force=True)
    made = certs.issue(authority, OWNER, folder, ["127.0.0.1"], force=True)
    return made.authority, made.certificate, made.key


@contextlib.asynccontextmanager
async def listening(endpoint, credentials):
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_secure_port(endpoint, credentials.of_server())
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def test_what_breaks_begins_anew_with_the_certificates_of_now(tmp_path):
    credentials = CredentialFiles(*issued(tmp_path), OWNER)
    [endpoint] = [f"127.0.0.1:{port}" for port in free_ports(1)]
    ways = Channels(credentials)
    try:
        async with listening(endpoint, credentials):
            assert await ways.reached(endpoint, 5, patient=True)
            issued(tmp_path)
            assert await ways.reached(endpoint, 0, patient=True), "what is open stays open"
        async with listening(endpoint, credentials):
            assert await ways.reached(endpoint, 5, patient=True)
    finally:
        await ways.close()
