"""cpctl and a region of three nodes with mutual TLS and several partitions."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane import certs
from controlplane.certs import Life
from controlplane.cli import main, shapes
from controlplane.identity import Identity
from controlplane.loopback import LoopbackRegion, Place, ending, free_ports
from controlplane.node import AGE_UNKNOWN_MS
from controlplane.v1 import api_pb2 as api

CPCTL = [sys.executable, "-c", "from controlplane.cli import main; main()"]
PATIENCE_S = 30.0
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
LIVES = {"expired": Life(NOW - 2 * DAY, NOW - DAY), "early": Life(NOW + DAY, NOW + 2 * DAY), "good": None}
PLACES = [Place("config", "home-only", ("flag",)), Place("state", "home-only", ("switch", "workflow", "election"))]

Files = Mapping[str, Path]
Cpctl = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("region")


@pytest.fixture(scope="module")
def region(folder: Path) -> Iterator[LoopbackRegion]:
    made = LoopbackRegion(folder)
    made.describe("local", PLACES)
    who = made.identity("operator", "first")
    with ending(made.nodes):
        made.start()
        end = time.monotonic() + PATIENCE_S
        while CliRunner().invoke(main, [*options(made, who), "region", "leader"]).exit_code:
            assert time.monotonic() < end, made.nodes[0].tail()
        yield made


@pytest.fixture(scope="module")
def files(region: LoopbackRegion, folder: Path) -> Files:
    """Certificates and keys that are good for nothing, and one that is good."""
    found = {"authority": folder / "certificates" / "authority.crt"}
    other = certs.create_authority(region.fleet, folder / "other")
    found["other"] = other.file
    mine = certs.load_authority(folder / "certificates")
    who = Identity(region.fleet, region.environment, region.name, "operator", "o")
    for authority, name, life in [(mine, *each) for each in LIVES.items()] + [(other, "foreign", None)]:
        found[name] = folder / f"{name}.crt"
        authority.sign(who, (), life).save(found[name], folder / f"{name}.key")
    found["garbage"] = folder / "garbage.crt"
    for suffix in (".crt", ".key"):
        found["garbage"].with_suffix(suffix).write_text("no certificate, and no key")
    return found


@pytest.fixture
def cpctl(region: LoopbackRegion, files: Files) -> Cpctl:
    who = {"ca": files["authority"], "cert": files["good"], "key": files["good"].with_suffix(".key")}
    return lambda *arguments: CliRunner().invoke(main, [*options(region, who), *arguments])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.cli.command._CONNECT_TIMEOUT_S", 0.5)
    # The names of the modules are names of commands as well.
    monkeypatch.setattr(sys.modules["controlplane.cli.region"], "_MEMBER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(sys.modules["controlplane.cli.review"], "_TIMEOUT_S", 1.0)


def options(region: LoopbackRegion, who: Mapping[str, object], *addresses: str) -> list[str]:
    at = [part for address in addresses or region.addresses for part in ("--address", address)]
    return [*at, "--authority", str(who["ca"]), "--certificate", str(who["cert"]), "--key", str(who["key"])]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", [["status"], ["member", "health"], ["region", "checkpoint"], ["drill", "watch"]])
@pytest.mark.parametrize(
    ("authority", "name", "said"),
    [
        ("authority", "expired", "expired.crt: certificate has expired"),
        ("authority", "early", "early.crt: certificate is not yet valid"),
        ("authority", "foreign", "foreign.crt: not issued by the authority in"),
        ("other", "good", "good.crt: not issued by the authority in"),
        ("other", "foreign", "shows a certificate that was not issued by the authority in"),
    ],
)
def test_a_certificate_that_keeps_us_out_is_no_outage(
    region: LoopbackRegion, files: Files, command: list[str], authority: str, name: str, said: str
) -> None:
    who = {"ca": files[authority], "cert": files[name], "key": files[name].with_suffix(".key")}
    result = CliRunner().invoke(main, [*options(region, who), *command])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


@pytest.mark.usefixtures("impatient")
def test_a_node_that_does_not_take_ours_says_so(folder: Path, region: LoopbackRegion, files: Files) -> None:
    # Whoever trusts both authorities has nothing against a node that trusts one of them.
    both = folder / "both.crt"
    both.write_bytes(files["authority"].read_bytes() + files["other"].read_bytes())
    who = {"ca": both, "cert": files["foreign"], "key": files["foreign"].with_suffix(".key")}
    result = CliRunner().invoke(main, [*options(region, who), "status", "--json"])
    assert result.exit_code == 3
    assert json.loads(result.stderr)["reason"] == "CERTIFICATE_REFUSED"


@pytest.mark.usefixtures("impatient")
def test_a_region_that_is_down_is_one(region: LoopbackRegion, files: Files) -> None:
    who = {"ca": files["authority"], "cert": files["good"], "key": files["good"].with_suffix(".key")}
    nowhere = options(region, who, f"127.0.0.1:{free_ports(1)[0]}")
    assert CliRunner().invoke(main, [*nowhere, "status"]).exit_code == 8
    health = CliRunner().invoke(main, [*nowhere, "member", "health"])
    assert health.exit_code == 11
    assert health.stdout.splitlines()[-1].endswith(": does not answer")


@pytest.mark.parametrize(
    ("authority", "certificate", "key", "said"),
    [
        ("garbage.crt", "good.crt", "good.key", "garbage.crt: holds no certificate"),
        ("authority", "garbage.crt", "good.key", "garbage.crt: holds no certificate"),
        ("authority", "good.crt", "garbage.key", "garbage.key: holds no private key"),
        ("authority", "good.crt", "early.key", "early.key: not the key of"),
    ],
)
def test_files_that_hold_something_else_are_named_at_once(
    files: Files, folder: Path, authority: str, certificate: str, key: str, said: str
) -> None:
    named = [files["authority"] if authority == "authority" else folder / authority, folder / certificate, folder / key]
    arguments = [f"--{option}={file}" for option, file in zip(("authority", "certificate", "key"), named, strict=True)]
    result = CliRunner().invoke(main, ["--address", "127.0.0.1:1", *arguments, "status"])
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize("command", ["watch", "log"])
def test_which_partition_is_asked_for_in_options(cpctl: Cpctl, command: str) -> None:
    result = cpctl(command)
    assert result.exit_code == 2
    assert "PARTITION_AMBIGUOUS" in result.stderr
    assert "--kind" in result.stderr
    assert "--partition" in result.stderr
    assert cpctl("log", "--kind", "flag").exit_code == 0


def status_of(node: str, age_ms: int = 0, **states: str) -> shapes.Shape:
    """What a node of n1, n2, n3 says; n1 leads, and says of the others how it sees them."""
    members = [api.Member(name=name, address=name, state=states.get(name, "stream")) for name in ("n1", "n2", "n3")]
    return shapes.status(
        api.GetStatusReply(
            header=api.ReplyHeader(age_ms=age_ms),
            region=api.Region(leader="n1", term=1),
            node=node,
            role="leader" if node == "n1" else "follower",
            members=members if node == "n1" else (),
        )
    )


@pytest.mark.parametrize(
    ("third", "seen_as", "said"),
    [
        (status_of("n3", 4_000), "stream", None),
        (status_of("n3"), "learner", "does not count yet"),
        (status_of("n3", 6_000), "stream", "is 6 s behind"),
        (status_of("n3", AGE_UNKNOWN_MS), "stream", "has not shown yet that it is up to date"),
        (None, "probe", "does not answer"),
    ],
)
def test_a_node_that_the_region_cannot_build_on_is_not_well(
    third: shapes.Shape | None, seen_as: str, said: str | None
) -> None:
    # The name of the module is the name of a command as well.
    judged = sys.modules["controlplane.cli.region"].judged
    rows = judged(["n1", "n2", "n3"], [status_of("n1", n3=seen_as), status_of("n2"), third])
    assert [row["problem"] for row in rows[:2]] == [None, None]
    assert (rows[2]["problem"] or "").startswith(said or "")
    assert (rows[2]["problem"] is None) == (said is None)


def test_a_leader_is_told_once(region: LoopbackRegion, files: Files, cpctl: Cpctl) -> None:
    health = json.loads(cpctl("member", "health", "--json").stdout)["members"]
    follower = next(each for each in health if each["role"] == "follower")
    who = {"ca": files["authority"], "cert": files["good"], "key": files["good"].with_suffix(".key")}
    # Asked at a follower, it goes on to the leader and is told there again who leads.
    watch = [*CPCTL, *options(region, who, follower["address"]), "region", "watch", "--json"]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            first = json.loads(process.stdout.readline())
            moved = json.loads(cpctl("region", "transfer", follower["node"], "--json").stdout)
            seen = [first]
            while (seen[-1]["leader"], seen[-1]["term"]) != (moved["leader"], moved["term"]):
                seen.append(json.loads(process.stdout.readline()))
        finally:
            process.kill()
    told = [(each["leader"], each["term"]) for each in seen]
    assert all(before != after for before, after in pairwise(told))
