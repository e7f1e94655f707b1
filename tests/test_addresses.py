"""Why nobody can listen somewhere, in words."""

import socket

import pytest

from controlplane.addresses import why_not


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.0.2.1:7101", "no address of this machine"),
        ("a" * 64 + ":7101", "does not know the name"),
    ],
)
def test_an_address_of_somebody_else(address: str, said: str) -> None:
    assert said in why_not(address)


def test_a_port_of_somebody_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert why_not(f"127.0.0.1:{taken.getsockname()[1]}") == "another program listens there"
