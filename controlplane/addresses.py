"""What an address says of where it leads."""

from __future__ import annotations

import errno
import ipaddress
import socket

_WHY = {
    errno.EADDRINUSE: "another program listens there",
    errno.EADDRNOTAVAIL: "it is no address of this machine; `listen` in the region file says where else a node listens",
}


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address with or without brackets, can only be this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_every(host: str) -> bool:
    """Whether `host` stands for every address of a machine: one can listen there, and nobody can go there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def why_not(address: str) -> str:
    """Why nobody could listen on `address` ("host:port"), which gRPC does not say."""
    host, _, port = address.rpartition(":")
    try:
        for family, kind, _, _, place in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(place)
    except (socket.gaierror, UnicodeError):
        return "this machine does not know the name"
    except OSError as error:
        return _WHY.get(error.errno or 0, error.strerror or str(error))
    return "another program listened there"
