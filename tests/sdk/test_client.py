"""The asyncio client against the real server: calls, mirror, watches, retries that are the caller's."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from controlplane import sdk
from controlplane.sdk import (
    LOCAL,
    RAW,
    SCOPE_AGENT_TYPE,
    SCOPE_TENANT,
    SCOPE_TOOL,
    ConflictError,
    Denied,
    Invalid,
    MirrorStale,
    NotFound,
    Refused,
    Scope,
    Stopped,
    Subject,
    Unavailable,
    at_least,
)
from controlplane.testing import Plane
from controlplane.v1 import api_pb2 as api

from .scripted import eventually


async def test_a_workflow_from_its_creation_to_its_history(shared: Plane) -> None:
    async with shared.connect() as cp:
        await cp.create_workflow("life", b"one", code_version="c1")
        with pytest.raises(Refused) as refused:
            await cp.create_workflow("life", b"again")
        assert refused.value.reason == "WORKFLOW_EXISTS"
        first = (await cp.get_workflow("life")).workflow
        swapped = await cp.compare_and_swap("life", first.version, b"two", schema_version=2)
        assert swapped.version == first.version + 1
        with pytest.raises(Refused) as refused:
            await cp.compare_and_swap("life", first.version, b"three")
        assert refused.value.reason == "VERSION_MISMATCH"
        with pytest.raises(Refused) as refused:
            await cp.get_workflow("life", schema_range=(1, 1))
        assert refused.value.reason == "SCHEMA_UNREADABLE"
        past = await cp.get_workflow("life", at_revision=first.meta.revision)
        assert past.workflow.workflow.state == b"one"
        history = await cp.workflow_history("life")
        assert [view.workflow.state for view in history.versions] == [b"two", b"one"]
        assert [view.workflow.id for view in (await cp.list_workflows(prefix="lif")).workflows] == ["life"]
        local = await cp.get_workflow("life", consistency=at_least(swapped.header.revision))
        assert local.workflow.version == swapped.version


async def test_missing_things_are_not_found(shared: Plane) -> None:
    async with shared.connect() as cp:
        with pytest.raises(NotFound):
            await cp.get_workflow("nobody")
        with pytest.raises(NotFound):
            await cp.update_state_with_retry("nobody", lambda state: state)
        with pytest.raises(NotFound):
            await cp.get_flag("nobody")
        with pytest.raises(NotFound):
            await cp.get_workflow("w", partition="test.nowhere")


async def test_what_is_wrong_is_said_once(shared: Plane) -> None:
    async with shared.connect() as cp:
        with pytest.raises(Invalid):
            await cp.create_workflow("bad\nname", b"")
        with pytest.raises(Invalid):
            await cp.create_workflow("large", bytes(600 * 1024))
        with pytest.raises(Invalid):
            await cp.create_workflow("id", b"", request_id=b"short")
        with pytest.raises(Invalid):
            await cp.engage(Scope(kind=SCOPE_TOOL, name="t"))


async def test_a_request_id_names_one_request(shared: Plane) -> None:
    async with shared.connect() as cp:
        mine = bytes(range(16))
        since = cp.revision
        created = await cp.create_workflow("named", b"x", request_id=mine)
        outcome = await cp.get_outcome(mine, since=since)
        assert outcome.known == api.GetOutcomeReply.COMMITTED
        assert outcome.revision == created.header.revision


async def test_concurrent_updates_all_count(shared: Plane) -> None:
    async with shared.connect() as one, shared.connect() as other:
        await one.create_workflow("count", b'{"n":0}')

        async def add(cp: sdk.ControlPlane) -> None:
            for _ in range(20):
                await cp.update_state_with_retry("count", lambda state: {"n": state["n"] + 1}, max_retries=100)

        await asyncio.gather(add(one), add(one), add(other), add(other))
        assert json.loads((await one.get_workflow("count")).workflow.workflow.state) == {"n": 80}


async def test_update_retries_as_often_as_it_may(control_plane: Plane) -> None:
    async with control_plane.connect() as cp:
        await cp.create_workflow("w", b'{"n":0}', schema_version=3, code_version="c7")
        control_plane.conflict_next(4)
        assert await cp.update_state_with_retry("w", lambda state: {"n": state["n"] + 1}) == {"n": 1}
        stored = (await cp.get_workflow("w")).workflow.workflow
        assert (stored.schema_version, stored.code_version) == (3, "c7")
        calls = Counter[str]()

        async def count(state: dict[str, int]) -> dict[str, int]:
            calls["mutator"] += 1
            return state

        control_plane.conflict_next(5)
        with pytest.raises(ConflictError) as conflict:
            await cp.update_state_with_retry("w", count)
        assert (conflict.value.workflow_id, conflict.value.tries, calls["mutator"]) == ("w", 5, 5)
        control_plane.conflict_next(0)


async def test_update_of_plain_bytes(shared: Plane) -> None:
    async with shared.connect() as cp:
        await cp.create_workflow("raw", b"a")
        assert await cp.update_state_with_retry("raw", lambda state: state + b"b", codec=RAW) == b"ab"
        with pytest.raises(Invalid):
            await cp.update_state_with_retry("raw", lambda state: state, request_id=bytes(16), codec=RAW)


async def test_a_mutator_that_forgets_to_return_writes_nothing(shared: Plane) -> None:
    async with shared.connect() as cp:
        await cp.create_workflow("forgetful", b'{"n":1}')
        with pytest.raises(TypeError, match=r"workflow forgetful .* return the new state"):
            await cp.update_state_with_retry("forgetful", lambda state: state.update(n=2))
        stored = (await cp.get_workflow("forgetful")).workflow
        assert (stored.version, stored.workflow.state) == (1, b'{"n":1}')
        await cp.create_workflow("empty", b"null")
        assert await cp.update_state_with_retry("empty", lambda state: state) is None
        assert (await cp.get_workflow("empty")).workflow.version == 2


async def test_what_a_codec_cannot_say_is_not_written(shared: Plane) -> None:
    async with shared.connect() as cp:
        await cp.create_workflow("said", b"{}")
        with pytest.raises(ValueError, match="JSON compliant") as not_json:
            await cp.update_state_with_retry("said", lambda _: {"n": float("nan")})
        assert "workflow said" in not_json.value.__notes__[0]
        for wrong in (5, "text", [1, 2]):
            with pytest.raises(TypeError, match="RAW stores bytes"):
                await cp.update_state_with_retry("said", lambda _, wrong=wrong: wrong, codec=RAW)
        assert (await cp.get_workflow("said")).workflow.version == 1
        for plain in (bytearray(b"a"), memoryview(b"a")):
            assert await cp.update_state_with_retry("said", lambda _, plain=plain: plain, codec=RAW) == b"a"
        with pytest.raises(ValueError, match="state of workflow said"):
            await cp.update_state_with_retry("said", lambda state: state)


async def test_an_update_returns_what_was_stored(shared: Plane) -> None:
    async with shared.connect() as cp:
        await cp.create_workflow("same", b"{}")
        returned = await cp.update_state_with_retry("same", lambda _: {"pair": (1, 2), "of": {3: "three"}})
        assert returned == json.loads((await cp.get_workflow("same")).workflow.workflow.state)
        assert returned == {"pair": [1, 2], "of": {"3": "three"}}


async def test_the_mirror_is_complete_on_entry_and_follows(shared: Plane) -> None:
    shared.set_flag("agent_model", "before")
    async with shared.connect() as cp:
        assert cp.config("u", "t").model == "before"
        await cp.mirror_synced(shared_revision := await asyncio.to_thread(shared.set_flag, "agent_model", "after"))
        config = cp.config("u", "t")
        assert config.model == "after"
        assert config.fields["model"].revision == shared_revision
        served = await cp.get_agent_config("u", "t")
        assert served.config.model == config.model
        assert {field.name: field for field in served.fields} == dict(config.fields)


async def test_a_kill_reaches_every_agent(shared: Plane) -> None:
    scope = Scope(kind=SCOPE_AGENT_TYPE, name="planner")
    async with shared.connect() as cp:
        heard: list[bool] = []
        stop = cp.on_kill_change(lambda view: heard.append(view.switch.engaged))
        cp.ensure_alive(agent_type="planner")
        await cp.mirror_synced(await asyncio.to_thread(shared.kill, scope))
        with pytest.raises(Stopped) as stopped:
            cp.ensure_alive(agent_type="planner", tenant="acme")
        assert "agent_type:planner" in str(stopped.value)
        assert cp.check(Subject(agent_type="planner"))
        assert (await cp.check_switches(Subject(agent_type="planner"))).stopped_by
        cp.ensure_alive(agent_type="other")
        await cp.mirror_synced(await asyncio.to_thread(shared.revive, scope))
        cp.ensure_alive(agent_type="planner")
        await eventually(lambda: heard == [True, False])
        stop()


async def test_engaging_twice_is_once(shared: Plane) -> None:
    scope = Scope(kind=SCOPE_TENANT, name="twice")
    async with shared.connect() as cp:
        assert (await cp.engage(scope, reason="first")).changed
        again = await cp.engage(scope, reason="second")
        assert not again.changed
        assert again.switch.switch.engaged_reason == "first"
        listed = await cp.list_switches(engaged_only=True)
        assert scope in [view.switch.scope for view in listed.switches]
        await cp.release(scope, reason="over")


async def test_flags_keep_their_history(shared: Plane) -> None:
    first = await asyncio.to_thread(shared.set_flag, "kept", "one")
    await asyncio.to_thread(shared.set_flag, "kept", "two")
    async with shared.connect() as cp:
        restored = await cp.restore_flag("kept", first, reason="it was better")
        assert restored.flag.flag.variants[0].value.string_value == "one"
        history = await cp.flag_history("kept")
        assert [view.flag.variants[0].value.string_value for view in history.versions] == ["one", "two", "one"]
        assert history.versions[0].meta.reason == "it was better"
        flag = (await cp.get_flag("kept")).flag
        with pytest.raises(Refused):
            await cp.set_flag(flag.flag, expected_revision=first)
        assert "kept" in [view.flag.name for view in (await cp.list_flags()).flags]


async def test_permission_fails_closed_and_configuration_does_not(control_plane: Plane) -> None:
    async with control_plane.connect(mirror_age_max_ms=3_000) as cp:
        cp.ensure_alive()
        await asyncio.to_thread(control_plane.lose_leader)
        await asyncio.to_thread(control_plane.clock.advance, 3.5)
        with pytest.raises(MirrorStale):
            cp.ensure_alive()
        assert cp.config().stale
        await asyncio.to_thread(control_plane.regain_leader)
        await cp.mirror_synced()
        cp.ensure_alive()
        assert not cp.config().stale


async def test_a_client_without_a_mirror_says_so(shared: Plane) -> None:
    async with shared.connect(mirror=False) as cp:
        with pytest.raises(MirrorStale):
            cp.stopped()
        with pytest.raises(MirrorStale):
            cp.config()
        with pytest.raises(Invalid):
            await cp.mirror_synced()


async def test_a_watch_sees_everything_once_and_in_order(shared: Plane) -> None:
    async with shared.connect() as cp, shared.connect(mirror=False) as writer:
        start = cp.revision
        seen: list[tuple[str, int]] = []

        async def read() -> None:
            async for change in cp.watch(kinds=("workflow",), prefix="watched-", after_revision=start):
                seen.append((change.name, change.meta.revision))
                if len(seen) == 200:
                    return

        reading = asyncio.create_task(read())
        await asyncio.gather(*(writer.create_workflow(f"watched-{number}", b"") for number in range(200)))
        await writer.create_workflow("unwatched", b"")
        async with asyncio.timeout(10):
            await reading
        assert len({name for name, _ in seen}) == 200
        assert [revision for _, revision in seen] == sorted({revision for _, revision in seen})


async def test_a_slow_reader_misses_nothing(shared: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.sdk.watching.READY_MAX", 5)
    async with shared.connect() as cp, shared.connect(mirror=False) as writer:
        changes = cp.watch(kinds=("workflow",), prefix="slow-", after_revision=cp.revision)
        await asyncio.gather(*(writer.create_workflow(f"slow-{number}", b"") for number in range(3)))
        names = [(await anext(changes)).name]
        for number in range(3, 60):
            await writer.create_workflow(f"slow-{number}", b"")
        async with asyncio.timeout(10):
            while len(names) < 60:
                names.append((await anext(changes)).name)
        assert sorted(names) == sorted(f"slow-{number}" for number in range(60))


async def test_a_watch_may_begin_with_what_is_there(shared: Plane) -> None:
    async with shared.connect() as cp:
        for number in range(3):
            await cp.create_workflow(f"there-{number}", b"")
        changes = cp.watch(kinds=("workflow",), prefix="there-", snapshot=True)
        async with asyncio.timeout(5):
            listed = {(await anext(changes)).name for _ in range(3)}
            assert listed == {"there-0", "there-1", "there-2"}
            await cp.create_workflow("there-3", b"")
            assert (await anext(changes)).name == "there-3"


async def test_a_wrong_watch_raises(shared: Plane) -> None:
    async with shared.connect() as cp:
        with pytest.raises(Invalid):
            await anext(cp.watch(kinds=("nonsense",)))
        with pytest.raises(NotFound):
            await anext(cp.watch(partition="test.nowhere"))


async def test_the_region_and_its_status(shared: Plane) -> None:
    async with shared.connect() as cp:
        region = (await cp.get_region()).region
        assert (region.name, region.leader) == ("test", "test-1")
        assert (await anext(cp.watch_region())).leader == "test-1"
        status = await cp.get_status()
        assert (status.node, status.role, len(status.hash)) == ("test-1", "leader", 64)
        await cp.create_workflow("event", b"", reason="because")
        events = await cp.list_events(kinds=("workflow",), limit=1000)
        assert "because" in {change.meta.reason for change in events.changes}


async def test_without_a_leader_calls_wait_and_local_reads_do_not(control_plane: Plane) -> None:
    async with control_plane.connect() as cp:
        await cp.create_workflow("w", b"1")
        await asyncio.to_thread(control_plane.lose_leader)
        write = asyncio.create_task(cp.compare_and_swap("w", 1, b"2"))
        assert (await cp.get_workflow("w", consistency=LOCAL)).workflow.version == 1
        with pytest.raises(Unavailable):
            await cp.get_workflow("w", timeout_s=0.2)
        assert not write.done()
        await asyncio.to_thread(control_plane.regain_leader)
        assert (await write).version == 2


async def test_a_fence_must_be_live(shared: Plane) -> None:
    async with shared.connect() as cp:
        await cp.create_workflow("fenced", b"")
        async with cp.election("fence").campaign() as lease:
            await cp.compare_and_swap("fenced", 1, b"mine", fence=lease.fence)
        with pytest.raises(Refused) as refused:
            await cp.compare_and_swap("fenced", 2, b"late", fence=lease.fence)
        assert refused.value.reason == "FENCE_STALE"


def test_denied_is_one_of_the_eight() -> None:
    assert issubclass(Denied, sdk.ControlPlaneError)


async def test_a_call_made_again_under_its_request_id_is_answered_as_before(shared: Plane) -> None:
    async with shared.connect() as cp:
        request_id = b"a" * 16
        first = await cp.create_workflow("again", b"one", request_id=request_id)
        await cp.create_workflow("something else", b"seen meanwhile")
        assert await cp.create_workflow("again", b"one", request_id=request_id) == first
        outcome = await cp.get_outcome(request_id)
        assert outcome.known == api.GetOutcomeReply.COMMITTED
    async with shared.connect() as another:
        assert (await another.create_workflow("again", b"one", request_id=request_id, since=0)).version == 1
        with pytest.raises(Invalid) as raised:
            await another.create_workflow("again", b"two", request_id=request_id, since=0)
        assert raised.value.reason == "REQUEST_ID_REUSED"


async def test_an_option_that_is_misspelt_is_not_left_out(shared: Plane) -> None:
    async with shared.connect() as cp:
        dead = api.Fence(election="nobody", epoch=1, revision=1)
        with pytest.raises(TypeError, match=r"'fencing'.*fence"):
            await cp.create_workflow("unfenced", b"", fencing=dead)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="'fence'"):
            await cp.get_workflow("unfenced", fence=dead)  # type: ignore[call-arg]
        with pytest.raises(NotFound):
            await cp.get_workflow("unfenced")


async def test_what_is_too_large_harms_nobody_else(shared: Plane) -> None:
    async with shared.connect() as cp:
        for size in (600_000, 2_000_000, 5_000_000):
            with pytest.raises(Invalid) as raised:
                await cp.create_workflow("large", bytes(size))
            assert raised.value.reason == ("VALUE_TOO_LARGE" if size < 1_000_000 else "REQUEST_TOO_LARGE")
        for size in (2_000_000, 5_000_000):
            with pytest.raises(Invalid) as raised:
                await anext(cp.watch(prefix="x" * size))
            assert raised.value.reason == "REQUEST_TOO_LARGE"
        await cp.create_workflow("small", b"")


async def test_tools_are_names_in_any_collection_but_not_one_name(shared: Plane) -> None:
    async with shared.connect() as cp:
        for _ in range(2):
            for one in ("search", b"search"):
                with pytest.raises(TypeError, match="collection"):
                    cp.ensure_alive(tools=one)  # type: ignore[arg-type]
            reply = await cp.engage(Scope(kind=SCOPE_TOOL, name="search"), reason="test")
            await cp.mirror_synced(reply.header.revision)
        for tools in (("search",), ["search"], {"search"}, {"search": 1}):
            with pytest.raises(Stopped):
                cp.ensure_alive(tools=tools)
        reply = await cp.release(Scope(kind=SCOPE_TOOL, name="search"), reason="test")
        await cp.mirror_synced(reply.header.revision)
        cp.ensure_alive(tools=["search"])


async def test_mistakes_in_connecting_are_told_at_once(shared: Plane) -> None:
    for addresses, options, reason in (
        ("http://127.0.0.1:7000", {}, "ADDRESS_MALFORMED"),
        (shared.address, {"mirror_age_max_ms": 0}, "MIRROR_AGE_BAD"),
    ):
        with pytest.raises(Invalid) as raised:
            sdk.ControlPlane.connect(addresses, insecure=True, **options)
        assert raised.value.reason == reason
    unentered = shared.connect()
    with pytest.raises(RuntimeError, match="async with"):
        await unentered.get_region()
    with pytest.raises(RuntimeError, match="async with"):
        await anext(unentered.watch())
