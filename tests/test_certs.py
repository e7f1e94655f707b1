"""The development authority: what its certificates say, and that keys stay private."""

import datetime

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane import certs
from controlplane.identity import Identity

NODE = Identity("acme", "all", "eu-west", "peer", "n1")
AGENT = Identity("acme", "prod", "eu-west", "agent", "planner")


@pytest.fixture
def authority(tmp_path):
    return certs.create_authority("acme", tmp_path / "ca")


def read(issued):
    return x509.load_pem_x509_certificate(issued.certificate.read_bytes())


def names(certificate, kind):
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(kind)


def uses(certificate):
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_nodes_certificate(authority, tmp_path):
    certificate = read(certs.issue(authority, NODE, tmp_path, ["127.0.0.1", "n1.example.org", "::1"]))
    assert names(certificate, x509.UniformResourceIdentifier) == [NODE.uri]
    assert [str(each) for each in names(certificate, x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert names(certificate, x509.DNSName) == ["n1.example.org"]
    assert set(uses(certificate)) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    certificate.verify_directly_issued_by(authority.certificate)


def test_an_agents_certificate_cannot_serve(authority, tmp_path):
    certificate = read(certs.issue(authority, AGENT, tmp_path, ["127.0.0.1"]))
    assert uses(certificate) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert names(certificate, x509.IPAddress) == []
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_keys_are_for_their_owner_only(authority, tmp_path):
    issued = certs.issue(authority, AGENT, tmp_path)
    for key in (issued.key, authority.file.with_suffix(".key")):
        assert key.stat().st_mode & 0o777 == 0o600


def test_nothing_is_overwritten_unless_asked(authority, tmp_path):
    issued = certs.issue(authority, AGENT, tmp_path)
    before = issued.certificate.read_bytes()
    with pytest.raises(certs.CertsError, match="--force"):
        certs.issue(authority, AGENT, tmp_path)
    assert issued.certificate.read_bytes() == before
    issued.key.chmod(0o644)
    certs.issue(authority, AGENT, tmp_path, force=True)
    assert issued.certificate.read_bytes() != before
    assert issued.key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(certs.CertsError, match="--force"):
        certs.create_authority("acme", authority.file.parent)


def test_an_authority_is_read_back(authority, tmp_path):
    again = certs.load_authority(authority.file.parent)
    read(certs.issue(again, AGENT, tmp_path)).verify_directly_issued_by(authority.certificate)


def test_life_is_bounded_by_the_authoritys(authority):
    start = datetime.datetime.now(datetime.UTC)
    forever = certs.Life(start, start + datetime.timedelta(days=10_000))
    signed = authority.sign(AGENT, life=forever)
    assert signed.certificate.not_valid_after_utc == authority.certificate.not_valid_after_utc


@pytest.mark.parametrize("damage", ["missing", "garbage", "swapped"])
def test_an_authority_that_cannot_be_read(authority, damage):
    folder = authority.file.parent
    key = folder / "authority.key"
    if damage == "missing":
        key.unlink()
    elif damage == "garbage":
        key.write_bytes(b"garbage")
    else:
        key.write_bytes(authority.file.read_bytes())
    with pytest.raises(certs.CertsError, match="authority"):
        certs.load_authority(folder)
