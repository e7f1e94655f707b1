"""Region files: what is accepted, and that every mistake is named with its remedy."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import config
from controlplane.geography import Atlas, agreement, exported, terms
from controlplane.v1 import records_pb2

DEMO = Path(__file__).parent.parent / "regions" / "demo.toml"
FILE = Path("/somewhere/region.toml")

HEAD = """
format = 1
fleet = "acme"
region = "eu-west"
jurisdiction = "eu"
authority = "certs/ca.crt"
"""
NODE = """
[[node]]
name = "{0}"
address = "127.0.0.1:710{1}"
peer_address = "127.0.0.1:720{1}"
certificate = "certs/{0}.crt"
key = "certs/{0}.key"
"""
PARTITION = """
[[partition]]
id = "eu-west.prod.state"
environment = "prod"
reach = "home-only"
default_for = ["workflow"]
"""


def nodes(count):
    return "".join(NODE.format(f"n{number}", number) for number in range(1, count + 1))


GOOD = HEAD + nodes(3) + PARTITION


def problems(text):
    with pytest.raises(config.ConfigError) as raised:
        config.parse(text, FILE)
    assert all(problem.startswith(str(FILE)) for problem in raised.value.problems)
    return raised.value.problems


def test_a_minimal_file_and_its_defaults():
    region = config.parse(GOOD, FILE)
    assert (region.fleet, region.name, region.jurisdiction) == ("acme", "eu-west", "eu")
    assert region.timing == config.Timing(150, 300, 30)
    assert region.authority == Path("/somewhere/certs/ca.crt")
    node = region.node("n2")
    assert node.address == "127.0.0.1:7102"
    assert node.metrics_address.startswith("127.0.0.1:")
    assert node.key == Path("/somewhere/certs/n2.key")
    assert node.hosts == ("127.0.0.1",)
    assert node.listens == (node.address, node.peer_address)


def test_a_node_may_listen_elsewhere_than_others_find_it():
    text = GOOD.replace('name = "n2"', 'name = "n2"\nlisten = "0.0.0.0:7443"\npeer_listen = "[::]:7444"')
    node = config.parse(text, FILE).node("n2")
    assert node.listens == ("0.0.0.0:7443", "[::]:7444")
    assert (node.address, node.hosts) == ("127.0.0.1:7102", ("127.0.0.1",))


def test_partitions_become_records():
    (partition,) = config.parse(GOOD, FILE).partitions
    assert partition == records_pb2.Partition(
        id="eu-west.prod.state",
        home="eu-west",
        epoch=1,
        reach=records_pb2.HOME_ONLY,
        environment="prod",
        default_for=["workflow"],
    )


def test_the_demo_file_is_good():
    region = config.load(DEMO)
    assert [node.name for node in region.nodes] == ["n1", "n2", "n3"]
    for environment in ("prod", "staging"):
        kinds = [kind for each in region.partitions if each.environment == environment for kind in each.default_for]
        # A region that knows no other has nobody to tell what it stopped.
        assert sorted([*kinds, "stop"]) == sorted(config.KINDS)


@pytest.mark.parametrize("count", [0, 2, 4, 6])
def test_membership_is_one_three_or_five(count):
    (problem, *_) = problems(HEAD + nodes(count) + PARTITION)
    assert "1, 3 or 5" in problem


@pytest.mark.parametrize("count", [1, 3, 5])
def test_sizes_that_are_possible(count):
    assert len(config.parse(HEAD + nodes(count) + PARTITION, FILE).nodes) == count


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        ("format = 1", "format = 2", "format", "from 1 to 1"),
        ("format = 1", "", "format", "is missing"),
        ("format = 1", "format = true", "format", "True"),
        ('fleet = "acme"', 'fleet = "Acme Inc"', "fleet", "lower-case"),
        ('fleet = "acme"', "fleet = 7", "fleet", "lower-case"),
        ('region = "eu-west"', "", "region", "is missing"),
        ('jurisdiction = "eu"', "", "jurisdiction", "is missing"),
        ('authority = "certs/ca.crt"', "", "authority", "is missing"),
        ('authority = "certs/ca.crt"', 'authority = "a\\u0000b"', "authority", "path"),
        ('fleet = "acme"', 'fleet = "acme"\nfleat = "x"', "fleat", "is not known"),
        ('fleet = "acme"', 'fleet = "acme"\nquota_bytes = 1', "quota_bytes", "whole number from"),
        ('fleet = "acme"', 'fleet = "acme"\nquota_bytes = 1e9', "quota_bytes", "whole number from"),
        ('fleet = "acme"', 'fleet = "acme"\nballast_bytes = -1', "ballast_bytes", "whole number from"),
        ('fleet = "acme"', 'fleet = "acme"\njurisdictions = 3', "jurisdictions", "as a table"),
        ('fleet = "acme"', 'fleet = "acme"\npeer = 3', "peer", "table of its own"),
        ('fleet = "acme"', 'fleet = "acme"\ntiming = 3', "timing", "as a table"),
        ('fleet = "acme"', 'fleet = "acme"\ntiming.beat_ms = 100', "timing.beat_ms", "a third"),
        ('fleet = "acme"', 'fleet = "acme"\ntiming.beat = 10', "timing.beat", "is not known"),
        ('fleet = "acme"', 'fleet = "acme"\ntiming.election_max_ms = 150', "timing.election_max_ms", "1.5 times"),
        ('name = "n2"', 'name = "n1"', "node", "used twice"),
        ('name = "n2"', 'name = "n 2"', "node[2].name", "letters"),
        ('"127.0.0.1:7102"', '"127.0.0.1:7101"', "node", "used twice"),
        ('"127.0.0.1:7102"', '"127.0.0.1:7203"', "node", "used twice"),
        ('name = "n2"', 'name = "n2"\nmetrics_address = "127.0.0.1:7203"', "node", "used twice"),
        ('"127.0.0.1:7102"', '"127.0.0.1"', "node[2].address", "host and a port"),
        ('"127.0.0.1:7102"', '"127.0.0.1:99999"', "node[2].address", "host and a port"),
        ('"127.0.0.1:7102"', '"0.0.0.0:7102"', "node[2].address", "that others can go to"),
        ('"127.0.0.1:7102"', '"[::]:7102"', "node[2].address", "that others can go to"),
        ('name = "n2"', 'name = "n2"\nlisten = "7102"', "node[2].listen", "host and a port"),
        ('name = "n2"', 'name = "n2"\nlisten = ":1"\npeer_listen = 7', "node[2].peer_listen", "host and a port"),
        (
            'name = "n2"',
            'name = "n2"\nlisten = "[::]:1"\npeer_listen = "[::]:1"',
            "node[2].peer_listen",
            "port of its own",
        ),
        ('key = "certs/n3.key"', "", "node[3].key", "is missing"),
        ('key = "certs/n3.key"', 'key = "k"\nextra = 1', "node[3].extra", "is not known"),
        ('id = "eu-west.prod.state"', 'id = "us-east.prod.state"', "partition[1].id", "begin with the region"),
        ('id = "eu-west.prod.state"', 'id = "eu-west."', "partition[1].id", "begin with the region"),
        ('id = "eu-west.prod.state"', 'id = "eu-west.a\\u0007"', "partition[1].id", "begin with the region"),
        ('environment = "prod"', 'environment = "production"', "partition[1].environment", '"staging"'),
        ('reach = "home-only"', "", "partition[1].reach", '"jurisdiction"'),
        ('reach = "home-only"', 'reach = "everywhere"', "partition[1].reach", '"global"'),
        ('["workflow"]', '["workflows"]', "partition[1].default_for", '"workflow"'),
        ('["workflow"]', '"workflow"', "partition[1].default_for", "a list"),
        ('["workflow"]', "[7]", "partition[1].default_for", "holds 7"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(old, new, key, says):
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(problem.startswith(f"{FILE}: {key}: ") and says in problem for problem in found), found


def test_all_mistakes_are_reported_at_once():
    text = GOOD.replace("format = 1", "format = 9").replace('reach = "home-only"', "").replace("7102", "x")
    assert len(problems(text)) == 3


def test_one_default_per_environment_and_kind():
    twice = PARTITION + PARTITION.replace("prod.state", "prod.more")
    assert "used twice" in problems(HEAD + nodes(1) + twice)[0]
    other = PARTITION.replace("prod.state", "test.state").replace('"prod"', '"test"')
    assert len(config.parse(HEAD + nodes(1) + PARTITION + other, FILE).partitions) == 2


def test_a_region_needs_a_partition():
    assert "[[partition]]" in problems(HEAD + nodes(3))[0]


@pytest.mark.parametrize(
    "uri",
    [
        "maria",
        "controlplane://acme/prod/eu-west/agent/maria",
        "controlplane://other/prod/eu-west/operator/maria",
        "controlplane://acme/prod/us-east/operator/maria",
    ],
)
def test_administrators_are_operators_of_this_region(uri):
    (problem,) = problems(f'administrators = ["{uri}"]' + GOOD)
    assert "identities of operators" in problem


def test_administrators_are_read():
    uri = "controlplane://acme/prod/eu-west/operator/maria"
    region = config.parse(f'administrators = ["{uri}"]' + GOOD, FILE)
    assert [each.uri for each in region.administrators] == [uri]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"= 3", b"#" * (1 << 20) + b"\n"])
def test_files_that_are_no_region_files(tmp_path, content):
    file = tmp_path / "region.toml"
    file.write_bytes(content)
    with pytest.raises(config.ConfigError, match=r"region\.toml"):
        config.load(file)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(config.ConfigError, match="cannot be read"):
            config.load(path)


def test_an_unknown_node_names_the_known_ones():
    with pytest.raises(config.ConfigError, match="n1, n2, n3"):
        config.parse(GOOD, FILE).node("n4")


def test_ipv6_addresses():
    assert config.split_address("[::1]:7001") == ("::1", 7001)
    with pytest.raises(ValueError, match="host:port"):
        config.split_address("::1:7001")


# -- other regions

JURISDICTIONS = """
[jurisdictions]
eu = ["eu-west", "eu-central"]
us = ["us-east"]
"""
PEERS = """
[[peer]]
region = "eu-central"
endpoints = ["n1.eu-central.example:7443", "[2001:db8::1]:7443"]
certificate_names = ["n1", "n2"]
may_leave = ["jurisdiction", "global"]

