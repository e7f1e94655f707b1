"""Stories of the product as transcripts: commands, a line of dashes, and what came of them.

Each `*.txt` beside this file is played on a node of its own. `REWRITE_TRANSCRIPTS=1` writes down what happens now
instead of comparing; the difference is then for a person to judge.

Commands: the first word says what, words like `as=a2` set options, quotes keep blanks together. Options of all calls:
`as` (the agent, a1 unless said), `why` (the reason), `fenced` (carry the fence that this agent last won), `again`
(repeat the last request id). What is the same in every line is not printed.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from controlplane import controllers
from controlplane.controllers import Controllers
from controlplane.errors import ControlPlaneError
from controlplane.features import flags
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, FlagType, FlagValue, Scope, ScopeKind, Variant
from tests.node.harness import Region, settle, until

FOLDER = Path(__file__).parent
REWRITE = "REWRITE_TRANSCRIPTS" in os.environ
TTL_MS = 10_000
STEP_S = 0.4
KINDS = {
    "region": ScopeKind.SCOPE_REGION,
    "environment": ScopeKind.SCOPE_ENVIRONMENT,
    "tenant": ScopeKind.SCOPE_TENANT,
    "agent_type": ScopeKind.SCOPE_AGENT_TYPE,
    "tool": ScopeKind.SCOPE_TOOL,
    "workflow": ScopeKind.SCOPE_WORKFLOW,
}


def identity(agent: str) -> str:
    return f"controlplane://fleet/prod/eu/agent/{agent}"


def agent_of(actor: str) -> str:
    return actor.rpartition("/")[2]


class Stage:
    """A node, its controllers, and what the agents of a story remember."""

    def __init__(self) -> None:
        self.region = Region()
        self.loops = Controllers(self.region.node)
        self._fences: dict[str, api.Fence] = {}
        self._last_id = b""

    async def play(self, line: str) -> str:
        """Run one command and describe what came of it."""
        what, *rest = shlex.split(line)
        words = [word for word in rest if "=" not in word and word not in ("fenced", "again")]
        options = dict(word.split("=", 1) for word in rest if "=" in word)
        options.update({word: "yes" for word in rest if word in ("fenced", "again")})
        try:
            return str(await getattr(self, what.replace("-", "_"))(options, *words))
        except ControlPlaneError as error:
            details = "".join(f" {name}={value}" for name, value in sorted(error.details.items()))
            return f"{type(error).__name__} {error.reason}{details}"

    async def _call(self, method: str, request: Any, options: dict[str, str]) -> Any:
        agent, header = options.get("as", "a1"), request.header
        header.reason = options.get("why", "")
        header.epoch = int(options.get("epoch", 0))
        if "fenced" in options:
            header.fence.CopyFrom(self._fences[agent])
        if "again" in options:
            header.request_id = self._last_id
        reply = await self.region.call(method, request, actor=identity(agent))
        self._last_id = header.request_id or self._last_id
        return reply

    # Workflows

    async def create(self, options: dict[str, str], name: str, state: str) -> str:
        reply = await self._call("CreateWorkflow", api.CreateWorkflowRequest(id=name, state=state.encode()), options)
        return f"version {reply.version} at revision {reply.header.revision}"

    async def swap(self, options: dict[str, str], name: str, version: str, state: str) -> str:
        request = api.CompareAndSwapWorkflowRequest(id=name, version=int(version), state=state.encode())
        reply = await self._call("CompareAndSwapWorkflow", request, options)
        return f"version {reply.version} at revision {reply.header.revision}"

    async def get(self, options: dict[str, str], name: str) -> str:
        request = api.GetWorkflowRequest(id=name, at_revision=int(options.get("at", 0)))
        view = (await self._call("GetWorkflow", request, options)).workflow
        return f"version {view.version} {view.workflow.state.decode()!r} by {agent_of(view.meta.actor)}"

    # Elections

    async def campaign(self, options: dict[str, str], name: str) -> str:
        agent = options.get("as", "a1")
        process = (agent + options.get("process", "")).encode().ljust(16, b".")
        request = api.CampaignRequest(name=name, process=process, ttl_ms=TTL_MS)
        reply = await self._call("Campaign", request, options)
        if reply.elected:
            self._fences[agent] = reply.holder.fence
        winner = agent_of(reply.holder.election.holder)
        return f"{'elected' if reply.elected else 'lost to'} {winner}, fence {reply.holder.fence.revision}"

    async def renew(self, options: dict[str, str], name: str) -> str:
        agent = options.get("as", "a1")
        request = api.RenewRequest(name=name, process=agent.encode().ljust(16, b"."), fence=self._fences[agent])
        return f"for {(await self._call('Renew', request, options)).ttl_ms} ms"

    async def resign(self, options: dict[str, str], name: str) -> str:
        agent = options.get("as", "a1")
        request = api.ResignRequest(name=name, process=agent.encode().ljust(16, b"."), fence=self._fences[agent])
        return "resigned" if (await self._call("Resign", request, options)).resigned else "was not the holder"

    async def holder(self, options: dict[str, str], name: str) -> str:
        reply = await self._call("GetElection", api.GetElectionRequest(name=name), options)
        if not reply.HasField("holder"):
            return "nobody"
        return f"{agent_of(reply.holder.election.holder)}, fence {reply.holder.fence.revision}"

    async def wait(self, options: dict[str, str], seconds: str) -> str:
        """Let time pass on the leader's clock."""
        end = self.region.now_s + float(seconds)
        while self.region.now_s < end - 1e-9:
            self.region.now_s = min(end, self.region.now_s + STEP_S)
            await until(lambda: self.loops._reaper._last_tick == self.region.now_s)
        await settle(50)
        return "done"

    # Switches

    async def kill(self, options: dict[str, str], scope: str) -> str:
        reply = await self._call("EngageSwitch", api.EngageSwitchRequest(scope=scope_of(scope)), options)
        return thrown(reply)

    async def release(self, options: dict[str, str], scope: str) -> str:
        return thrown(await self._call("ReleaseSwitch", api.ReleaseSwitchRequest(scope=scope_of(scope)), options))

    async def may(self, options: dict[str, str]) -> str:
        subject = {name: options[name] for name in ("tenant", "agent_type", "workflow") if name in options}
        tools = options["tools"].split(",") if "tools" in options else []
        request = api.CheckSwitchesRequest(subject=api.Subject(**subject, tools=tools))
        stopped = (await self._call("CheckSwitches", request, {})).stopped_by
        if not stopped:
            return "act"
        return "not: " + "; ".join(
            f"{word_of(each.switch.scope)}, {agent_of(each.switch.engaged_by)}: {each.switch.engaged_reason}"
            for each in stopped
        )

    # Flags

    async def set(self, options: dict[str, str], name: str, *variants: str) -> str:
        kind = FlagType.JSON if variants[0].startswith("[") else FlagType.STRING
        field = "json_value" if kind == FlagType.JSON else "string_value"
        flag = Flag(
            name=name,
            type=kind,
            enabled=options.get("state", "on") == "on",
            default_variant=options.get("default", variants[0]),
            variants=[Variant(name=text, value=FlagValue(**{field: text})) for text in variants],
        )
        request = api.SetFlagRequest(flag=flag, expected_revision=int(options.get("expect", 0)))
        meta = (await self._call("SetFlag", request, options)).meta
        return f"version {meta.version} at revision {meta.revision}"

    async def flag(self, options: dict[str, str], name: str) -> str:
        request = api.GetFlagRequest(name=name, at_revision=int(options.get("at", 0)))
        return shown((await self._call("GetFlag", request, options)).flag)

    async def restore(self, options: dict[str, str], name: str) -> str:
        request = api.RestoreFlagRequest(name=name, revision=int(options["to"]))
        return shown((await self._call("RestoreFlag", request, options)).flag)

    async def history(self, options: dict[str, str], name: str) -> str:
        reply = await self._call("GetFlagHistory", api.GetFlagHistoryRequest(name=name), options)
        return "\n".join(
            f"{view.meta.revision} {view.meta.action} by {agent_of(view.meta.actor)}"
            f" ({view.meta.reason or 'no reason'}): {shown(view)}"
            for view in reply.versions
        )

    async def config(self, options: dict[str, str]) -> str:
        reply = await self._call("GetAgentConfig", api.GetAgentConfigRequest(), options)
        lines = []
        for each in reply.fields:
            value: Any = getattr(reply.config, each.name)
            value = list(value) if not isinstance(value, str | int) else value
            lines.append(f"{each.name} = {value!r} ({api.ConfigReason.Name(each.reason)}, revision {each.revision})")
        return "\n".join(lines)

    # Everything

    async def events(self, options: dict[str, str], *kinds: str) -> str:
        request = api.ListEventsRequest(kinds=kinds, after_revision=int(options.get("after", 0)))
        return "\n".join(
            f"{change.meta.revision} {change.meta.action} {change.kind} {change.name} by {agent_of(change.meta.actor)}"
            + ("" if change.WhichOneof("value") else ", gone")
            for change in (await self._call("ListEvents", request, options)).changes
        )


