"""Certificates that are replaced while a node runs."""

from __future__ import annotations

import datetime

import pytest
import structlog.testing

from controlplane import certs
from controlplane.config import ConfigError
from controlplane.credentials import CredentialFiles
from controlplane.identity import EVERY_ENVIRONMENT, Identity

OWNER = Identity("acme", EVERY_ENVIRONMENT, "eu-west", "peer", "n1")
OTHER = Identity("acme", EVERY_ENVIRONMENT, "eu-west", "peer", "n2")
NOW = datetime.datetime.now(datetime.UTC)


def hours(start, end):
    return certs.Life(NOW + datetime.timedelta(hours=start), NOW + datetime.timedelta(hours=end))


@pytest.fixture
def files(tmp_path):
    made = certs.issue(certs.create_authority("acme", tmp_path), OWNER, tmp_path, ["127.0.0.1"])
    return made.authority, made.certificate, made.key


@pytest.fixture
def authority(files):
    return certs.load_authority(files[0].parent)


def replaced(files, signed, *, key=True):
    """Put what was signed in place of the files, each at once, as those do who renew certificates."""
    _, certificate_file, key_file = files
    new = certificate_file.parent / "new"
    signed.save(new / "crt", new / "key", force=True)
    if key:
        (new / "key").replace(key_file)
    (new / "crt").replace(certificate_file)


def test_the_same_as_long_as_nothing_changed(files):
    credentials = CredentialFiles(*files, OWNER)
    assert credentials.now() is credentials.now()
    assert credentials.now().certificate == files[1].read_bytes()


def test_new_files_are_taken(files, authority):
    credentials = CredentialFiles(*files, OWNER)
    before, expired_s = credentials.now(), credentials.expires_s()
    replaced(files, authority.sign(OWNER, life=hours(-1, 24)))
    with structlog.testing.capture_logs() as logs:
        now = credentials.now()
    assert now is credentials.now() is not before
    assert (now.certificate, now.key) == (files[1].read_bytes(), files[2].read_bytes())
    assert [line["event"] for line in logs] == ["certificate_renewed"]
    tomorrow_s = (NOW + datetime.timedelta(hours=24)).timestamp()
    assert tomorrow_s - 2 < credentials.expires_s() < tomorrow_s + 2 < expired_s


def test_a_certificate_waits_for_its_key(files, authority):
    credentials = CredentialFiles(*files, OWNER)
    before = credentials.now()
    signed = authority.sign(OWNER)
    replaced(files, signed, key=False)
    with structlog.testing.capture_logs() as logs:
        assert credentials.now() is credentials.now() is before
    assert [line["event"] for line in logs] == ["certificate_not_renewed"]
    assert f"{files[2]}: not the key of {files[1]}" in logs[0]["problem"]
    replaced(files, signed)
    assert credentials.now().certificate == files[1].read_bytes()


def foreign(authority):
    """Signed by an authority of another name."""
    folder = authority.file.parent / "foreign"
    return certs.create_authority("other", folder, force=True).sign(OWNER)


BROKEN = {
    "another authority's": foreign,
    "another node's": lambda authority: authority.sign(OTHER),
    "expired": lambda authority: authority.sign(OWNER, life=hours(-24, -1)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_could_not_be_started_with_is_not_taken_later(files, authority, what):
    credentials = CredentialFiles(*files, OWNER)
    before = credentials.now()
    replaced(files, BROKEN[what](authority))
    assert credentials.now() is before
    with pytest.raises(ConfigError):
        CredentialFiles(*files, OWNER)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\xff" * 100])
def test_a_file_that_is_gone_or_holds_something_else(files, number, content):
    credentials = CredentialFiles(*files, OWNER)
    before, was = credentials.now(), files[number].read_bytes()
    if content is None:
        files[number].unlink()
    else:
        files[number].write_bytes(content)
    assert credentials.now() is before
    with pytest.raises(ConfigError) as raised:
        CredentialFiles(*files, OWNER)
    assert str(files[number]) in str(raised.value)
    files[number].write_bytes(was)
    assert credentials.now() == before


@pytest.mark.parametrize(
    ("life", "warned"), [((-1, 24), 0), ((-17, 7), 1), ((-24 * 30, 24 * 60), 0), ((-24 * 70, 24 * 29), 1)]
)
def test_who_looks_is_warned_before_it_is_too_late(files, authority, life, warned):
    replaced(files, authority.sign(OWNER, life=hours(*life)))
    with structlog.testing.capture_logs() as logs:
        CredentialFiles(*files, OWNER)
    assert [line["event"] for line in logs] == ["certificate_expires_soon"] * warned
