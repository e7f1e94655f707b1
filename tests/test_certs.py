"""The development authority: what its certificates say, and that keys stay private."""

import datetime
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from controlplane import certs, config, signing
from controlplane.identity import Identity
from controlplane.ledger.notes import Signer, VerifierKey

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


# -- a fleet

SHIPPED = Path(__file__).parent.parent / "regions" / "fleet"
REGIONS = ("eu-west", "eu-central", "us-east")


@pytest.fixture
def files(tmp_path):
    """The shipped fleet, with its certificates somewhere else than in the project's own folder."""
    folder = shutil.copytree(SHIPPED, tmp_path / "regions" / "fleet")
    return [folder / f"{name}.toml" for name in REGIONS]


def changed(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def controlplane(*arguments):
    command = [sys.executable, "-m", "controlplane", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def everything_below(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_everything_for_a_fleet(files, tmp_path):
    fleet = [config.load(file) for file in files]
    made = certs.all_for(*fleet)
    (authority,) = tmp_path.rglob("authority.crt")
    trusted = x509.load_pem_x509_certificate(authority.read_bytes())
    found = {}
    for path in (file for file in made if file.suffix == ".crt"):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        certificate.verify_directly_issued_by(trusted)
        if path.resolve() != authority:
            (uri,) = names(certificate, x509.UniformResourceIdentifier)
            found[path.resolve().relative_to(authority.parent)] = uri
    expected = {}
    for name in REGIONS:
        nodes = [("all", "peer", f"n{n}") for n in (1, 2, 3)]
        roles = ("operator", "agent", "reviewer")
        usual = [(environment, role, f"{role}-{environment}") for environment in ("prod", "staging") for role in roles]
        for environment, role, who in [*nodes, *usual, ("prod", "operator", "admin")]:
            expected[Path(f"{name}/{who}.crt")] = f"controlplane://loopback/{environment}/{name}/{role}/{who}"
    assert found == expected
    assert {path.resolve() for region in fleet for node in region.nodes for path in (node.certificate, node.key)} <= (
        everything_below(authority.parent)
    )


def test_a_fleet_by_steps_on_the_command_line(files, tmp_path):
    assert controlplane("certs", "init", *files).returncode == 0
    assert [path.name for path in tmp_path.rglob("*.crt")] == ["authority.crt"]
    done = controlplane("certs", "node", *files)
    assert len(done.stdout.split()) == 9
    arguments = ("--environment", "prod", "--role", "approver", "--name", "a")
    done = controlplane("certs", "client", files[1], *arguments)
    assert Path(done.stdout.strip()).resolve().relative_to(tmp_path) == Path(
        "build/fleet/certificates/eu-central/a.crt"
    )


def test_all_on_the_command_line(files, tmp_path):
    done = controlplane("certs", "all", *files)
    assert (done.returncode, done.stderr) == (0, "")
    # The authority, and for each region three nodes, three roles in two environments, an administrator, the ledger.
    listed = [Path(line) for line in done.stdout.splitlines()]
    assert len(listed) == 1 + 3 * (3 + 6 + 1) + 3
    assert {path.resolve() for path in listed} == {*tmp_path.rglob("*.crt"), *tmp_path.rglob("*.pub")}


def refused(files, tmp_path):
    before = everything_below(tmp_path)
    fleet = [config.load(file) for file in files]
    with pytest.raises(config.ConfigError) as refusal:
        certs.all_for(*fleet)
    assert everything_below(tmp_path) == before
    return refusal.value.problems


def test_files_of_different_fleets_are_refused(files, tmp_path):
    for file in files[1:]:
        changed(file, "loopback", "other")
    problems = refused(files, tmp_path)
    assert len(problems) == 2
    for file, problem in zip(files[1:], problems, strict=True):
        assert problem.startswith(f"{file}: fleet: is 'other', but {files[0]} is of 'loopback'")
    with pytest.raises(config.ConfigError):
        certs.authority_for(*map(config.load, files))
    for command in ("init", "node", "all"):
        done = controlplane("certs", command, *files)
        assert done.returncode == 2
        assert "fleet: is 'other'" in done.stderr
    assert not list(tmp_path.rglob("*.crt"))


def test_files_with_different_authorities_are_refused(files, tmp_path):
    changed(files[2], "certificates/authority.crt", "elsewhere/authority.crt")
    (problem,) = refused(files, tmp_path)
    assert problem.startswith(f"{files[2]}: authority: ")


def test_one_authority_may_be_written_in_two_ways(files):
    changed(
        files[2],
        "../../build/fleet/certificates/authority.crt",
        "../fleet/../../build/fleet/certificates/authority.crt",
    )
    certs.check_fleet([config.load(file) for file in files])


def test_the_same_region_twice_is_refused(files, tmp_path):
    (problem, *_) = refused([*files, files[0]], tmp_path)
    assert "give each region once" in problem


@pytest.mark.parametrize(
    ("number", "old", "new", "says"),
    [
        (1, "certificates/eu-central/", "certificates/eu-west/", "n1 of eu-central, but also for node n1 of eu-west"),
        (0, "certificates/eu-west/n2.crt", "certificates/authority.key", "n2 of eu-west, but also for the authority"),
        (0, "certificates/eu-west/n2.key", "certificates/eu-west/n1.crt", "also for node n1 of eu-west"),
        (0, "certificates/eu-west/n2.key", "certificates/eu-central/../eu-west/n1.crt", "also for node n1 of eu-west"),
        (0, "certificates/eu-west/n2.crt", "certificates/eu-west/agent-prod.crt", "agent-prod, but also for node n2"),
    ],
)
def test_no_file_is_for_two(files, tmp_path, number, old, new, says):
    changed(files[number], old, new)
    assert any(says in problem for problem in refused(files, tmp_path))


def test_administrators_of_two_environments_with_one_name(files, tmp_path):
    one = "controlplane://loopback/prod/eu-west/operator/admin"
    changed(files[0], f'"{one}"', f'"{one}", "{one.replace("prod", "staging")}"')
    assert "admin, but also for" in refused(files, tmp_path)[0]


def test_an_administrator_who_is_an_operator_anyway(files):
    changed(files[0], "operator/admin", "operator/operator-prod")
    region = config.load(files[0])
    assert len(certs.all_for(region)) == 1 + 3 + 6 + 1


def test_nothing_is_made_if_something_is_there(files, tmp_path):
    fleet = [config.load(file) for file in files]
    certs.authority_for(*fleet)
    certs.nodes_for(fleet[2], ["n3"])
    for path in tmp_path.rglob("authority.*"):
        path.unlink()
    before = everything_below(tmp_path)
    with pytest.raises(certs.CertsError, match="--force"):
        certs.all_for(*fleet)
    assert everything_below(tmp_path) == before
    certs.all_for(*fleet, force=True)
    certs.load_authority(fleet[0].authority.parent)
    read_back = x509.load_pem_x509_certificate(fleet[2].node("n3").certificate.read_bytes())
    read_back.verify_directly_issued_by(x509.load_pem_x509_certificate(fleet[0].authority.read_bytes()))


def test_keys_of_ledgers_are_not_replaced_with_certificates(files):
    region = config.load(files[0])
    certs.all_for(region)
    kept = region.authority, region.ledger_key, certs.public_half(region.ledger_key)
    before = [file.read_bytes() for file in kept]
    certs.all_for(region, force=True)
    assert [file.read_bytes() == content for file, content in zip(kept, before, strict=True)] == [False, True, True]


def test_the_ledgers_of_a_fleet_get_keys_and_reviewers_a_trust_file(tmp_path):
    regions = [config.load(file) for file in sorted(Path("regions/fleet").glob("*.toml"))]
    moved = [replace(region, ledger_key=tmp_path / f"{region.name}.key") for region in regions]
    made = certs.ledger_keys_for(*moved)
    assert [file.name for file in made] == [f"{region.name}.key.pub" for region in regions]
    assert (tmp_path / "eu-west.key").stat().st_mode & 0o077 == 0
    with pytest.raises(certs.CertsError, match="exists"):
        certs.ledger_keys_for(*moved)
    trust = tomllib.loads(certs.trust_for(*moved))
    assert {name: each["jurisdiction"] for name, each in trust["regions"].items()} == {
        "eu-central": "eu",
        "eu-west": "eu",
        "us-east": "us",
    }
    west = trust["regions"]["eu-west"]
    key = VerifierKey.parse(west["checkpoint_key"])
    signer = Signer("loopback/eu-west", signing.Signer(tmp_path / "eu-west.key").key)
    assert key == signer.verifier
    assert set(west["nodes"]) == {"n1", "n2", "n3"}
    with pytest.raises(certs.CertsError, match="cannot be read"):
        certs.trust_for(replace(regions[0], ledger_key=tmp_path / "none"))
