"""What a node proves with who it is: its certificate and key, and the authority it trusts, as they are now.

Certificates are short-lived, and are replaced while a node runs by programs that know nothing of it. So nobody keeps
what was read at the start: whoever opens or accepts a connection asks for what there is `now`.

1. New files count once they are right together: a certificate of this node, not over yet, and its key. Until then, and
   while one of them is missing, those of before are used; a log line says why.
2. Connections that are open stay open, however old the certificates grow that they began with.
3. An authority is replaced in three steps, each on all nodes before the next: a file that holds the old and the new
   one; certificates of the new one; a file that holds the new one alone.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from controlplane.config import ConfigError
from controlplane.identity import Identity

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_EXPIRY_WARNING: Final = timedelta(days=30)
_MADE: Final = "for development, make certificates: controlplane certs all REGION_FILE"

_Signature = tuple[tuple[int, int, int] | None, ...]


class Credentials(ABC):
    """Where credentials come from. Any thread may ask."""

    @abstractmethod
    def now(self) -> Pem:
        """The ones to use for a connection that begins now; the same object as long as nothing changed."""

    def of_server(self) -> grpc.ServerCredentials:
        """For a port with mutual TLS: each connection is accepted with what there is at its beginning.

        gRPC frees what it had when it is given something, also while other threads of its own begin handshakes with
        that. So it is told of changes alone: anybody can open connections by the hundred, and memory that is used after
        it was freed ends the process.
        """
        used = self.now()

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            found = self.now()
            if found is used:
                return None
            used = found
            return _configuration(found)

        # None is for "no change", which the stubs do not know.
        return grpc.dynamic_ssl_server_credentials(
            _configuration(used),
            changed,  # type: ignore[arg-type]
            require_client_authentication=True,
        )

    def of_client(self) -> grpc.ChannelCredentials:
        """For a channel that is made now, and does not outlive its connection."""
        found = self.now()
        return grpc.ssl_channel_credentials(found.authority, found.key, found.certificate)


@dataclass(frozen=True, slots=True)
class Pem(Credentials):
    """Credentials that stay as they are: the authority or authorities, a certificate with its chain, its key."""

    authority: bytes
    certificate: bytes
    key: bytes

    def now(self) -> Pem:
        """Itself."""
        return self


class CredentialFiles(Credentials):
    """The credentials of one peer in files, which are looked at again for every connection."""

    def __init__(self, authority: Path, certificate: Path, key: Path, owner: Identity) -> None:
        """Raises `ConfigError` if they are not `owner`'s, or cannot be used."""
        self._files = (authority, certificate, key)
        self._owner = owner
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._good, self._expires = self._read()

    def now(self) -> Pem:
        """What the files held when they were last right."""
        with self._lock:
            seen = self._signature()
            if seen != self._seen:
                self._seen = seen
                self._renew()
            return self._good

    def expires_s(self) -> float:
        """When the certificate in use will be over, in Unix seconds."""
        self.now()
        return self._expires.timestamp()

    def _renew(self) -> None:
        try:
            self._good, self._expires = self._read()
        except ConfigError as error:
            _log.error("certificate_not_renewed", problem=str(error), expires=self._expires.isoformat())
        else:
            _log.info("certificate_renewed", expires=self._expires.isoformat())

    def _signature(self) -> _Signature:
        """What changes when a file is replaced or written to."""
        return tuple(map(_signature, self._files))

    def _read(self) -> tuple[Pem, datetime]:
        found = Pem(*map(_content, self._files))
        authority_file, certificate_file, key_file = self._files
        try:
            authorities = {each.subject for each in x509.load_pem_x509_certificates(found.authority)}
        except ValueError:
            raise ConfigError([f"{authority_file}: holds no certificates"]) from None
        try:
            certificate, *chain = x509.load_pem_x509_certificates(found.certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound):
            raise ConfigError([f"{certificate_file}: not a certificate that names {self._owner.uri}"]) from None
        if self._owner.uri not in names.get_values_for_type(x509.UniformResourceIdentifier):
            raise ConfigError([f"{certificate_file}: does not name {self._owner.uri}; use this node's own certificate"])
        expires = certificate.not_valid_after_utc
        remaining = expires - datetime.now(UTC)
        if remaining <= timedelta():
            raise ConfigError([f"{certificate_file}: expired at {expires:%Y-%m-%d %H:%M} UTC; issue a new one"])
        if [certificate, *chain][-1].issuer not in authorities:
            raise ConfigError([f"{certificate_file}: not issued by an authority in {authority_file}"])
        if not _belong_together(certificate, found.key):
            raise ConfigError([f"{key_file}: not the key of {certificate_file}"])
        # Of a short life, the usual time for the next certificate is when two thirds of it are over.
        if remaining < min(_EXPIRY_WARNING, (expires - certificate.not_valid_before_utc) / 3):
            _log.warning("certificate_expires_soon", expires=expires.isoformat())
        return found, expires


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.authority)


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}; {_MADE}"]) from error


def _belong_together(certificate: x509.Certificate, key: bytes) -> bool:
    try:
        return load_pem_private_key(key, None).public_key() == certificate.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