def scope_of(text: str) -> Scope:
    word, _, name = text.partition(":")
    return Scope(kind=KINDS[word], name=name)


def word_of(scope: Scope) -> str:
    word = next(word for word, kind in KINDS.items() if kind == scope.kind)
    return f"{word}:{scope.name}" if scope.name else word


def thrown(reply: Message) -> str:
    view: api.SwitchView = reply.switch  # type: ignore[attr-defined]
    state = "engaged" if view.switch.engaged else "released"
    changed = "" if reply.changed else " already"  # type: ignore[attr-defined]
    return f"{state}{changed} at revision {view.meta.revision}" if view.meta.revision else "was never engaged"


def shown(view: api.FlagView) -> str:
    value = next(v.value for v in view.flag.variants if v.name == view.flag.default_variant)
    return f"{flags.value_of(value)!r} {'on' if view.flag.enabled else 'off'}"


def parts_of(text: str) -> list[tuple[str, str | None]]:
    """Paragraphs: commands with what is expected of them, and comments."""
    parts: list[tuple[str, str | None]] = []
    for block in text.strip("\n").split("\n\n"):
        command, dashes, expected = block.partition("\n----\n")
        parts.append((command, expected if dashes or not block.startswith("#") else None))
    return parts


async def played(parts: list[tuple[str, str | None]]) -> list[str]:
    happened = []
    stage = Stage()
    async with stage.region:
        stage.loops.start()
        await until(lambda: stage.loops._term is not None)
        for command, expected in parts:
            lines = [line for line in command.splitlines() if not line.startswith("#")]
            came = "\n".join([await stage.play(line) for line in lines])
            happened.append(command if expected is None else f"{command}\n----\n{came}")
        await stage.loops.stop()
    return happened


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "TICK_S", 0.0005)
    parts = parts_of(path.read_text("utf-8"))
    happened = asyncio.run(played(parts))
    if REWRITE:
        path.write_text("\n\n".join(happened) + "\n", "utf-8")
    assert happened == [command if expected is None else f"{command}\n----\n{expected}" for command, expected in parts]


def test_there_are_stories() -> None:
    assert len(list(FOLDER.glob("*.txt"))) >= 4
