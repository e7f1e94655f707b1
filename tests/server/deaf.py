"""A caller that asks and never reads: HTTP/2 by hand, with the smallest of windows, as clients of gRPC always read."""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
from typing import Any

from controlplane.identity import Identity
from tests.server.regions import FLEET, REGION, Region

_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_INITIAL_WINDOW = 4
_FRAME_BYTES = 16_384
# Enough for what precedes the first large reply of a stream.
_WINDOW_BYTES = 1000


class Deaf:
    """A connection to `node` on which calls are made and answers are left where they are. It answers pings."""

    def __init__(self, region: Region, node: str, **parts: str) -> None:
        identity = Identity(**{"fleet": FLEET, "environment": "prod", "region": REGION, "role": "agent"} | parts)
        folder = region.folder / os.urandom(4).hex()
        region.authority.sign(identity).save(folder / "crt", folder / "key")
        self._context = ssl.create_default_context(cafile=region.authority.file)
        self._context.check_hostname = False
        self._context.load_cert_chain(folder / "crt", folder / "key")
        self._context.set_alpn_protocols(["h2"])
        self._host, _, self._port = region.config.node(node).address.rpartition(":")
        self._stream = -1

    async def __aenter__(self) -> Deaf:
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port), ssl=self._context)
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._send(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, _WINDOW_BYTES))
        self._send(_SETTINGS, _ACK, 0)
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.transport.abort()

    async def ask(self, path: str, request: Any, *, end: bool = True) -> None:
        """Begin one call, and say with `end` that nothing else will be asked in it."""
        self._stream += 2
        self._send(_HEADERS, _END_HEADERS, self._stream, _headers(path))
        body = request.SerializeToString()
        message = struct.pack(">BI", 0, len(body)) + body
        assert len(message) <= _FRAME_BYTES
        self._send(_DATA, _END_STREAM if end else 0, self._stream, message)
        await self._writer.drain()

    async def closed(self) -> None:
        """Return when the node has closed the connection."""
        async with asyncio.timeout(20):
            await asyncio.wait({self._listening})

    def _send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self._writer.write(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload)

    async def _listen(self) -> None:
        while True:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == _PING and not head[4] & _ACK:
                self._send(_PING, _ACK, 0, payload)


def _headers(path: str) -> bytes:
    pairs = {
        ":method": "POST",
        ":scheme": "https",
        ":path": path,
        ":authority": "region",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in pairs.items()
    )
