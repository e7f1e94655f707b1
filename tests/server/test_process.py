"""Real processes: starting, stopping, exit codes, and what people are told when something is wrong."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controlplane import certs, config, limits
from controlplane.identity import Identity
from controlplane.loopback import free_ports
from controlplane.v1 import api_pb2 as api
from controlplane.v1.api_pb2_grpc import AgentsStub
from tests.server.regions import create, region_text


def write_region(folder, size):
    ports = free_ports(3 * size)
    text = region_text(size, ports)
    for number in range(size):
        line = f'name = "n{number + 1}"\n'
        text = text.replace(line, f'{line}metrics_address = "127.0.0.1:{ports[2 * size + number]}"\n')
    file = folder / "region.toml"
    file.write_text("ballast_bytes = 0\n" + text)
    return file


def controlplane(*arguments):
    return [sys.executable, "-m", "controlplane", *map(str, arguments)]


def ended(*arguments):
    return subprocess.run(controlplane(*arguments), capture_output=True, text=True, timeout=30, check=False)


def serve_arguments(file, node="n1", *flags):
    return ("serve", "--region", file, "--node", node, "--data", file.parent / node, *flags)


@contextlib.contextmanager
def program(*arguments, **options):
    child = subprocess.Popen(controlplane(*arguments), stderr=subprocess.PIPE, text=True, **options)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


def stopped(child, number=signal.SIGTERM):
    child.send_signal(number)
    return child.wait(15)


def certified(file):
    region = config.load(file)
    certs.authority_for(region)
    certs.nodes_for(region)
    certs.callers_for(region, certs.usual_callers(region))
    return region


@pytest.fixture
def region(tmp_path):
    return certified(write_region(tmp_path, 1))


@contextlib.contextmanager
def channel(region):
    folder = region.authority.parent
    credentials = grpc.ssl_channel_credentials(
        region.authority.read_bytes(),
        (folder / "agent-prod.key").read_bytes(),
        (folder / "agent-prod.crt").read_bytes(),
    )
    with grpc.secure_channel(region.nodes[0].address, credentials) as opened:
        grpc.channel_ready_future(opened).result(20)
        yield opened


def test_a_node_serves_stops_and_keeps_what_it_was_given(region):
    with program(*serve_arguments(region.file, "n1", "--bootstrap")) as child, channel(region) as opened:
        AgentsStub(opened).CreateWorkflow(create("w"), timeout=10)
        health = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        with urllib.request.urlopen(f"http://{region.nodes[0].metrics_address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert re.search(r"^controlplane_raft_ready 1\.0$", text, re.MULTILINE)
        assert re.search(r"^controlplane_proposal_seconds_count [1-9]", text, re.MULTILINE)
        assert re.search(r"^controlplane_sync_seconds_count [1-9]", text, re.MULTILINE)
        assert 'controlplane_calls_total{method="CreateWorkflow",outcome="ok"} 1.0' in text
        assert "tester" not in text
        # A histogram has three of them in Prometheus.
        told = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"^# HELP (\w+)", text, re.MULTILINE)}
        page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
        assert {re.sub("_bucket$", "", name) for name in re.findall(r"\bcontrolplane_[a-z_]+", page)} <= told
        assert stopped(child) == 0
    with program(*serve_arguments(region.file)) as child, channel(region) as opened:
        reply = AgentsStub(opened).GetWorkflow(api.GetWorkflowRequest(id="w"), timeout=10)
        assert reply.workflow.version == 1
        assert stopped(child, signal.SIGINT) == 0


def test_a_node_that_waits_for_its_peers_can_be_stopped(tmp_path):
    file = write_region(tmp_path, 3)
    certified(file)
    with program(*serve_arguments(file, "n1", "--bootstrap")) as child:
        journal = tmp_path / "n1" / "IDENTITY"
        while not journal.exists():
            assert child.poll() is None
        assert stopped(child) == 0


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ((), 1, "--bootstrap"),
        (("--bootstrap", "--replace"), 2, "exclude each other"),
        (("--bootstrap", "--cert", "absent.crt"), 2, "absent.crt"),
        (("--node", "n7", "--bootstrap"), 2, "the nodes are n1"),
    ],
)
def test_what_keeps_a_node_from_starting(region, flags, code, says):
    result = ended(*serve_arguments(region.file), *flags)
    assert result.returncode == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_another_nodes_certificate(region):
    folder = region.authority.parent
    authority = certs.load_authority(folder)
    other = Identity("acme", "all", "eu-west", "peer", "n2")
    issued = certs.issue(authority, other, folder, ["127.0.0.1"])
    result = ended(
        *serve_arguments(region.file, "n1", "--bootstrap"), "--cert", issued.certificate, "--key", issued.key
    )
    assert result.returncode == 2
    assert "controlplane://acme/all/eu-west/peer/n1" in result.stderr


def test_an_expired_certificate(region):
    authority = certs.load_authority(region.authority.parent)
    mine = Identity("acme", "all", "eu-west", "peer", "n1")
    fresh = certs.Life.from_now(1)
    past = certs.Life(fresh.start - (fresh.end - fresh.start), fresh.start)
    authority.sign(mine, life=past).save(region.nodes[0].certificate, region.nodes[0].key, force=True)
    result = ended(*serve_arguments(region.file, "n1", "--bootstrap"))
    assert result.returncode == 2
    assert "expired" in result.stderr


def test_a_port_in_use(region):
    with program(*serve_arguments(region.file, "n1", "--bootstrap")), channel(region):
        second = region.file.parent / "again"
        result = ended("serve", "--region", region.file, "--node", "n1", "--data", second, "--bootstrap")
        assert result.returncode == 1
        assert "cannot listen on 127.0.0.1" in result.stderr
        assert "another program listens there" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_wrong_region_file_names_every_mistake(tmp_path):
    file = write_region(tmp_path, 3)
    file.write_text(file.read_text().replace("format = 1", "format = 3").replace('jurisdiction = "eu"', ""))
    result = ended(*serve_arguments(file))
    assert result.returncode == 2
    assert "format" in result.stderr
    assert "jurisdiction" in result.stderr


def test_certificates_are_not_overwritten(region):
    before = region.nodes[0].certificate.read_bytes()
    result = ended("certs", "node", region.file)
    assert result.returncode == 1
    assert "--force" in result.stderr
    assert region.nodes[0].certificate.read_bytes() == before
    assert ended("certs", "node", region.file, "--node", "n1", "--force").returncode == 0
    assert region.nodes[0].certificate.read_bytes() != before


def test_all_certificates_of_a_region_file(tmp_path):
    file = write_region(tmp_path, 3)
    result = ended("certs", "all", file)
    assert result.returncode == 0
    made = {Path(line).stem for line in result.stdout.splitlines()}
    assert {"authority", "n1", "n2", "n3", "operator-prod", "agent-staging", "admin"} <= made
    assert all(Path(line).exists() for line in result.stdout.splitlines())


def test_a_clients_certificate(region, tmp_path):
    arguments = ("--environment", "prod", "--name", "planner", "--out", tmp_path / "out")
    result = ended("certs", "client", region.file, "--role", "agent", *arguments)
    assert result.returncode == 0
    assert Path(result.stdout.strip()) == tmp_path / "out" / "planner.crt"
    result = ended("certs", "client", region.file, "--role", "root", *arguments)
    assert result.returncode == 2
    assert "role must be one of" in result.stderr


def dev_address(child):
    return re.search(r"127\.0\.0\.1:\d+", child.stdout.readline())[0]


def test_dev_needs_nothing_and_keeps_its_data(tmp_path):
    arguments = ("dev", "--port", 0, "--data", tmp_path / "dev")
    for version in (1, 2):
        with program(*arguments, stdout=subprocess.PIPE) as child:
            with grpc.insecure_channel(dev_address(child)) as opened:
                agents = AgentsStub(opened)
                if version == 1:
                    agents.CreateWorkflow(create("w"), timeout=10)
                else:
                    header = create("w").header
                    agents.CompareAndSwapWorkflow(
                        api.CompareAndSwapWorkflowRequest(
                            header=header, id="w", version=1, state=b"x", schema_version=1
                        ),
                        timeout=10,
                    )
                reply = agents.GetWorkflow(api.GetWorkflowRequest(id="w"), timeout=10)
                assert reply.workflow.version == version
            assert stopped(child) == 0
            child.stdout.close()


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        ("", 2, "name a folder"),
        ("/dev/null/x", 1, "/dev/null/x: cannot be a data folder: Not a directory"),
        ("/proc/x", 1, "/proc/x: cannot be a data folder"),
        ("x" * 300, 1, "cannot be a data folder: File name too long"),
        (Path(__file__).parent, 1, "is no data folder and is not empty"),
    ],
)
def test_a_data_folder_that_cannot_be_one_is_told(region, data, code, says):
    for arguments in (("dev", "--port", 0), serve_arguments(region.file, "n1", "--bootstrap")):
        result = ended(*arguments, "--data", data)
        assert result.returncode == code
        assert says in result.stderr
        assert "Traceback" not in result.stderr


def test_every_line_of_a_log_in_json_is_json(region):
    silent = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    with program(*serve_arguments(region.file, "n1", "--bootstrap", "--log-format", "json"), env=silent) as child:
        with channel(region):
            pass
        host, _, port = region.nodes[0].address.rpartition(":")
        # Nobody's certificate: what gRPC has to say of it would stand between our lines.
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
        nobody.set_alpn_protocols(["h2"])
        with socket.create_connection((host, int(port)), 10) as plain, contextlib.suppress(OSError):
            nobody.wrap_socket(plain).recv(1)
        assert stopped(child) == 0
        lines = child.stderr.read().splitlines()
    assert {json.loads(line)["event"] for line in lines} >= {"serving", "draining"}


def test_ctrl_c_before_a_program_began_is_no_traceback():
    interrupt = "def find_spec(name, *_):\n if name == 'structlog': raise KeyboardInterrupt"
    found = "sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))"
    code = f"import sys, types\n{interrupt}\n{found}\nimport controlplane.__main__"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stderr) == (130, "")


def test_without_the_server_the_programs_say_what_to_install():
    code = "import sys; sys.modules['structlog'] = None; sys.argv = ['controlplane']; import controlplane.__main__"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert "pip install 'controlplane[server]'" in result.stderr


def idle(address, number):
    """Open connections and say nothing; as many as are let.

    Whom a full queue drops, the kernel has wait for a second, so nobody waits for that: there are hundreds to come.
    """
    host, _, port = address.rpartition(":")
    opened = []
    for _ in range(number):
        with contextlib.suppress(OSError):
            opened.append(socket.create_connection((host, int(port)), timeout=0.05))
    return opened


def test_a_node_does_not_start_with_too_few_descriptors(region):
    few = limits.DESCRIPTORS_MIN // 2
    command = ["prlimit", f"--nofile={few}:{few}", *controlplane(*serve_arguments(region.file, "n1", "--bootstrap"))]
    child = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert child.returncode != 0
    assert f"may open {few} files and connections" in child.stderr
    assert "ulimit -n" in child.stderr


@pytest.mark.parametrize("port", ["address", "metrics_address"])
def test_callers_that_only_connect_take_no_descriptor_that_the_node_needs(region, port):
    """Nobody needs a certificate to open a connection."""
    least = limits.DESCRIPTORS_MIN
    command = [
        "prlimit",
        f"--nofile={least}:{least}",
        *controlplane(*serve_arguments(region.file, "n1", "--bootstrap")),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            with channel(region) as opened:
                AgentsStub(opened).CreateWorkflow(create("w"), timeout=10)
                held = idle(getattr(region.nodes[0], port), least + 200)
                for number in range(20):
                    AgentsStub(opened).CreateWorkflow(create(f"w{number}"), timeout=10)
                open_now = len(list(Path(f"/proc/{child.pid}/fd").iterdir()))
                assert open_now <= least - limits.DESCRIPTORS_RESERVED // 2
                for each in held:
                    each.close()
        finally:
            child.kill()


def test_a_node_outlives_callers_that_connect_by_the_hundred_and_leave(region):
    with program(*serve_arguments(region.file, "n1", "--bootstrap")) as child, channel(region) as opened:
        for number in range(4):
            for each in idle(region.nodes[0].address, 500):
                each.close()
            AgentsStub(opened).CreateWorkflow(create(f"w{number}"), timeout=10)
        assert stopped(child) == 0
