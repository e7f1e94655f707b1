"""The mirror's rules, without clocks or connections: what it holds, how old it may be, what it permits."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from timeit import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.sdk import MirrorStale
from controlplane.sdk.mirror import KINDS, MARKS_MAX, STOPS, Mirror
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records

AGE_MAX_S = 5.0
W = api.WatchReply


def model_flag(value: str, *, revision: int, name: str = "agent_model") -> api.Change:
    variant = records.Variant(name="v", value=records.FlagValue(string_value=value))
    flag = records.Flag(name=name, type=records.STRING, enabled=True, variants=[variant], default_variant="v")
    return api.Change(kind="flag", name=name, meta=api.Meta(revision=revision), flag=flag)


def gone(name: str, *, revision: int) -> api.Change:
    return api.Change(kind="flag", name=name, meta=api.Meta(revision=revision))


def switch(tenant: str, *, engaged: bool, revision: int) -> api.Change:
    scope = records.Scope(kind=records.SCOPE_TENANT, name=tenant)
    value = records.Switch(scope=scope, engaged=engaged, engaged_by="op", engaged_reason="why")
    return api.Change(kind="switch", name=f"tenant:{tenant}", meta=api.Meta(revision=revision), switch=value)


def fed(mirror: Mirror, message: api.WatchReply) -> list[api.SwitchView]:
    """Feed the region's own part; the watch of other regions' stops comes as far and sees nothing."""
    told = mirror.feed(KINDS, message)
    if message.kind in (W.CHANGES, W.PROGRESS):
        mirror.feed(STOPS, W(kind=W.PROGRESS, revision=message.revision))
    return told


def listed(mirror: Mirror, revision: int, *changes: api.Change) -> None:
    for part in (KINDS, STOPS):
        mirror.feed(part, W(kind=W.STARTED, revision=revision))
        for change in changes:
            mirror.feed(part, W(kind=W.SNAPSHOT, revision=revision, changes=[change]))
        mirror.feed(part, W(kind=W.SYNCED, revision=revision))


def changed(revision: int, *changes: api.Change) -> api.WatchReply:
    return W(kind=W.CHANGES, revision=revision, changes=changes)


def fresh(*changes: api.Change, revision: int = 10) -> Mirror:
    mirror = Mirror(AGE_MAX_S)
    listed(mirror, revision, *changes)
    mirror.mark(0.0, revision, 0)
    return mirror


def test_permits_nothing_before_it_is_complete() -> None:
    mirror = Mirror(AGE_MAX_S)
    assert mirror.age_s(0.0) == inf
    with pytest.raises(MirrorStale):
        mirror.stopped(0.0)
    with pytest.raises(MirrorStale):
        mirror.config(0.0, "u", "t")


def test_a_listing_alone_is_not_fresh() -> None:
    mirror = Mirror(AGE_MAX_S)
    listed(mirror, 10)
    with pytest.raises(MirrorStale):
        mirror.stopped(0.0)
    assert mirror.config(0.0, "u", "t").stale


def test_permits_until_its_bound_and_not_longer() -> None:
    mirror = fresh()
    assert mirror.stopped(AGE_MAX_S) == ()
    with pytest.raises(MirrorStale) as caught:
        mirror.stopped(AGE_MAX_S + 0.001)
    assert caught.value.age_s > AGE_MAX_S


def test_the_age_of_the_answer_counts() -> None:
    mirror = fresh()
    mirror.mark(10.0, 10, 3000)
    assert mirror.age_s(10.0) == pytest.approx(3.0)


def test_a_mark_waits_until_the_mirror_has_caught_up() -> None:
    mirror = fresh()
    mirror.mark(4.0, 12, 0)
    assert mirror.age_s(4.0) == 4.0
    fed(mirror, W(kind=W.PROGRESS, revision=11))
    assert mirror.age_s(4.0) == 4.0
    fed(mirror, W(kind=W.PROGRESS, revision=12))
    assert mirror.age_s(4.0) == 0.0


def test_waiting_marks_are_bounded_and_the_newest_is_kept() -> None:
    mirror = fresh()
    for number in range(10 * MARKS_MAX):
        mirror.mark(float(number), 11 + number, 0)
    fed(mirror, W(kind=W.PROGRESS, revision=10**6))
    assert mirror.age_s(10.0 * MARKS_MAX - 1) == 0.0


def test_an_engaged_switch_stops_whom_it_covers() -> None:
    mirror = fresh(switch("acme", engaged=True, revision=3))
    assert [view.switch.scope.name for view in mirror.stopped(0.0, "acme")] == ["acme"]
    assert mirror.stopped(0.0, "other") == ()
    told = fed(mirror, changed(11, switch("acme", engaged=False, revision=11)))
    assert [view.switch.engaged for view in told] == [False]
    assert mirror.stopped(0.0, "acme") == ()


def test_every_kind_of_scope_covers() -> None:
    for kind, name, subject in [
        (records.SCOPE_REGION, "", ("", "", "", ())),
        (records.SCOPE_ENVIRONMENT, "", ("", "", "", ())),
        (records.SCOPE_TENANT, "x", ("x", "", "", ())),
        (records.SCOPE_AGENT_TYPE, "x", ("", "x", "", ())),
        (records.SCOPE_WORKFLOW, "x", ("", "", "x", ())),
        (records.SCOPE_TOOL, "x", ("", "", "", ("y", "x"))),
    ]:
        word = records.ScopeKind.Name(kind).removeprefix("SCOPE_").lower()
        value = records.Switch(scope=records.Scope(kind=kind, name=name), engaged=True)
        mirror = fresh(api.Change(kind="switch", name=f"{word}:{name}", switch=value))
        assert len(mirror.stopped(0.0, *subject)) == 1, word
        if name:
            assert mirror.stopped(0.0, "z", "z", "z", ("z",)) == (), word


def test_configuration_says_where_it_comes_from() -> None:
    mirror = fresh(model_flag("gpt", revision=4))
    config = mirror.config(0.0, "u", "t")
    assert (config.model, config.prompt_version, config.max_iterations) == ("gpt", "v3", 10)
    assert config.fields["model"].revision == 4
    assert config.fields["model"].reason == api.STATIC
    assert config.fields["prompt_version"].reason == api.DEFAULT
    assert config.revision == 10
    assert not config.stale


def test_configuration_is_the_last_known_good() -> None:
    mirror = fresh(model_flag("gpt", revision=4))
    stale = mirror.config(100.0, "u", "t")
    assert stale.stale
    assert stale.model == "gpt"
    assert not mirror.config(0.0, "u", "t").stale


def test_configuration_follows_changes_and_deletions() -> None:
    mirror = fresh(model_flag("gpt", revision=4))
    mirror.config(0.0, "u", "t")
    fed(mirror, changed(11, model_flag("other", revision=11)))
    assert mirror.config(0.0, "u", "t").model == "other"
    fed(mirror, changed(12, gone("agent_model", revision=12)))
    assert mirror.config(0.0, "u", "t").fields["model"].reason == api.DEFAULT
    assert mirror.flag("agent_model") is None


def test_the_same_message_twice_changes_nothing() -> None:
    mirror = fresh()
    engage = changed(11, switch("acme", engaged=True, revision=11))
    release = changed(12, switch("acme", engaged=False, revision=12))
    for message in (engage, release, engage):
        fed(mirror, message)
    assert mirror.stopped(0.0, "acme") == ()


def test_a_listing_that_broke_off_leaves_no_trace() -> None:
    mirror = fresh(switch("acme", engaged=True, revision=3))
    fed(mirror, W(kind=W.SNAPSHOT, revision=20, changes=[model_flag("half", revision=15)]))
    assert mirror.stopped(0.0, "acme")
    mirror.restart(KINDS, listing=True)
    listed(mirror, 21, model_flag("whole", revision=16, name="other"))
    assert mirror.flag("agent_model") is None
    assert mirror.stopped(0.0, "acme") == ()


def test_nothing_is_known_until_a_listing_is_complete() -> None:
    mirror = fresh()
    mirror.restart(KINDS, listing=True)
    mirror.mark(4.0, 20, 0)
    for message in (W(kind=W.STARTED, revision=20), W(kind=W.SNAPSHOT, revision=20), W(kind=W.PROGRESS, revision=20)):
        fed(mirror, message)
        assert mirror.revision == 10
        assert mirror.age_s(4.0) == 4.0
    fed(mirror, W(kind=W.SYNCED, revision=20))
    assert mirror.age_s(4.0) == 0.0


def test_a_node_that_is_behind_takes_nothing_back() -> None:
    mirror = fresh(switch("acme", engaged=True, revision=9))
    mirror.restart(KINDS, listing=True)
    listed(mirror, 5)
    assert mirror.revision == 10
    assert mirror.stopped(0.0, "acme")


def test_parts_that_lie_apart_are_as_new_as_the_older_one() -> None:
    mirror = Mirror(AGE_MAX_S)
    only_flags, only_switches = mirror.split()
    assert set(mirror.parts) == {("flag",), ("switch", "exception"), STOPS}
    mirror.feed(STOPS, W(kind=W.SYNCED, revision=20))
    mirror.mark(0.0, 5, 0)
    mirror.feed(only_flags, W(kind=W.SNAPSHOT, revision=9, changes=[model_flag("gpt", revision=4)]))
    mirror.feed(only_flags, W(kind=W.SYNCED, revision=9))
    assert not mirror.synced
    with pytest.raises(MirrorStale):
        mirror.stopped(0.0)
    mirror.feed(only_switches, W(kind=W.SNAPSHOT, changes=[switch("acme", engaged=True, revision=3)]))
    mirror.feed(only_switches, W(kind=W.SYNCED, revision=7))
    assert (mirror.revision, mirror.age_s(0.0)) == (7, 0.0)
    assert mirror.stopped(0.0, "acme")
    assert mirror.config(0.0, "u", "t").model == "gpt"
    mirror.restart(only_switches, listing=True)
    mirror.feed(only_switches, W(kind=W.SYNCED, revision=8))
    assert mirror.stopped(0.0, "acme") == ()
    assert mirror.config(0.0, "u", "t").model == "gpt"
    assert (mirror.resume_at(only_flags), mirror.resume_at(only_switches)) == (9, 8)


def test_a_check_costs_about_a_microsecond() -> None:
    """An order of magnitude above the aim, so that it fails for a wrong design and not for a busy machine."""
    mirror = fresh(switch("acme", engaged=True, revision=3), model_flag("gpt", revision=4))
    assert min(repeat(lambda: mirror.stopped(0.0, "acme", "planner", "w", ("t",)), number=1000)) / 1000 < 10e-6
    assert min(repeat(lambda: mirror.config(0.0, "u", "t"), number=1000)) / 1000 < 10e-6


@dataclass
class Region:
    """A log with the time of each commit, and a client's view of it: a model with no code in common with the mirror."""

    engaged: list[dict[str, bool]] = field(default_factory=lambda: [{}])
    committed_s: list[float] = field(default_factory=lambda: [0.0])

    def commit(self, now: float, tenant: str, engaged: bool) -> None:
        self.engaged.append({**self.engaged[-1], tenant: engaged})
        self.committed_s.append(now)

    def change(self, revision: int) -> api.Change:
        before, after = self.engaged[revision - 1], self.engaged[revision]
        (tenant,) = [name for name in after if after[name] != before.get(name)] or [next(iter(after))]
        return switch(tenant, engaged=after[tenant], revision=revision)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.sampled_from("abc"), st.booleans()),
        st.tuples(st.just("deliver"), st.integers(1, 3), st.just(False)),
        st.tuples(st.just("ask"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("restart"), st.integers(0, 2), st.booleans()),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_never_claims_to_be_fresher_than_it_is(steps: list[tuple[str, str | int, bool]]) -> None:
    """Whatever is committed, delivered, asked and broken off: what was committed before `now - age` is there."""
    region, mirror, now = Region(), Mirror(AGE_MAX_S), 0.0
    listed(mirror, 0)
    cursor = 0
    for what, first, second in steps:
        now += 0.1
        if what == "commit" and region.engaged[-1].get(str(first)) != second:
            region.commit(now, str(first), second)
        elif what == "deliver":
            for revision in range(cursor + 1, min(cursor + int(first), len(region.engaged) - 1) + 1):
                fed(mirror, changed(revision, region.change(revision)))
                cursor = revision
        elif what == "ask":
            _ask(region, mirror, now, lag=int(first))
        elif what == "restart":
            cursor = _restart(region, mirror, cursor, lag=int(first), listing=second)
        _check(region, mirror, now + 0.05)


def _ask(region: Region, mirror: Mirror, now: float, *, lag: int) -> None:
    """A node that lags by some revisions answers, honestly, how old its state is."""
    revision = max(0, len(region.engaged) - 1 - lag)
    missing = region.committed_s[revision + 1 :]
    age_ms = int((now - missing[0]) * 1000) + 2 if missing else 0
    mirror.mark(now, revision, age_ms)


def _restart(region: Region, mirror: Mirror, cursor: int, *, lag: int, listing: bool) -> int:
    """The watch broke; it goes on, or lists again at a node that may lag."""
    mirror.restart(KINDS, listing=listing)
    if not listing:
        return mirror.revision
    revision = max(0, len(region.engaged) - 1 - lag)
    listed(mirror, revision, *(switch(t, engaged=e, revision=revision) for t, e in region.engaged[revision].items()))
    return revision


def _check(region: Region, mirror: Mirror, now: float) -> None:
    horizon = now - mirror.age_s(now)
    due = sum(committed <= horizon for committed in region.committed_s) - 1
    assert mirror.revision >= due
    engaged = {view.switch.scope.name for view in mirror.engaged()}
    assert engaged == {tenant for tenant, on in region.engaged[mirror.revision].items() if on}


def test_a_region_that_was_started_over_is_listed_again_before_anything_is_permitted() -> None:
    mirror = fresh(model_flag("old", revision=10), revision=50)
    assert mirror.stopped(1.0) == ()
    # What waits for a revision of before waits for nothing any more, and is in nobody's way.
    mirror.mark(1.5, 60, 0)
    mirror.start_over()
    mirror.mark(2.0, 3, 0)
    with pytest.raises(MirrorStale):
        mirror.stopped(2.0)
    config = mirror.config(2.0, "user", "tenant")
    assert (config.model, config.stale) == ("old", True)
    # Less than before, and all that there is.
    listed(mirror, 3, switch("acme", engaged=True, revision=2))
    assert mirror.revision == 3
    assert len(mirror.stopped(2.0, "acme")) == 1
    assert mirror.config(2.0, "user", "tenant").model != "old"