[[peer]]
region = "us-east"
endpoints = ["127.0.0.1:7901"]
certificate_names = ["n1"]
may_leave = ["global"]
"""
GLOBALLY = 'may_leave = ["global"]'
FEDERATED = GOOD + JURISDICTIONS + PEERS


def test_a_region_that_knows_no_other():
    region = config.parse(GOOD, FILE)
    assert (region.peers, dict(region.jurisdictions)) == ((), {})
    assert region.atlas == Atlas("acme", "eu-west", {"eu-west": "eu"}, {})


def test_a_region_with_peers():
    region = config.parse(FEDERATED, FILE)
    assert region.jurisdictions == {"eu": {"eu-west", "eu-central"}, "us": {"us-east"}}
    assert region.peers == (
        config.PeerConfig(
            "eu-central",
            ("n1.eu-central.example:7443", "[2001:db8::1]:7443"),
            frozenset({"n1", "n2"}),
            frozenset({records_pb2.JURISDICTION, records_pb2.GLOBAL}),
        ),
        config.PeerConfig("us-east", ("127.0.0.1:7901",), frozenset({"n1"}), frozenset({records_pb2.GLOBAL})),
    )
    assert region.peer("us-east") is region.peers[1]
    assert region.peer("eu-west") is None
    assert region.atlas == Atlas(
        "acme",
        "eu-west",
        {"eu-west": "eu", "eu-central": "eu", "us-east": "us"},
        {
            "eu-central": frozenset({records_pb2.JURISDICTION, records_pb2.GLOBAL}),
            "us-east": frozenset({records_pb2.GLOBAL}),
        },
    )


def test_jurisdictions_without_peers_and_peers_for_which_nothing_leaves():
    assert config.parse(GOOD + JURISDICTIONS, FILE).peers == ()
    silent = FEDERATED.replace('may_leave = ["global"]', "may_leave = []")
    assert config.parse(silent, FILE).peers[1].may_leave == frozenset()


def test_nobody_breaks_the_glass_unless_the_file_says_so():
    assert [peer.break_glass for peer in config.parse(FEDERATED, FILE).peers] == [frozenset(), frozenset()]
    some = FEDERATED.replace(GLOBALLY, f'{GLOBALLY}\nbreak_glass = ["approver", "operator"]')
    first, second = config.parse(some, FILE).peers
    assert (first.break_glass, second.break_glass) == (frozenset(), frozenset({"approver", "operator"}))


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        # Jurisdictions: unknown, overlapping, contradicting.
        ('us = ["us-east"]', 'US = ["us-east"]', "jurisdictions.US", "lower-case"),
        ('us = ["us-east"]', '"" = ["us-east"]', "jurisdictions.", "lower-case"),
        ('us = ["us-east"]', "us = []", "jurisdictions.us", "from 1 to"),
        ('us = ["us-east"]', 'us = "us-east"', "jurisdictions.us", "a list"),
        ('us = ["us-east"]', 'us = ["us east"]', "jurisdictions.us", "holds 'us east'"),
        ('us = ["us-east"]', 'us = ["us-east", "us-east"]', "jurisdictions.us", "'us' already"),
        ('us = ["us-east"]', 'us = ["us-east", "eu-west"]', "jurisdictions.us", "'eu' already"),
        ('us = ["us-east"]', 'us = ["us-west"]', "peer[2].region", "'us-east' is in no jurisdiction"),
        ('eu = ["eu-west", "eu-central"]', 'eu = ["eu-central"]', "jurisdictions", "add 'eu-west' to 'eu'"),
        ('\njurisdiction = "eu"', '\njurisdiction = "us"', "jurisdiction", "has 'eu-west' in 'eu'"),
        ('\njurisdiction = "eu"', '\njurisdiction = "uk"', "jurisdiction", "has 'eu-west' in 'eu'"),
        ('us = ["us-east"]', "", "peer[2].region", "'us-east' is in no jurisdiction"),
        (JURISDICTIONS, "", "peer[1].region", "'eu-central' is in no jurisdiction"),
        # Peers.
        ('region = "us-east"', "", "peer[2].region", "is missing"),
        ('region = "us-east"', 'region = "US"', "peer[2].region", "lower-case"),
        ('region = "us-east"', 'region = "eu-west"', "peer[2].region", "this region itself"),
        ('region = "us-east"', 'region = "eu-central"', "peer", "used twice"),
        ('region = "us-east"', 'region = "us-east"\nport = 1', "peer[2].port", "is not known"),
        ('endpoints = ["127.0.0.1:7901"]', "", "peer[2].endpoints", "is missing"),
        ('endpoints = ["127.0.0.1:7901"]', "endpoints = []", "peer[2].endpoints", "from 1 to"),
        ('"127.0.0.1:7901"', '"127.0.0.1"', "peer[2].endpoints", "holds '127.0.0.1'"),
        ('"127.0.0.1:7901"', '"127.0.0.1:0"', "peer[2].endpoints", "holds '127.0.0.1:0'"),
        ('"127.0.0.1:7901"', '"127.0.0.1:7101"', "peer[2].endpoints", "this region's own"),
        ('"127.0.0.1:7901"', '"127.0.0.1:7203"', "peer[2].endpoints", "this region's own"),
        ('"127.0.0.1:7901"', '"127.0.0.1:07101"', "peer[2].endpoints", "this region's own"),
        ('"127.0.0.1:7901"', '"N1.EU-central.example:7443"', "peer[2].endpoints", "'eu-central' already"),
        ('"127.0.0.1:7901"', '"127.0.0.1:7901", "127.0.0.1:7901"', "peer[2].endpoints", "'us-east' already"),
        ('certificate_names = ["n1"]', "", "peer[2].certificate_names", "is missing"),
        ('certificate_names = ["n1"]', "certificate_names = []", "peer[2].certificate_names", "from 1 to"),
        ('certificate_names = ["n1"]', 'certificate_names = ["*"]', "peer[2].certificate_names", "holds '*'"),
        ('may_leave = ["global"]', "", "peer[2].may_leave", "is missing"),
        ('may_leave = ["global"]', 'may_leave = "global"', "peer[2].may_leave", "a list"),
        ('may_leave = ["global"]', 'may_leave = ["home-only"]', "peer[2].may_leave", "never leaves"),
        ('may_leave = ["global"]', 'may_leave = ["all"]', "peer[2].may_leave", "holds 'all'"),
        ('may_leave = ["global"]', 'may_leave = ["jurisdiction"]', "peer[2].may_leave", "is in 'us', not in 'eu'"),
        # Who may break the glass: people.
        (GLOBALLY, f'{GLOBALLY}\nbreak_glass = ["agent"]', "peer[2].break_glass", "people alone"),
        (GLOBALLY, f'{GLOBALLY}\nbreak_glass = ["approver", "agent"]', "peer[2].break_glass", "holds 'agent'"),
        (GLOBALLY, f'{GLOBALLY}\nbreak_glass = ["peer"]', "peer[2].break_glass", "holds 'peer'"),
        (GLOBALLY, f'{GLOBALLY}\nbreak_glass = ["*"]', "peer[2].break_glass", "holds '*'"),
        (GLOBALLY, f'{GLOBALLY}\nbreak_glass = "approver"', "peer[2].break_glass", "a list"),
        (GLOBALLY, f"{GLOBALLY}\nbreak_glass = true", "peer[2].break_glass", "a list"),
    ],
)
def test_a_mistake_about_other_regions_is_named(old, new, key, says):
    assert old in FEDERATED
    found = problems(FEDERATED.replace(old, new, 1))
    assert any(problem.startswith(f"{FILE}: {key}: ") and says in problem for problem in found), found


def test_one_mistake_about_other_regions_is_one_problem():
    for old, new in [
        ('us = ["us-east"]', 'us = ["us-east", "eu-central"]'),
        ('us = ["us-east"]', '"us us" = ["us-east"]'),
        ('region = "us-east"', 'region = "eu-west"'),
        ('may_leave = ["global"]', 'may_leave = ["home-only"]'),
        ('"127.0.0.1:7901"', '"nowhere"'),
    ]:
        (_,) = problems(FEDERATED.replace(old, new, 1))


def test_mistakes_about_other_regions_are_reported_with_all_others():
    text = FEDERATED.replace("format = 1", "format = 9").replace("us = ", "US = ").replace(":7901", ":x")
    assert len(problems(text)) == 3


# -- the shipped files

SHIPPED = [
    [DEMO.parent / where / f"{name}.toml" for name in ("eu-west", "eu-central", "us-east")] for where in ("", "fleet")
]


@pytest.mark.parametrize("files", SHIPPED, ids=["example", "loopback"])
def test_the_shipped_fleets_agree(files):
    fleet = [config.load(file) for file in files]
    assert [region.name for region in fleet] == [file.stem for file in files]
    assert {(region.fleet, region.authority) for region in fleet} == {(fleet[0].fleet, fleet[0].authority)}
    for ours, theirs in itertools.permutations(fleet, 2):
        agreed = agreement(terms(ours.atlas, theirs.name), terms(theirs.atlas, ours.name))
        assert not agreed.paused, agreed.pauses
        assert agreed.same_map
        one_law = ours.jurisdiction == theirs.jurisdiction
        assert agreed.sends == ((records_pb2.JURISDICTION, records_pb2.GLOBAL) if one_law else (records_pb2.GLOBAL,))
        told = theirs.peer(ours.name)
        assert told is not None
        assert told.endpoints == tuple(node.address for node in ours.nodes)
        assert told.certificate_names == {node.name for node in ours.nodes}


@pytest.mark.parametrize("files", SHIPPED, ids=["example", "loopback"])
def test_the_shipped_fleets_have_a_place_for_everything(files):
    reaches = {"flag": records_pb2.GLOBAL, "switch": records_pb2.HOME_ONLY, "stop": records_pb2.GLOBAL}
    for region in map(config.load, files):
        for environment in ("prod", "staging"):
            here = [partition for partition in region.partitions if partition.environment == environment]
            places = {kind: partition for partition in here for kind in partition.default_for}
            assert set(places) == set(config.KINDS)
            assert places["workflow"] == places["election"]
            for kind, reach in reaches.items():
                assert places[kind].reach == reach
        pinned = [partition for partition in region.partitions if partition.id == f"{region.name}.prod.pinned"]
        assert [partition.reach for partition in pinned] == [records_pb2.HOME_ONLY]
        state = [partition.reach for partition in region.partitions if partition.id == f"{region.name}.prod.state"]
        assert state == [records_pb2.JURISDICTION]


@pytest.mark.parametrize("files", SHIPPED, ids=["example", "loopback"])
def test_no_two_nodes_of_a_shipped_fleet_share_an_address_or_a_file(files):
    nodes = [node for region in map(config.load, files) for node in region.nodes]
    assert len({address for node in nodes for address in node.addresses}) == 3 * len(nodes)
    if files[0].parent.name == "fleet":
        assert len({path for node in nodes for path in (node.certificate, node.key)}) == 2 * len(nodes)


def test_every_shipped_file_is_tried():
    assert {DEMO, *itertools.chain(*SHIPPED)} == set(DEMO.parent.rglob("*.toml"))


LINES = FEDERATED.splitlines()


@given(st.integers(0, len(LINES) - 1), st.text(max_size=20), st.integers(0, 30))
def test_any_damage_is_a_config_error_or_harmless(line, inserted, column):
    lines = list(LINES)
    lines[line] = lines[line][:column] + inserted + lines[line][column:]
    try:
        region = config.parse("\n".join(lines), FILE)
    except config.ConfigError:
        return
    assert len(region.nodes) == 3
    for peer in region.peers:
        # What may leave is what the file says, and the law never has to take away from it.
        assert set(exported(region.atlas, peer.region)) == peer.may_leave


def test_kill_switches_that_say_who_and_why_do_not_travel():
    fleet = Path("regions/fleet/eu-west.toml")
    text = fleet.read_text()
    at = text.index('id = "eu-west.prod.switches"')
    wider = text[:at] + text[at:].replace('reach = "home-only"', 'reach = "jurisdiction"', 1)
    (problem,) = problems_of(wider, fleet)
    assert "eu-west.prod.switches" in problem
    assert "stop" in problem


def problems_of(text, file):
    with pytest.raises(config.ConfigError) as raised:
        config.parse(text, file)
    return raised.value.problems
