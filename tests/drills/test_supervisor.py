"""The process above a node, with a child that does as it is told."""

import asyncio
import contextlib
import json
import signal
import sys

import pytest

from controlplane.drills.supervisor import LINE_OPTION, Supervisor

# Writes down how it was started, passes on the orders meant for that start, then lives until it is told otherwise.
CHILD = """
import json, os, pathlib, signal, socket, sys, time
folder = pathlib.Path(sys.argv[1])
arguments = sys.argv[2:]
line = socket.socket(fileno=int(arguments[arguments.index("LINE") + 1]))
drained = int((folder / "drained").read_text()) if (folder / "drained").exists() else 0
signal.signal(signal.SIGTERM, lambda *_: sys.exit(drained))
with (folder / "starts").open("a") as starts:
    starts.write(json.dumps(arguments[: arguments.index("LINE")]) + "\\n")
number = len((folder / "starts").read_text().splitlines())
orders = folder / f"orders{number}"
if orders.exists():
    for order in orders.read_text().splitlines():
        line.sendall(order.encode() + b"\\n")
        answer = line.makefile().readline()
        with (folder / "answers").open("a") as answers:
            answers.write(answer)
if (folder / f"exit{number}").exists():
    sys.exit(int((folder / f"exit{number}").read_text()))
while True:
    (folder / "alive").write_text(str(time.monotonic()))
    time.sleep(0.01)
""".replace("LINE", LINE_OPTION)


class Stage:
    def __init__(self, folder):
        self.folder = folder
        (folder / "child.py").write_text(CHILD)
        self.data = folder / "data"
        self.data.mkdir()
        (self.data / "IDENTITY").write_text("old")
        arguments = [str(folder), "serve", "--bootstrap"]
        self.supervisor = Supervisor(arguments, self.data, [str(folder / "child.py")])

    def order(self, start, *orders):
        lines = [json.dumps({"id": str(number), "duration_ms": 100, **order}) for number, order in enumerate(orders)]
        (self.folder / f"orders{start}").write_text("\n".join(lines) + "\n")

    def lines(self, name):
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def starts(self):
        return self.lines("starts")

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - another process is what is awaited.
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.supervisor.run())
        try:
            yield task
        finally:
            self.supervisor.stop()
            async with asyncio.timeout(20):
                await task


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


async def test_it_ends_as_its_child_ended(stage):
    (stage.folder / "exit1").write_text("7")
    assert await stage.supervisor.run() == 7
    assert len(stage.starts()) == 1


async def test_asked_to_stop_it_drains_its_child(stage):
    async with stage.running() as task:
        await stage.until((stage.folder / "alive").exists)
        stage.supervisor.stop()
        assert await task == 0


@pytest.mark.parametrize("blow", ["kill", "restart"])
async def test_after_a_blow_the_child_starts_again_without_a_reason_to_be_empty(stage, blow):
    stage.order(1, {"do": blow})
    async with stage.running():
        await stage.until(lambda: len(stage.starts()) == 2)
    assert stage.starts() == [["serve", "--bootstrap"], ["serve"]]
    assert (stage.data / "IDENTITY").read_text() == "old"


async def test_a_replaced_disk_is_put_aside_not_lost(stage):
    stage.order(1, {"do": "replace"})
    async with stage.running():
        await stage.until(lambda: len(stage.starts()) == 2)
    assert stage.starts()[1] == ["serve", "--replace"]
    assert not stage.data.exists()
    [aside] = stage.folder.glob("data.*")
    assert (aside / "IDENTITY").read_text() == "old"


async def test_a_paused_child_goes_on_by_the_supervisors_timer(stage):
    stage.order(1, {"do": "pause", "duration_ms": 400})
    alive = stage.folder / "alive"
    async with stage.running():
        await stage.until(alive.exists)
        await stage.until(lambda: stage.supervisor._child is not None and state_of(stage.supervisor) == "T")
        stopped_at = alive.read_text()
        await stage.until(lambda: alive.read_text() not in ("", stopped_at))
        assert len(stage.starts()) == 1


def state_of(supervisor):
    with open(f"/proc/{supervisor._child.pid}/stat") as file:  # noqa: PTH123 - it is no file.
        return file.read().rpartition(")")[2].split()[0]


async def test_what_is_asked_twice_strikes_once_and_one_thing_at_a_time(stage):
    same = {"do": "pause", "duration_ms": 60_000, "id": "x"}
    stage.order(1, same, same, {"do": "kill"}, {"do": "dance"}, {"do": "kill", "duration_ms": 10**9})
    async with stage.running():
        await stage.until(lambda: len(stage.lines("answers")) == 5)
    first, again, other, unknown, endless = stage.lines("answers")
    assert first == {"id": "x", "repeated": False}
    assert again == {"id": "x", "repeated": True}
    assert "another fault" in other["problem"]
    assert "not an order" in unknown["problem"]
    assert "out of range" in endless["problem"]
    assert len(stage.starts()) == 1


async def test_a_child_that_fails_while_it_is_restarted_is_not_started_again(stage):
    stage.order(1, {"do": "restart"})
    (stage.folder / "drained").write_text("3")
    assert await stage.supervisor.run() == 3
    assert len(stage.starts()) == 1


async def test_a_stop_while_the_child_is_down_ends_at_once(stage):
    stage.order(1, {"do": "kill", "duration_ms": 100_000})
    async with stage.running() as task:
        await stage.until(lambda: stage.lines("answers") and stage.supervisor._child is None)
        stage.supervisor.stop()
        async with asyncio.timeout(5):
            assert await task == 0
    assert len(stage.starts()) == 1


async def test_it_hears_signals(stage):
    done = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, sys, pathlib; from controlplane.drills.supervisor import Supervisor;"
        f"sys.exit(asyncio.run(Supervisor(['{stage.folder}', 'serve'], pathlib.Path('{stage.data}'),"
        f" ['{stage.folder}/child.py']).run()))",
    )
    await stage.until((stage.folder / "alive").exists)
    done.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert await done.wait() == 0
