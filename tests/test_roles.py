"""The table of roles, cell by cell, against one written independently of it."""

import re

import pytest

from controlplane import roles
from controlplane.sdk import ControlPlane
from controlplane.v1 import api_pb2, audit_pb2, drill_pb2

# One line per call, one column per role: in which environments (d t s p = dev test staging prod, * = all of these).
EXPECTED = """
call                     agent  operator  approver  reviewer  peer
GetRegion                *      *         *         *         -
WatchRegion              *      *         *         *         -
Campaign                 *      *         -         -         -
Renew                    *      *         -         -         -
Resign                   *      *         -         -         -
GetElection              *      *         *         *         -
ListElections            *      *         *         *         -
CreateWorkflow           *      *         -         -         -
GetWorkflow              *      *         *         *         -
CompareAndSwapWorkflow   *      *         -         -         -
ListWorkflows            *      *         *         *         -
GetWorkflowHistory       *      *         *         *         -
GetAgentConfig           *      *         *         *         -
GetFlag                  *      *         *         *         -
ListFlags                *      *         *         *         -
ListSwitches             *      *         *         *         -
CheckSwitches            *      *         *         *         -
Watch                    *      *         *         *         -
GetOutcome               *      *         *         *         -
Session                  *      *         *         *         *
SetFlag                  -      *         -         -         -
RestoreFlag              -      *         -         -         -
GetFlagHistory           -      *         *         *         -
EngageSwitch             -      *         -         -         -
ReleaseSwitch            -      *         -         -         -
ExceptSwitch             -      *         -         -         -
GetStatus                -      *         *         *         -
TransferRegion           -      p         -         -         -
ListEvents               -      *         *         *         -
GetOutline               -      *         *         *         -
ListBreakGlass           -      *         *         *         -
EraseRecord              -      dts       *         -         -
ListPartitions           -      *         *         *         -
MovePartition            -      *         -         -         -
ListQuarantine           -      *         *         *         -
InjectFault              -      p         -         -         -
HealFaults               -      p         -         -         -
ListFaults               -      *         -         -         -
GetCheckpoint            -      *         *         *         -
ReadLedger               -      *         *         *         -
ReadNodes                -      *         *         *         -
ScanDisk                 -      *         *         *         -
NotePassage              -      -         -         -         -
"""
LETTERS = {"d": "dev", "t": "test", "s": "staging", "p": "prod"}


def expected_cells():
    head, *lines = [line.split() for line in EXPECTED.strip().splitlines()]
    for method, *cells in lines:
        for role, cell in zip(head[1:], cells, strict=True):
            allowed = "dtsp" if cell == "*" else cell
            for letter, environment in LETTERS.items():
                yield method, role, environment, letter in allowed


CELLS = list(expected_cells())


@pytest.mark.parametrize(("method", "role", "environment", "expected"), CELLS)
def test_cell(method, role, environment, expected):
    assert roles.allowed(method, role, environment) is expected


def test_the_table_is_exactly_the_api():
    services = api_pb2.DESCRIPTOR.services_by_name
    assert set(roles.AGENTS) == {method.name for method in services["Agents"].methods}
    assert set(roles.OPERATORS) == {method.name for method in services["Operators"].methods}
    drills = drill_pb2.DESCRIPTOR.services_by_name["Drills"]
    assert set(roles.DRILLS) == {method.name for method in drills.methods}
    reviewers = audit_pb2.DESCRIPTOR.services_by_name["Reviewers"]
    assert set(roles.REVIEWERS) == {method.name for method in reviewers.methods}
    assert {method for method, *_ in CELLS} == set(roles.TABLE)


@pytest.mark.parametrize(
    ("method", "role", "environment"),
    [
        ("Nothing", "operator", "prod"),
        ("", "operator", "prod"),
        ("GetFlag", "root", "prod"),
        ("GetFlag", "", "prod"),
        ("GetFlag", "operator", "all"),
        ("GetFlag", "operator", ""),
        ("SetFlag", "peer", "all"),
    ],
)
def test_unknown_words_are_denied(method, role, environment):
    assert not roles.allowed(method, role, environment)


def test_peers_open_sessions_from_their_own_environment():
    assert roles.allowed("Session", "peer", "all")
    theirs = {method for method in roles.TABLE if roles.allowed(method, "peer", "all")}
    assert theirs == {"Session", "NotePassage"}


@pytest.mark.parametrize("method", roles.OPERATORS)
def test_the_sdk_says_who_may_call(method: str) -> None:
    words = {("operator",): "Operators", ("approver", "operator"): "Approvers"}
    who = words.get(tuple(sorted(roles.OPERATORS[method])), "People")
    named = {"GetFlagHistory": "flag_history", "EngageSwitch": "engage", "ReleaseSwitch": "release"}
    name = named.get(method, re.sub("(?<!^)(?=[A-Z])", "_", method).lower())
    assert re.search(rf"{who}[^.]*\bonly\b", getattr(ControlPlane, name).__doc__ or "")
