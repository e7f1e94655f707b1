"""A drill that was run, as far as its record knows."""

import pytest

from controlplane import signing
from controlplane.drills import record, scenarios
from controlplane.drills.evidence import Seen
from controlplane.drills.nodes import Look
from controlplane.drills.record import Chosen
from controlplane.drills.runner import Course, Happening
from controlplane.drills.scenarios import Facts, Options
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import drill_pb2

MS = 1_000_000


def look(name):
    region = api.Region(fleet="acme", name="eu-west", jurisdiction="eu", leader="n1", term=3)
    status = api.GetStatusReply(node=name, region=region, role="follower", version="0.1.0", hash="ab", applied=9)
    faults = drill_pb2.ListFaultsReply(node=name, enabled=True, standing="member", config_hash="cd" * 32)
    return Look(f"127.0.0.1:{name[1:]}", status, faults)


@pytest.fixture
def course():
    options = Options(kill_switch=True)
    plan = scenarios.plan("kill-leader", Facts("n1", ("n1", "n2", "n3")), options)
    looks = {name: look(name) for name in ("n1", "n2", "n3")}
    made = Course(
        "d" * 32, plan, options, looks, 1_700_000_000_000, actor="controlplane://acme/prod/eu-west/operator/maria"
    )
    made.processes = ["maker", "register n1", "register roaming-0", "engage"]
    made.timeline = [
        Happening(10 * MS, "leader", "n1 leads in term 3", "n1"),
        Happening(1000 * MS, "fault", "kill n1 for 5 s", "n1", 6000 * MS),
        Happening(1300 * MS, "leader", "n2 leads in term 4", "n2"),
    ]
    made.end_ns = 9000 * MS
    made.after = looks
    made.seen = Seen("all", "equal", 700)
    tell(made.recorder)
    return made


def tell(recorder):
    def done(process, key, kind, argument, result, at_ms):
        recorder.invoke(process, key, kind, argument, at_ms * MS)
        recorder.ok(process, result, (at_ms + 1) * MS)

    done(0, "k0", "create", "made", 1, 1)
    version = 1
    for at_ms in [*range(500, 1000, 50), *range(1400, 9000, 50)]:
        done(2 if at_ms % 100 else 1, "k0", "cas", (version, f"v{version}"), version + 1, at_ms)
        version += 1
        if at_ms == 1500:
            done(3, "switch", "engage", None, True, at_ms + 2)
    done(1, "k0", "read", None, (version, f"v{version - 1}"), 9100)


@pytest.fixture
def signed(course, tmp_path):
    """Its record in a file, signed by the key beside it, with its history."""
    signing.new(tmp_path / "maria.key")
    signer = signing.Signer(tmp_path / "maria.key")
    history = tmp_path / "drill.history.jsonl"
    course.recorder.write(history)
    made = record.compose(course, Chosen("because", "p"), history.read_bytes(), history.name)
    file = tmp_path / "drill.json"
    file.write_bytes(record.sealed(made, signer.public_key, signer.sign(record.canonical(made))))
    return file
