"""Why certificates keep cpctl out of a region, in words: a handshake that fails looks like a node that is down.

Needs the standard library alone, as `cryptography` is no part of what cpctl is installed with. Its TLS is another one
than gRPC's, so nothing is refused here that gRPC might take: files are refused beforehand only if they hold nothing or
do not belong together, and the rest is asked about only after no node has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence

from controlplane import sdk
from controlplane.cli.files import FileUnusable

_PATIENCE_S = 2.0
_NO_PASSWORD = b""
# Of OpenSSL: nobody in the file has issued the certificate that was shown.
_NOT_ISSUED = frozenset({2, 18, 19, 20, 21})


def check(authority: str, certificate: str, key: str) -> None:
    """See whether the files hold what they should. Raises `FileUnusable`, which names the one that does not."""
    _load_certificates(authority)
    _load_certificates(certificate)
    try:
        _load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, key)
    except ssl.SSLError as error:
        if "_TOO_" in (error.reason or ""):
            return  # Too small or too weak for this library, as the machine has it set up; gRPC has a mind of its own.
        if error.reason == "KEY_VALUES_MISMATCH":
            raise FileUnusable(f"{key}: not the key of {certificate}") from error
        raise FileUnusable(f"{key}: holds no private key that can be used with {certificate}") from error
    except OSError as error:
        raise FileUnusable(f"{key}: {error.strerror}") from error


async def explained(
    addresses: Sequence[str], authority: str, certificate: str, key: str
) -> sdk.ControlPlaneError | None:
    """Why no node at `addresses` answers, if that is because of certificates; None otherwise."""
    with contextlib.suppress(OSError):
        if problem := _of_own(authority, certificate, key):
            return problem
        asked = await asyncio.gather(*(_of_node(each, authority, certificate, key) for each in addresses))
        return next(filter(None, asked), None)
    return None


def _load_certificates(file: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError as error:
        raise FileUnusable(f"{file}: holds no certificate") from error
    except OSError as error:
        raise FileUnusable(f"{file}: {error.strerror}") from error


def _load_own(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # Without a password of ours, OpenSSL would ask at the terminal for that of a key which gRPC cannot read anyway.
    context.load_cert_chain(certificate, key, password=_NO_PASSWORD)


def _of_own(authority: str, certificate: str, key: str) -> sdk.ControlPlaneError | None:
    """What a node of this authority would have against the certificate, found by a handshake with oneself."""
    node, caller = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for each in (node, caller):
        _load_own(each, certificate, key)
    node.load_verify_locations(authority)
    node.verify_mode = ssl.CERT_REQUIRED
    caller.check_hostname, caller.verify_mode = False, ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (caller.wrap_bio(back, there), node.wrap_bio(there, back, server_side=True))
    try:
        # Each end says its part and waits for the other; the node's last word comes with its second turn.
        for end in (*ends, *ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _NOT_ISSUED:
            return _wrong(f"{certificate}: not issued by the authority in {authority}")
        return _wrong(f"{certificate}: {error.verify_message}")
    return None


async def _of_node(address: str, authority: str, certificate: str, key: str) -> sdk.ControlPlaneError | None:
    """What this end has against a node's certificate, or the node against ours; None if neither is known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority)
    _load_own(context, certificate, key)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
            try:
                # Nodes speak first. One that takes a caller for nobody's hangs up without a word.
                heard = await reader.read(1)
            finally:
                writer.transport.abort()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _NOT_ISSUED:
            return _wrong(f"{address} shows a certificate that was not issued by the authority in {authority}")
        said = f"{address} shows a certificate that cannot be trusted: {error.verify_message}"
        return sdk.Unavailable(said, reason="NODE_UNTRUSTED", hint="the node needs another certificate, or its name")
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            return _wrong(f"{address} does not speak TLS", "--insecure if it is controlplane dev")
        return _hung_up(address, certificate)
    except (OSError, TimeoutError, ValueError):
        return None
    return None if heard else _hung_up(address, certificate)


def _wrong(said: str, hint: str = "choose others with --authority, --certificate and --key") -> sdk.Invalid:
    return sdk.Invalid(said, reason="CREDENTIALS_WRONG", hint=hint)


def _hung_up(address: str, certificate: str) -> sdk.Denied:
    return sdk.Denied(
        f"{address} does not accept the certificate in {certificate}",
        reason="CERTIFICATE_REFUSED",
        hint="is it of this fleet, and of the authority that the nodes trust?",
    )
