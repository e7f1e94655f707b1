"""A development authority, and certificates from it for nodes, agents and people.

For trying things out and for tests: its key lies in a folder in the clear. A fleet that matters brings
certificates from its own authority; what they need is listed in `regions/README.md`.

Keys are ECDSA P-256, readable by their owner only. Nothing is overwritten unless asked. Only a node's
certificate may serve, and only under the hosts it names; every other one is good for calling alone.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controlplane import signing
from controlplane.config import ConfigError, RegionConfig
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.ledger.checkpoint import origin_of
from controlplane.ledger.notes import COSIGNATURE, NOTE, VerifierKey

AUTHORITY: Final = "authority"
AUTHORITY_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 365

_COMMON_NAME_MAX = 64


class CertsError(Exception):
    """A certificate cannot be made or read; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Issued:
    """Where one certificate, its key and the certificate of its authority are."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its key, not yet in files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def save(self, certificate_file: Path, key_file: Path, *, force: bool = False) -> None:
        """Write both; raises `CertsError`, also if one exists and `force` was not said."""
        for file in (certificate_file, key_file):
            _check_new(file, force=force)
        encoded = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _create(key_file, encoded, 0o600)
        _create(certificate_file, self.certificate.public_bytes(serialization.Encoding.PEM), 0o644)


@dataclass(frozen=True, slots=True)
class Life:
    """When a certificate is valid."""

    start: datetime.datetime
    end: datetime.datetime

    @classmethod
    def from_now(cls, days: int) -> Life:
        """From a little ago, because clocks differ, until `days` from now."""
        now = datetime.datetime.now(datetime.UTC)
        return cls(now - datetime.timedelta(minutes=5), now + datetime.timedelta(days=days))


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority and the file that others trust it by."""

    file: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def sign(self, identity: Identity, hosts: Iterable[str] = (), life: Life | None = None) -> Signed:
        """Return a new certificate for `identity`; it ends with its authority at the latest.

        `hosts` are the DNS names and IP addresses under which a node serves; callers have none.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        life = life or Life.from_now(CERTIFICATE_DAYS)
        life = Life(life.start, min(life.end, self.certificate.not_valid_after_utc))
        subject = _name(identity.name[:_COMMON_NAME_MAX])
        builder = _builder(subject, self.certificate.subject, key, life)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = _extended(builder, identity, hosts).add_extension(issuer, critical=False)
        return Signed(builder.sign(self.key, hashes.SHA256()), key)


def create_authority(fleet: str, folder: Path, *, force: bool = False) -> Authority:
    """Make the authority of `fleet` as authority.crt and authority.key in `folder`; raises `CertsError`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"{fleet} development authority")
    builder = (
        _builder(name, name, key, Life.from_now(AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    signed = Signed(builder.sign(key, hashes.SHA256()), key)
    file = folder / f"{AUTHORITY}.crt"
    signed.save(file, folder / f"{AUTHORITY}.key", force=force)
    return Authority(file, signed.certificate, key)


def load_authority(folder: Path) -> Authority:
    """Read the authority that `create_authority` left in `folder`; raises `CertsError`."""
    file, key_file = folder / f"{AUTHORITY}.crt", folder / f"{AUTHORITY}.key"
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    except OSError as error:
        raise CertsError(
            f"{error.filename}: {error.strerror}; make an authority first: controlplane certs init"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertsError(f"{folder}: the authority cannot be read ({error}); make a new one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertsError(f"{key_file}: not an elliptic curve key; make a new authority")
    return Authority(file, certificate, key)


def issue(
    authority: Authority,
    identity: Identity,
    folder: Path,
    hosts: Iterable[str] = (),
    *,
    force: bool = False,
) -> Issued:
    """Make a certificate for `identity` as <name>.crt and <name>.key in `folder`; raises `CertsError`."""
    files = Issued(folder / f"{identity.name}.crt", folder / f"{identity.name}.key", authority.file)
    authority.sign(identity, hosts).save(files.certificate, files.key, force=force)
    return files


def authority_for(*regions: RegionConfig, force: bool = False) -> Authority:
    """Make the one authority that the files of a fleet's regions expect; raises `CertsError` and `ConfigError`."""
    check_fleet(regions)
    return create_authority(regions[0].fleet, _authority_folder(regions[0]), force=force)


def nodes_for(region: RegionConfig, names: Collection[str] = (), *, force: bool = False) -> list[Path]:
    """Make the certificates of a region's nodes (all, or those named) where its file expects them."""
    authority = load_authority(_authority_folder(region))
    nodes = [region.node(name) for name in names] or list(region.nodes)
    for node in nodes:
        identity = Identity(region.fleet, EVERY_ENVIRONMENT, region.name, "peer", node.name)
        authority.sign(identity, node.hosts).save(node.certificate, node.key, force=force)
    return [node.certificate for node in nodes]


def callers_for(
    region: RegionConfig, callers: Iterable[Identity], out: Path | None = None, *, force: bool = False
) -> list[Path]:
    """Make certificates for agents and people in `out`, or beside those of the region's nodes; raises `CertsError`."""
    authority = load_authority(_authority_folder(region))
    folder = out or _callers_folder(region)
    return [issue(authority, caller, folder, force=force).certificate for caller in callers]


def usual_callers(region: RegionConfig) -> list[Identity]:
    """Return an operator, an agent and a reviewer for each environment of a region, and its administrators."""
    environments = dict.fromkeys(partition.environment for partition in region.partitions)
    usual = [
        Identity(region.fleet, environment, region.name, role, f"{role}-{environment}")
        for environment in environments
        for role in ("operator", "agent", "reviewer")
    ]
    return list(dict.fromkeys([*usual, *region.administrators]))


def all_for(*regions: RegionConfig, force: bool = False) -> list[Path]:
    """Make all that the regions of a fleet need: authority, nodes, usual callers, keys of ledgers. Return the files.

    Nothing is made if not all of it can be: raises `ConfigError` if the region files do not go together, `CertsError`
    if something exists and `force` was not said. With it, keys of ledgers that exist stay.
    """
    check_fleet(regions)
    for file in _check_files(regions):
        _check_new(file, force=force)
    made = [authority_for(*regions, force=force).file]
    for region in regions:
        made += nodes_for(region, force=force)
        made += callers_for(region, usual_callers(region), force=force)
    # A ledger's key does not expire, and what it signed is evidence for years: it is replaced by hand or not at all.
    keyless = [region for region in regions if region.ledger_key is not None and not region.ledger_key.exists()]
    return made + ledger_keys_for(*keyless, force=force)


def ledger_keys_for(*regions: RegionConfig, force: bool = False) -> list[Path]:
    """Make the key that signs each region's ledger, where its file names one; return the public halves."""
    made = []
    for region in regions:
        if region.ledger_key is None:
            continue
        public = public_half(region.ledger_key)
        for file in (region.ledger_key, public):
            _check_new(file, force=force)
            file.unlink(missing_ok=True)
        made.append(signing.new(region.ledger_key))
    return made


def public_half(key: Path) -> Path:
    """Where the public half of a ledger's key lies."""
    return key.with_name(key.name + ".pub")


def trust_for(*regions: RegionConfig) -> str:
    """What a reviewer's `verify.py` is to trust of a fleet: regions, jurisdictions, and keys of ledgers and nodes.

    Hand it to reviewers by another way than the bundles. Raises `CertsError` if a key cannot be read.
    """
    check_fleet(regions)
    lines = ["format = 1", f'fleet = "{regions[0].fleet}"']
    for region in regions:
        lines += ["", f"[regions.{region.name}]", f'jurisdiction = "{region.jurisdiction}"']
        if region.ledger_key is None:
            continue
        try:
            public = bytes.fromhex(signing.public_key(public_half(region.ledger_key)))
        except (OSError, signing.KeyInvalid) as error:
            raise CertsError(f"{region.file}: ledger_key: its public half cannot be read: {error}") from error
        origin = origin_of(region.fleet, region.name)
        lines += [
            f'checkpoint_key = "{VerifierKey(origin, NOTE, public)}"',
            f'cosign_key = "{VerifierKey(origin, COSIGNATURE, public)}"',
            f"[regions.{region.name}.nodes]",
            *(f'{node.name} = "{VerifierKey(f"{origin}/{node.name}", NOTE, public)}"' for node in region.nodes),
        ]
    return "\n".join(lines) + "\n"


def check_fleet(regions: Sequence[RegionConfig]) -> None:
    """Return if these are different regions of one fleet that trust one authority; raises `ConfigError`."""
    first, *others = regions
    problems = []
    for other in others:
        if other.fleet != first.fleet:
            problems.append(
                f"{other.file}: fleet: is {other.fleet!r}, but {first.file} is of {first.fleet!r};"
                " make certificates for one fleet at a time"
            )
        elif other.authority.resolve() != first.authority.resolve():
            problems.append(
                f"{other.file}: authority: is {other.authority}, in {first.file} it is {first.authority};"
                " regions of one fleet trust one authority: write the same in both"
            )
    files: dict[str, Path] = {}
    for region in regions:
        if region.name in files:
            problems.append(
                f"{region.file}: region: is {region.name!r} as in {files[region.name]}; give each region once"
            )
        files.setdefault(region.name, region.file)
    if problems:
        raise ConfigError(problems)


def _check_files(regions: Iterable[RegionConfig]) -> Iterable[Path]:
    """Return every file that `all_for` makes; raises `ConfigError` if two certificates would have one file."""
    taken: dict[Path, str] = {}
    problems = []
    for region, whose, file in _files(regions):
        path = file.resolve()
        if path in taken:
            problems.append(
                f"{region.file}: {file} is for {whose}, but also for {taken[path]}; give each node paths of its own in"
                " one folder for each region, where those of agents and people are made too"
            )
        taken.setdefault(path, whose)
    if problems:
        raise ConfigError(problems)
    return taken


def _files(regions: Iterable[RegionConfig]) -> Iterator[tuple[RegionConfig, str, Path]]:
    for number, region in enumerate(regions):
        if number == 0:
            for file in (region.authority, region.authority.with_suffix(".key")):
                yield region, "the authority", file
        if region.ledger_key is not None:
            for file in (region.ledger_key, public_half(region.ledger_key)):
                yield region, f"the ledger of {region.name}", file
        for node in region.nodes:
            for file in (node.certificate, node.key):
                yield region, f"node {node.name} of {region.name}", file
        for caller in usual_callers(region):
            for ending in ("crt", "key"):
                yield region, caller.uri, _callers_folder(region) / f"{caller.name}.{ending}"


def _callers_folder(region: RegionConfig) -> Path:
    return region.nodes[0].certificate.parent


def _authority_folder(region: RegionConfig) -> Path:
    if region.authority.name != f"{AUTHORITY}.crt":
        raise CertsError(
            f"{region.file}: authority: is {region.authority.name}; a development authority is called {AUTHORITY}.crt"
        )
    return region.authority.parent


def _extended(builder: x509.CertificateBuilder, identity: Identity, hosts: Iterable[str]) -> x509.CertificateBuilder:
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    if identity.role == "peer":
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names += [_host(host) for host in hosts]
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, life: Life
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(life.start)
        .not_valid_after(life.end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _check_new(file: Path, *, force: bool) -> None:
    if file.exists() and not force:
        raise CertsError(f"{file} exists; pass --force to replace it")


def _create(file: Path, content: bytes, mode: int) -> None:
    # Created anew with its mode, so that a key is never readable by others, not even for a moment.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(content)
    except OSError as error:
        raise CertsError(f"{file}: cannot be written ({error.strerror})") from error
