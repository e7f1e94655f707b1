"""What an address says of where it leads."""

from __future__ import annotations

import errno
import ipaddress
import socket

_WHY = {
    errno.EADDRINUSE: "another program listens there",
    errno.EADDRNOTAVAIL: "it is no address of this machine, and a node listens where others are to reach it",
}


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address with or without brackets, can only be this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
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
