"""Real processes under drills: three nodes with their supervisors, and an operator who may vanish."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import grpc
import pytest

from controlplane import signing, status
from controlplane.errors import ControlPlaneError, Denied
from controlplane.loopback import LoopbackRegion, ending
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import drill_pb2 as drill
from tests.server.regions import running

DEADLINE_S = 20
SPEEDS = {"recovery_ms", "unknown_percent", "kill_confirmed_ms", "full_replication_ms"}


class Operator:
    """Somebody with an operator's certificate, and the nodes of a region."""

    def __init__(self, region, folder):
        self.region, self.folder = region, folder
        self.who = region.identity("operator", "maria")
        self.key = folder / "maria.key"
        self.trusted = signing.new(self.key)
        tls = grpc.ssl_channel_credentials(*(self.who[name].read_bytes() for name in ("ca", "key", "cert")))
        options = [("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
        self.channels = [grpc.secure_channel(address, tls, options=options) for address in region.addresses]

    def ask(self, number, method, request, reply_type, *, timeout_s=1.0):
        service = "Drills" if method.endswith(("Faults", "Fault")) else "Operators"
        call = self.channels[number].unary_unary(f"/controlplane.v1.{service}/{method}")
        try:
            return reply_type.FromString(call(request.SerializeToString(), timeout=timeout_s))
        except grpc.RpcError as error:
            raise status.from_call(error.code(), error.details(), error.trailing_metadata()) from None

    def inject(self, number, kind, duration_ms, name="1", drill_id="e" * 32):
        fault = drill.Fault(drill=drill_id, id=name.rjust(32, "0"), kind=kind, duration_ms=duration_ms, reason="test")
        return self.ask(number, "InjectFault", drill.InjectFaultRequest(fault=fault), drill.InjectFaultReply)

    def faults(self, number):
        return self.ask(number, "ListFaults", drill.ListFaultsRequest(), drill.ListFaultsReply)

    def status(self, number):
        return self.ask(number, "GetStatus", api.GetStatusRequest(), api.GetStatusReply)

    def cpctl(self, *arguments):
        addresses = [part for address in self.region.addresses for part in ("--address", address)]
        files = ["--authority", self.who["ca"], "--certificate", self.who["cert"], "--key", self.who["key"]]
        program = [sys.executable, "-c", "from controlplane.cli import main; main()"]
        return [*program, *addresses, *map(str, [*files, *arguments])]

    def ended(self, *arguments, timeout_s=60):
        return subprocess.run(
            self.cpctl(*arguments), capture_output=True, text=True, timeout=timeout_s, check=False, cwd=self.folder
        )

    @contextlib.contextmanager
    def started(self, *arguments):
        child = subprocess.Popen(
            self.cpctl(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder
        )
        try:
            yield child
        finally:
            child.kill()
            child.communicate()

    def steady(self):
        """Wait until every node answers, knows a leader, has caught up, and is free of faults."""
        until(self._agree)

    def _agree(self):
        found = [attempt(self.status, number) for number in range(3)]
        kept = [attempt(self.faults, number) for number in range(3)]
        if None in found or None in kept or any(each.faults or each.standing != "member" for each in kept):
            return False
        return len({(each.region.leader, each.region.term, each.commit, each.applied) for each in found}) == 1 and bool(
            found[0].region.leader
        )


def attempt(ask, *arguments):
    try:
        return ask(*arguments)
    except ControlPlaneError:
        return None


def until(condition, deadline_s=DEADLINE_S):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drilled")
    region = LoopbackRegion(folder, drills=True)
    with ending(region.nodes):
        region.start()
        made = Operator(region, folder)
        made.steady()
        yield made
        # Before the supervisors are killed: their children drain by themselves, but that takes a moment.
        for node in region.nodes:
            node.send(signal.SIGTERM)
        until(lambda: not any(node.running for node in region.nodes))


def record_of(child_output):
    return json.loads(child_output)["record"]


def test_a_killed_leader_end_to_end(operator):
    operator.steady()
    arguments = ("drill", "run", "kill-leader", "--down", 1, "--calm", 0.7, "--with-kill-switch", "--yes", "--json")
    done = operator.ended(*arguments, "--reason", "test", "--signing-key", operator.key, "--out", operator.folder)
    written = json.loads(done.stdout)
    made = written["record"]
    failed = {claim["name"] for claim in made["claims"] if not claim["passed"]}
    # How fast it was is not judged here: the machine may be busy with other things.
    assert failed <= SPEEDS, done.stderr
    assert done.returncode == (12 if failed else 0)
    assert made["drill"]["actor"].endswith("/operator/maria")
    assert [each["what"] for each in made["timeline"]].count("fault") == 1
    assert len({each["node"] for each in made["timeline"] if each["what"] == "leader"}) >= 2
    claims = {claim["name"]: claim["actual"] for claim in made["claims"]}
    assert claims["kill_confirmed_ms"] is not None
    assert claims["replicas"] == "equal"
    verified = operator.ended("drill", "verify", written["file"], "--trust", operator.trusted, "--json")
    wrong = {check["name"] for check in json.loads(verified.stdout)["checks"] if not check["passed"]}
    assert wrong == (failed | {"verdict"} if failed else set())
    # Nothing stays behind but the evidence.
    assert all(not operator.faults(number).faults for number in range(3))


def test_a_drill_that_could_not_be_recorded_breaks_nothing(operator):
    operator.steady()
    terms = [operator.status(number).region.term for number in range(3)]
    arguments = ("drill", "run", "kill-leader", "--yes", "--reason", "test", "--signing-key", operator.key)
    done = operator.ended(*arguments, "--out", "/dev/null/drills")
    assert done.returncode == 2
    assert done.stderr == "error: /dev/null/drills: Not a directory\n"
    assert [operator.status(number).region.term for number in range(3)] == terms
    assert not any(operator.faults(number).faults for number in range(3))


def test_a_record_that_does_not_fit_on_the_disk_is_told(operator):
    operator.steady()
    folder = operator.folder / "full"
    arguments = ("drill", "run", "isolate-leader", "--down", 0.5, "--calm", 0.2, "--yes", "--json")
    command = operator.cpctl(*arguments, "--reason", "test", "--signing-key", operator.key, "--out", folder)
    # A disk that has room for a little, so that it is found out only when there is more to write.
    limited = ["sh", "-c", 'ulimit -f 16 && exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 13, done.stderr
    assert json.loads(done.stderr)["message"] == f"{folder}: File too large"


def test_drills_are_loud(operator):
    operator.steady()
    number, name = 1, operator.region.names[1]
    assert operator.inject(number, drill.FAULT_CUT_IN, 60_000, name="2").node == name
    with urllib.request.urlopen(f"http://{operator.region.metrics_addresses[number]}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    assert "controlplane_drills_enabled 1.0" in metrics
    assert "controlplane_drill_faults 1.0" in metrics
    healing = drill.HealFaultsRequest(drill="e" * 32, reason="enough")
    assert len(operator.ask(number, "HealFaults", healing, drill.HealFaultsReply).healed) == 1
    log = (operator.folder / f"{name}.log").read_text()
    assert "fault_injected" in log
    assert "operator/maria" in log
    assert "why=test" in log


@pytest.mark.parametrize("how", ["abort", "SIGINT", "SIGTERM"])
def test_an_abort_heals(operator, how):
    operator.steady()
    arguments = ("drill", "run", "isolate-leader", "--down", 100, "--calm", 0.2, "--yes", "--json")
    with operator.started(*arguments, "--reason", "test", "--signing-key", operator.key) as child:
        until(lambda: cut(operator) or child.poll() is not None)
        assert child.poll() is None, child.communicate()
        if how == "abort":
            seen = operator.ended("drill", "watch", "--once", "--json")
            assert "cut" in str(json.loads(seen.stdout)["nodes"])
            assert operator.ended("drill", "abort", "--reason", "enough").returncode == 0
        else:
            child.send_signal(signal.Signals[how])
        output, _ = child.communicate(timeout=40)
        assert child.returncode == 12
    made = record_of(output)
    assert made["ended_early"].startswith("aborted at n" if how == "abort" else "interrupted")
    assert made["verdict"] == "failed"
    claims = {claim["name"]: claim for claim in made["claims"]}
    assert claims["lost_writes"]["passed"]
    assert claims["linearizable"]["passed"]
    operator.steady()
    assert operator.ended("drill", "watch", "--once").returncode == 4


def cut(operator):
    kept = [attempt(operator.faults, number) for number in range(3)]
    return any(each and any(one.fault.kind == drill.FAULT_CUT for one in each.faults) for each in kept)


def test_a_fault_ends_by_the_nodes_own_timer_when_its_operator_vanished(operator):
    operator.steady()
    arguments = ("drill", "run", "isolate-leader", "--down", 2, "--calm", 0.2, "--yes")
    with operator.started(*arguments, "--reason", "test", "--signing-key", operator.key) as child:
        until(lambda: cut(operator) or child.poll() is not None)
        assert child.poll() is None, child.communicate()
        child.kill()
        until(lambda: not cut(operator))
    # What is left are reservations, which harm nobody; another operator's drill is told who has the region.
    refused = operator.ended("drill", "run", "kill-leader", "--yes", "--reason", "test", "--signing-key", operator.key)
    assert refused.returncode == 5
    assert "takes part in drill" in refused.stderr
    assert "cpctl drill abort" in refused.stderr
    assert operator.ended("drill", "abort").returncode == 0
    operator.steady()


def test_a_supervisor_that_dies_leaves_no_node_stopped(operator):
    operator.steady()
    reply = operator.inject(0, drill.FAULT_PAUSE, 100_000)
    assert not reply.repeated
    until(lambda: attempt(operator.status, 0) is None)
    node = operator.region.nodes[0]
    address = operator.region.addresses[0].rpartition(":")
    node.kill()
    # The kernel lets the child go on, which finds itself alone and ends in order: port and data folder are free.
    until(lambda: not listens(address))
    node.start()
    operator.steady()
    # What it was asked is forgotten with it; what it is asked again is one fault.
    assert not operator.inject(0, drill.FAULT_CUT, 300).repeated
    assert operator.inject(0, drill.FAULT_CUT, 300).repeated
    operator.steady()


def listens(address):
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((address[0], int(address[2]))) == 0


async def test_a_node_without_drills_takes_no_faults(tmp_path):
    async with running(tmp_path) as region, region.caller("operator") as operator:
        for method in ("InjectFault", "HealFaults"):
            request = {"InjectFault": drill.InjectFaultRequest(), "HealFaults": drill.HealFaultsRequest(reason="x")}
            with pytest.raises(Denied) as raised:
                await operator.call(method, request[method])
            assert raised.value.reason == "DRILLS_OFF"
            assert "--drills" in raised.value.hint
        listed = drill.ListFaultsReply.FromString(await operator.call("ListFaults"))
        assert not listed.enabled
