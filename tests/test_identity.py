"""Identities: one text per caller, everything else refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import Invalid
from controlplane.identity import ENVIRONMENTS, ROLES, Identity

GOOD = "controlplane://acme/prod/eu-west/agent/planner-7"


def test_a_uri_comes_back_as_written():
    identity = Identity.parse(GOOD)
    assert identity == Identity("acme", "prod", "eu-west", "agent", "planner-7")
    assert identity.uri == GOOD


@pytest.mark.parametrize("name", ["a", "maria@example.org", "Build_7+x", "n1"])
def test_names_of_people_and_programs(name):
    assert Identity("acme", "dev", "eu-west", "operator", name).name == name


def test_only_peers_serve_every_environment():
    assert Identity.parse("controlplane://acme/all/eu-west/peer/n1").environment == "all"
    with pytest.raises(Invalid):
        Identity.parse("controlplane://acme/all/eu-west/operator/maria")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "controlplane://",
        "CONTROLPLANE://acme/prod/eu-west/agent/a",
        "spiffe://acme/prod/eu-west/agent/a",
        "controlplane://acme/prod/eu-west/agent",
        "controlplane://acme/prod/eu-west/agent/a/b",
        "controlplane://acme/prod/eu-west/agent/",
        "controlplane:///prod/eu-west/agent/a",
        "controlplane://Acme/prod/eu-west/agent/a",
        "controlplane://acme/production/eu-west/agent/a",
        "controlplane://acme/prod/eu_west/agent/a",
        "controlplane://acme/prod/eu-west/root/a",
        "controlplane://acme/prod/eu-west/Agent/a",
        "controlplane://acme/prod/eu-west/agent/a\n",
        "controlplane://acme/prod/eu-west/agent/a\x00b",
        "controlplane://acme/prod/eu-west/agent/a%20b",
        "controlplane://acme/prod/eu-west/agent/a b",
        "controlplane://acme/prod/eu-west/agent/é",
        "controlplane://acme/prod/eu-west/agent/..",
        "controlplane://acme/prod/eu-west/agent/" + "a" * 129,
        "controlplane://acme/prod/" + "e" * 64 + "/agent/a",
        "controlplane://acme/prod/-eu/agent/a",
        " controlplane://acme/prod/eu-west/agent/a",
    ],
)
def test_anything_else_is_refused(uri):
    with pytest.raises(Invalid) as raised:
        Identity.parse(uri)
    assert raised.value.reason == "IDENTITY_MALFORMED"
    assert "\n" not in str(raised.value)


@given(st.text(max_size=80).map(lambda tail: "controlplane://" + tail) | st.text(max_size=80))
def test_what_parses_prints_back(text):
    try:
        identity = Identity.parse(text)
    except Invalid:
        return
    assert identity.uri == text


WORD = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)


@given(WORD, st.sampled_from(ENVIRONMENTS), WORD, st.sampled_from(ROLES), WORD)
def test_every_identity_prints_and_parses(fleet, environment, region, role, name):
    identity = Identity(fleet, environment, region, role, name)
    assert Identity.parse(identity.uri) == identity
