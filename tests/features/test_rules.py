"""Rules that a model does not reach: pages, retention, schema ranges, configuration, what a switch covers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from controlplane import limits
from controlplane.errors import Compacted, NotFound, Refused
from controlplane.features import flags, switches
from controlplane.kernel import keys
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, FlagType, FlagValue, Scope, ScopeKind, Variant
from tests.node.harness import OTHER, PROCESS, Region, Scanned

NAMES = ["a", "a b", "aa", "ab", "a\u00ff", "b", "ba", "\u00e9", "\U0001f600"]


def flag(name: str, type_: FlagType = FlagType.STRING, **fields: Any) -> Flag:
    variants = fields.pop("variants", [Variant(name="v", value=FlagValue(string_value="s"))])
    return Flag(**{"name": name, "type": type_, "enabled": True, "variants": variants, **fields})


def scope(name: str = "acme", kind: ScopeKind = ScopeKind.SCOPE_TENANT) -> Scope:
    return Scope(kind=kind, name=name)


def engagement(of: Scope) -> api.EngageSwitchRequest:
    return api.EngageSwitchRequest(scope=of, header={"reason": "why"})


async def paged(region: Region, method: str, request: Any, rows: str, cursor: Any) -> tuple[list[Any], int]:
    """All rows, page after page, and the number of pages."""
    taken, pages = [], 0
    while True:
        reply = await region.call(method, request)
        taken += getattr(reply, rows)
        pages += 1
        if not reply.more:
            return taken, pages
        assert len(getattr(reply, rows)) <= (request.limit or limits.PAGE_DEFAULT)
        cursor(request, reply)


def after(field: str) -> Any:
    def move(request: Any, reply: Any) -> None:
        last = reply.ListFields()[1][1][-1]
        request.after = getattr(last, field).id if field == "workflow" else getattr(last, field).name

    return move


# Pages


@pytest.mark.parametrize("limit", [1, 2, 3, 8, 9, 10, 0])
@pytest.mark.parametrize("prefix", ["", "a", "a ", "zz", "\u00e9"])
async def test_lists_are_complete_without_duplicates_and_in_order(limit: int, prefix: str) -> None:
    async with Region() as region:
        for name in reversed(NAMES):
            await region.create(name)
            await region.call("SetFlag", api.SetFlagRequest(flag=flag(name)))
            await region.call("Campaign", api.CampaignRequest(name=name, process=PROCESS, ttl_ms=1000))
        wanted = sorted((name for name in NAMES if name.startswith(prefix)), key=str.encode)
        for method, kind, rows, field in (
            ("ListWorkflows", api.ListWorkflowsRequest, "workflows", "workflow"),
            ("ListFlags", api.ListFlagsRequest, "flags", "flag"),
            ("ListElections", api.ListElectionsRequest, "elections", "election"),
        ):
            request = kind(prefix=prefix, limit=limit)
            taken, pages = await paged(region, method, request, rows, after(field))
            names = [getattr(view, field).id if field == "workflow" else getattr(view, field).name for view in taken]
            assert names == wanted
            assert pages == max(1, -(-len(wanted) // (limit or limits.PAGE_DEFAULT)))


@pytest.mark.parametrize("limit", [1, 2, 5, 0])
async def test_switches_are_listed_in_pages(limit: int) -> None:
    def move(request: api.ListSwitchesRequest, reply: api.ListSwitchesReply) -> None:
        request.after = reply.next

    async with Region() as region:
        for name in NAMES:
            await region.call("EngageSwitch", engagement(scope(name)))
        release = api.ReleaseSwitchRequest(scope=scope("b"), header={"reason": "over"})
        await region.call("ReleaseSwitch", release)
        for engaged_only in (False, True):
            request = api.ListSwitchesRequest(limit=limit, engaged_only=engaged_only)
            taken, _ = await paged(region, "ListSwitches", request, "switches", move)
            wanted = sorted((name for name in NAMES if name != "b" or not engaged_only), key=str.encode)
            assert [view.switch.scope.name for view in taken] == wanted


async def test_a_page_of_engaged_switches_looks_at_so_many_and_says_where_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def move(request: api.ListSwitchesRequest, reply: api.ListSwitchesReply) -> None:
        assert store.rows <= 5
        store.rows = 0
        request.after = reply.next

    store, names = Scanned(), [f"t{n:02}" for n in range(20)]
    async with Region(store=store) as region:
        for name in names:
            await region.call("EngageSwitch", engagement(scope(name)))
        for name in set(names) - {"t02", "t03", "t15"}:
            await region.call("ReleaseSwitch", api.ReleaseSwitchRequest(scope=scope(name), header={"reason": "over"}))
        monkeypatch.setattr(limits, "SWITCHES_SCANNED_MAX", 4)
        store.rows = 0
        request = api.ListSwitchesRequest(engaged_only=True)
        taken, pages = await paged(region, "ListSwitches", request, "switches", move)
        assert [view.switch.scope.name for view in taken] == ["t02", "t03", "t15"]
        assert pages == 6


@pytest.mark.parametrize("limit", [1, 3, 0])
async def test_histories_are_read_in_pages(limit: int) -> None:
    def move(request: Any, reply: Any) -> None:
        request.before_revision = reply.versions[-1].meta.revision

    async with Region() as region:
        await region.create("w")
        await region.call("SetFlag", api.SetFlagRequest(flag=flag("f")))
        for n in range(1, 7):
            await region.swap("w", n)
            await region.call("SetFlag", api.SetFlagRequest(flag=flag("f")))
        for method, request in (
            ("GetWorkflowHistory", api.GetWorkflowHistoryRequest(id="w", limit=limit)),
            ("GetFlagHistory", api.GetFlagHistoryRequest(name="f", limit=limit)),
        ):
            taken, _ = await paged(region, method, request, "versions", move)
            assert [view.meta.version for view in taken] == [7, 6, 5, 4, 3, 2, 1]


async def test_a_page_of_large_records_ends_early_but_goes_on() -> None:
    async with Region() as region:
        for n in range(7):
            await region.create(f"w{n}", b"x" * 400_000)
        request = api.ListWorkflowsRequest()
        first = await region.call("ListWorkflows", request)
        assert first.ByteSize() < limits.MESSAGE_BYTES_MAX
        assert first.more
        taken, pages = await paged(region, "ListWorkflows", request, "workflows", after("workflow"))
        assert [view.workflow.id for view in taken] == [f"w{n}" for n in range(7)]
        assert pages == 4


# What is kept


async def test_a_workflow_keeps_at_least_a_hundred_versions_and_at_most_twice_as_many() -> None:
    async with Region() as region:
        revisions = [(await region.create("w")).header.revision]
        for n in range(1, 350):
            revisions.append((await region.swap("w", n, b"%d" % (n + 1))).header.revision)
            rows = len(list(region.store.scan(*keys.children(keys.HISTORY))))
            assert min(n + 1, limits.WORKFLOW_HISTORY_KEPT) <= rows <= 2 * limits.WORKFLOW_HISTORY_KEPT
        history = await region.call("GetWorkflowHistory", api.GetWorkflowHistoryRequest(id="w", limit=1000))
        versions = [view.version for view in history.versions]
        assert versions == list(range(350, 350 - len(versions), -1))
        assert len(versions) >= limits.WORKFLOW_HISTORY_KEPT
        for back in range(limits.WORKFLOW_HISTORY_KEPT):
            request = api.GetWorkflowRequest(id="w", at_revision=revisions[-1 - back])
            assert (await region.call("GetWorkflow", request)).workflow.version == 350 - back
        with pytest.raises(Compacted) as caught:
            await region.call("GetWorkflow", api.GetWorkflowRequest(id="w", at_revision=revisions[50]))
        assert caught.value.reason == "HISTORY_COMPACTED"
        oldest = int(caught.value.details["oldest"])
        assert revisions.index(oldest) == 350 - len(versions)
        there = await region.call("GetWorkflow", api.GetWorkflowRequest(id="w", at_revision=oldest))
        assert there.workflow.meta.revision == oldest


async def test_flags_and_switches_keep_everything_and_elections_nothing() -> None:
    async with Region() as region:
        for n in range(230):
            await region.call("SetFlag", api.SetFlagRequest(flag=flag("f", description=str(n))))
            kind = api.EngageSwitchRequest if n % 2 == 0 else api.ReleaseSwitchRequest
            method = "EngageSwitch" if n % 2 == 0 else "ReleaseSwitch"
            await region.call(method, kind(scope=scope(), header={"reason": str(n)}))
            await region.call("Campaign", api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000))
        kinds = [keys.decode(key[1:-8]).kind for key, _ in region.store.scan(*keys.children(keys.HISTORY))]
        assert (kinds.count("flag"), kinds.count("switch"), len(kinds)) == (230, 230, 460)
        first = await region.call("GetFlag", api.GetFlagRequest(name="f", at_revision=1))
        assert first.flag.flag.description == "0"


async def test_before_it_was_there_a_record_was_not_found() -> None:
    async with Region() as region:
        await region.create("v")
        await region.create("w")
        with pytest.raises(NotFound):
            await region.call("GetWorkflow", api.GetWorkflowRequest(id="w", at_revision=1))


async def test_the_number_of_elections_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ELECTIONS_MAX", 3)
    async with Region() as region:
        for n in range(3):
            await region.call("Campaign", api.CampaignRequest(name=f"e{n}", process=PROCESS, ttl_ms=1000))
        with pytest.raises(Refused) as caught:
            await region.call("Campaign", api.CampaignRequest(name="over", process=PROCESS, ttl_ms=1000))
        assert caught.value.reason == "ELECTIONS_FULL"
        again = api.CampaignRequest(name="e0", process=PROCESS, ttl_ms=1000)
        assert (await region.call("Campaign", again)).elected
        assert not (await region.call("Campaign", again, actor=OTHER)).elected


async def test_campaigning_does_not_look_at_every_election() -> None:
    store = Scanned()
    async with Region(store=store) as region:
        await asyncio.gather(
            *(
                region.call("Campaign", api.CampaignRequest(name=f"e{n}", process=PROCESS, ttl_ms=1000))
                for n in range(50)
            )
        )
        store.rows = 0
        for n in range(50, 60):
            await region.call("Campaign", api.CampaignRequest(name=f"e{n}", process=PROCESS, ttl_ms=1000))
        assert store.rows == 0


async def test_elections_that_ended_make_room_and_those_of_one_batch_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ELECTIONS_MAX", 3)

    async def campaign(region: Region, *names: str) -> list[Any]:
        asked = [api.CampaignRequest(name=name, process=PROCESS, ttl_ms=1000) for name in names]
        return await asyncio.gather(*(region.call("Campaign", each) for each in asked), return_exceptions=True)

    async with Region() as region:
        first, *others = await campaign(region, "a", "b", "c", "d", "e")
        assert [type(told) for told in others] == [api.CampaignReply, api.CampaignReply, Refused, Refused]
        await region.call("Resign", api.ResignRequest(name="a", process=PROCESS, fence=first.holder.fence))
        taken, refused = await campaign(region, "f", "g")
        assert taken.elected
        assert isinstance(refused, Refused)
        held = await region.call("ListElections", api.ListElectionsRequest())
        assert [view.election.name for view in held.elections] == ["b", "c", "f"]


# Schema ranges


@pytest.mark.parametrize(
    ("low", "high", "readable"), [(0, 0, True), (3, 3, True), (1, 5, True), (4, 9, False), (1, 2, False), (0, 2, False)]
)
async def test_a_reader_gets_no_state_that_it_does_not_understand(low: int, high: int, readable: bool) -> None:
    async with Region() as region:
        request = api.CreateWorkflowRequest(id="w", state=b"s", schema_version=3, code_version="v7")
        created = await region.call("CreateWorkflow", request)
        for at in (0, created.header.revision):
            asked = api.GetWorkflowRequest(id="w", at_revision=at, schema_min=low, schema_max=high)
            if readable:
                assert (await region.call("GetWorkflow", asked)).workflow.workflow.code_version == "v7"
                continue
            with pytest.raises(Refused) as caught:
                await region.call("GetWorkflow", asked)
            assert caught.value.reason == "SCHEMA_UNREADABLE"
            assert caught.value.details["schema_version"] == "3"
            assert caught.value.details["code_version"] == "v7"


# Configuration


def tools(text: str) -> list[Variant]:
    return [Variant(name="v", value=FlagValue(json_value=text))]


CONFIGURED = [
    ("absent", None, api.ConfigReason.DEFAULT, ["search", "calc"]),
    ("no default", flag("tools", FlagType.JSON, variants=tools('["a"]')), api.ConfigReason.DEFAULT, ["search", "calc"]),
    (
        "off",
        flag("tools", FlagType.JSON, variants=tools('["a"]'), default_variant="v", enabled=False),
        api.ConfigReason.DISABLED,
        ["search", "calc"],
    ),
    (
        "on",
        flag("tools", FlagType.JSON, variants=tools('["a", "b"]'), default_variant="v"),
        api.ConfigReason.STATIC,
        ["a", "b"],
    ),
    ("none", flag("tools", FlagType.JSON, variants=tools("[]"), default_variant="v"), api.ConfigReason.STATIC, []),
    (
        "an object",
        flag("tools", FlagType.JSON, variants=tools("{}"), default_variant="v"),
        api.ConfigReason.ERROR,
        ["search", "calc"],
    ),
    (
        "numbers",
        flag("tools", FlagType.JSON, variants=tools("[1]"), default_variant="v"),
        api.ConfigReason.ERROR,
        ["search", "calc"],
    ),
    ("a text", flag("tools", default_variant="v"), api.ConfigReason.ERROR, ["search", "calc"]),
]


@pytest.mark.parametrize(("record", "reason", "value"), [row[1:] for row in CONFIGURED], ids=[r[0] for r in CONFIGURED])
async def test_a_field_of_the_configuration_says_where_it_comes_from(
    record: Flag | None, reason: int, value: list[str]
) -> None:
    async with Region() as region:
        if record is not None:
            await region.call("SetFlag", api.SetFlagRequest(flag=record))
        reply = await region.call("GetAgentConfig", api.GetAgentConfigRequest(user="u", tenant="t"))
        assert list(reply.config.tools_enabled) == value
        fields = {each.name: each for each in reply.fields}
        assert fields["tools_enabled"].reason == reason
        assert fields["tools_enabled"].revision == (1 if record else 0)
        assert fields["tools_enabled"].variant == ("v" if reason == api.ConfigReason.STATIC else "")
        assert list(fields) == [each.field for each in flags.AGENT_CONFIG]
        assert reply.config.max_iterations == 10


@pytest.mark.parametrize(("value", "used"), [(7, 7), (0, 0), (-1, 10), (1 << 32, 10), ((1 << 32) - 1, (1 << 32) - 1)])
async def test_iterations_that_do_not_fit_are_an_error_and_the_default_stands(value: int, used: int) -> None:
    async with Region() as region:
        variants = [Variant(name="v", value=FlagValue(int_value=value))]
        record = flag("max_iter", FlagType.INT, variants=variants, default_variant="v")
        await region.call("SetFlag", api.SetFlagRequest(flag=record))
        reply = await region.call("GetAgentConfig", api.GetAgentConfigRequest())
        assert reply.config.max_iterations == used


async def test_a_flag_records_the_bucketing_that_its_evaluations_use() -> None:
    async with Region() as region:
        await region.call("SetFlag", api.SetFlagRequest(flag=flag("f", bucketing=1)))
        got = await region.call("GetFlag", api.GetFlagRequest(name="f"))
        assert got.flag.flag.bucketing == flags.BUCKETING


# Switches


SUBJECT = api.Subject(tenant="acme", agent_type="writer", workflow="w", tools=["search", "calc"])
COVERED = {
    "region:": scope("", ScopeKind.SCOPE_REGION),
    "environment:": scope("", ScopeKind.SCOPE_ENVIRONMENT),
    "tenant:acme": scope("acme"),
    "agent_type:writer": scope("writer", ScopeKind.SCOPE_AGENT_TYPE),
    "workflow:w": scope("w", ScopeKind.SCOPE_WORKFLOW),
    "tool:search": scope("search", ScopeKind.SCOPE_TOOL),
    "tool:calc": scope("calc", ScopeKind.SCOPE_TOOL),
}


@pytest.mark.parametrize("name", COVERED)
async def test_any_switch_that_covers_the_subject_stops_it_and_no_other(name: str) -> None:
    async with Region() as region:
        for of in (scope("other"), scope("writer"), scope("search", ScopeKind.SCOPE_WORKFLOW), scope("acme:")):
            await region.call("EngageSwitch", engagement(of))
        check = api.CheckSwitchesRequest(subject=SUBJECT)
        assert not (await region.call("CheckSwitches", check)).stopped_by
        await region.call("EngageSwitch", engagement(COVERED[name]))
        assert [view.switch.scope for view in (await region.call("CheckSwitches", check)).stopped_by] == [COVERED[name]]
        assert switches.stopping(SUBJECT, {name}.__contains__) == [name]
        if name != "region:":
            assert not (await region.call("CheckSwitches", check, environment="dev")).stopped_by


async def test_one_release_does_not_revive_what_another_switch_stops() -> None:
    async with Region() as region:
        for of in COVERED.values():
            await region.call("EngageSwitch", engagement(of))
        check = api.CheckSwitchesRequest(subject=SUBJECT)
        left = [
            switches.record_name(view.switch.scope) for view in (await region.call("CheckSwitches", check)).stopped_by
        ]
        assert left == list(COVERED)
        for name, of in COVERED.items():
            stopped = (await region.call("CheckSwitches", check)).stopped_by
            assert [switches.record_name(view.switch.scope) for view in stopped] == left
            await region.call("ReleaseSwitch", api.ReleaseSwitchRequest(scope=of, header={"reason": "over"}))
            left.remove(name)
        assert not (await region.call("CheckSwitches", check)).stopped_by


async def test_releasing_what_was_never_thrown_makes_no_record() -> None:
    async with Region() as region:
        release = api.ReleaseSwitchRequest(scope=scope(), header={"reason": "r"})
        reply = await region.call("ReleaseSwitch", release)
        assert (reply.changed, reply.switch.meta.revision) == (False, 0)
        assert not (await region.call("ListSwitches", api.ListSwitchesRequest())).switches


async def test_a_switch_remembers_who_engaged_it_through_the_release() -> None:
    async with Region() as region:
        first = await region.call("EngageSwitch", engagement(scope()))
        again = api.EngageSwitchRequest(scope=scope(), header={"reason": "another"})
        second = await region.call("EngageSwitch", again, actor=OTHER)
        assert not second.changed
        assert second.switch == first.switch
        release = api.ReleaseSwitchRequest(scope=scope(), header={"reason": "over"})
        released = (await region.call("ReleaseSwitch", release, actor=OTHER)).switch
        assert (released.switch.engaged, released.switch.engaged_by) == (False, first.switch.meta.actor)
        assert (released.switch.engaged_reason, released.meta.reason, released.meta.actor) == ("why", "over", OTHER)
