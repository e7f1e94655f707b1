"""`cpctl status`, `cpctl region ...`, `cpctl member ...`: who leads, and how the nodes are."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from controlplane import limits, sdk
from controlplane.cli import shapes
from controlplane.cli.command import (
    EXIT_UNHEALTHY,
    Command,
    Cpctl,
    Group,
    card,
    finish,
    listing,
    paged,
    pass_cpctl,
    reads,
    run,
    table,
    writes,
)
from controlplane.cli.shapes import Shape

_MEMBER_TIMEOUT_S = 3.0


@click.command("status", cls=Command)
@click.option("--of", "region", default="", help="What another region shows of itself, by way of the one at hand.")
@click.option("--fleet", is_flag=True, help="The same of every region: this one and its peers.")
@reads
@run
async def status(
    cpctl: Cpctl, plane: sdk.ControlPlane, /, *, region: str, fleet: bool, options: sdk.ReadOptions
) -> None:
    """The region as the node at hand sees it; or, redacted, other regions.

    With --of or --fleet the exit code is 11 if one of them is not well, or cannot be asked.
    """
    options.setdefault("consistency", sdk.LOCAL)
    if region and fleet:
        raise click.UsageError("--of and --fleet exclude each other")
    if not region and not fleet:
        cpctl.show(shapes.status(await plane.get_status(**options)), _status)
        return
    if region:
        found = [shapes.outline(await plane.get_outline(region, **options), region)]
    else:
        own = await plane.get_status(**options)
        names = [own.region.name, *(link.region for link in own.links)]
        found = list(await asyncio.gather(*(_outlined(plane, name, options) for name in names)))
    cpctl.show(found[0] if region else {"regions": found}, lambda _: _outlines(found))
    if cpctl.watch_every_s is None and not all(each["outline"] and each["outline"]["healthy"] for each in found):
        sys.exit(EXIT_UNHEALTHY)


async def _outlined(plane: sdk.ControlPlane, name: str, options: sdk.ReadOptions) -> Shape:
    try:
        return shapes.outline(await plane.get_outline(name, **options), name)
    except sdk.Denied as denied:
        return shapes.no_outline(name, denied)


def _outlines(found: Sequence[Shape]) -> RenderableType:
    cards = [each for one in found for each in (_outline(one), Text())]
    return Stack(*cards[:-1])


def _outline(document: Shape) -> RenderableType:
    """One region; what is known of it here stands below what it says itself."""
    told, link = document["outline"], document["link"]
    if document["error"]:
        return card(region=document["region"], health=Text(document["error"]["message"], style="red"))
    if told is None:
        why = f"{document['region']} cannot be asked ({document['unreachable']}); this is what is known of it here"
        return card(region=document["region"], health=Text(why, style="red"), **_known(link, None))
    health = "well" if told["healthy"] else "not all nodes are up" if told["quorum"] else "no majority of nodes is up"
    return card(
        region=f"{told['region']} ({told['jurisdiction']})",
        health=Text(health, style="green" if told["healthy"] else "red"),
        leader=f"{told['leader'] or 'none'}, for {told['leader_age_ms'] / 1000:.0f} s",
        nodes=", ".join(map(_outlined_node, told["nodes"])),
        revision=f"{told['revision']}, at most {_age(told['age_ms'])} old",
        links=", ".join(map(_outlined_link, told["links"])) + (" (isolated)" if told["isolated"] else ""),
        kill_switches=_outlined_switches(told),
        **(_known(link, told["revision"]) if link else {}),
    )


def _outlined_node(node: Shape) -> str:
    behind = f", {node['behind']} behind" if node["behind"] else ""
    return f"{node['name']} ({'up' if node['up'] else 'down'}{behind})"


def _outlined_link(link: Shape) -> str:
    ages = "; ".join(f"{each['reach']} {_age(each['age_ms'])} old" for each in link["copies"])
    return f"{link['region']} ({link['state']}{'; ' + ages if ages else ''})"


def _outlined_switches(told: Shape) -> str:
    if told["stop_ids"] is None:
        return "not told here"
    ids = ", ".join(told["stop_ids"])
    return f"{told['switches_engaged']} engaged{': ' + ids if ids else ''}"


def _known(link: Shape, revision: int | None) -> dict[str, Any]:
    """How the region at hand stands with another one."""
    lags = [
        f"{view['reach']} {_age(view['age_ms'])} old"
        + ("" if revision is None else f", {max(0, revision - view['revision'])} revisions behind")
        for view in link["views"]
    ]
    return {"link_from_here": _link_cell(link), "copies_here": "; ".join(lags) or "none"}


def _age(age_ms: int | None) -> str:
    return "an unknown time" if age_ms is None else f"{age_ms / 1000:.1f} s"


def _status(document: Shape) -> RenderableType:
    used = f"{_mb(document['live_bytes'])} of {_mb(document['quota_bytes'])}"
    about = card(
        region=f"{document['fleet']} / {document['region']} ({document['jurisdiction']})",
        leader=Text(document["leader"] or "none", style="green" if document["leader"] else "red"),
        term=document["term"],
        node=f"{document['node']} ({document['role']}), version {document['version']}",
        revision=document["served"]["revision"],
        commit=f"{document['commit']}, applied {document['applied']}, last {document['last']}",
        records=f"{document['records']} ({used}, {_mb(document['disk_free_bytes'])} free on disk)",
        watchers=document["watchers"],
        hash=document["hash"],
        **_isolation(document),
        **_erasing(document["erasures"]),
    )
    members = table(
        document["members"],
        member=lambda each: each["name"],
        address=lambda each: each["address"],
        connected=lambda each: each["connected"],
        match=lambda each: each["match"] or "",
        heard_ms=lambda each: each["heard_ms"],
        state=lambda each: each["state"],
    )
    if not document["links"]:
        return Stack(about, Text(), members)
    return Stack(about, Text(), members, Text(), _links(document["links"]))


def _isolation(document: Shape) -> dict[str, Text]:
    """Said only when it is so: this region hears of no other, and goes on alone."""
    if not document["isolated"]:
        return {}
    return {"isolated": Text("no other region can be reached; this one goes on with its own work", style="yellow")}


def _erasing(erasures: Shape) -> dict[str, Text]:
    """Said only while there is something that this node has not erased from its disk."""
    if not erasures["pending"] and erasures["scrubbed"] >= erasures["due"]:
        return {}
    return {"erasing": Text("cpctl partition erase --status shows which nodes are done", style="yellow")}


def _links(links: list[Shape]) -> RenderableType:
    """One row for each copy, and for each region that none is held of."""
    rows = [{**link, "view": view} for link in links for view in link["views"] or [None]]
    return table(
        rows,
        region=lambda row: row["region"],
        jurisdiction=lambda row: row["jurisdiction"],
        link=_link_cell,
        shows=lambda row: ", ".join(row["exported"]) or "nothing",
        copy=lambda row: row["view"]["reach"] if row["view"] else "none",
        revision=lambda row: row["view"]["revision"] if row["view"] else "",
        age_ms=_age_cell,
    )


def _link_cell(row: Shape) -> Text:
    style = {"up": "green", "down": "yellow"}.get(row["state"], "red")
    return Text(f"{row['state']}: {row['reason']}" if row["reason"] else row["state"], style=style)


def _age_cell(row: Shape) -> Text | str | int:
    view = row["view"]
    if view is None:
        return ""
    age = "not known" if view["age_ms"] is None else str(view["age_ms"])
    return Text(f"{age}, being copied" if view["listing"] else age)


def _mb(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


@click.group("region", cls=Group)
def region() -> None:
    """Who leads; watch it; move it."""


@region.command("leader")
@reads
@run
async def leader(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, options: sdk.ReadOptions) -> None:
    """Who leads the region, and in which term."""
    options.setdefault("consistency", sdk.LOCAL)
    cpctl.show(shapes.region((await plane.get_region(**options)).region), _leader)


def _leader(document: Shape) -> RenderableType:
    return card(
        leader=Text(document["leader"] or "none", style="green" if document["leader"] else "red"),
        address=document["leader_address"],
        term=document["term"],
        since=f"{document['leader_age_ms'] / 1000:.1f} s",
    )


@region.command("watch")
@run
async def watch(cpctl: Cpctl, plane: sdk.ControlPlane, /) -> None:
    """Every change of leader, as it happens."""
    before: tuple[str, int] | None = None
    async for change in plane.watch_region():
        # A client that comes to another node is told again what it knows.
        if before == (before := (change.leader, change.term)):
            continue
        cpctl.show(
            shapes.region(change),
            lambda seen: (
                f"{seen['region']}  leader {seen['leader'] or '-'}  term {seen['term']}  {seen['leader_address'] or ''}"
            ),
        )


@region.command("transfer")
@click.argument("node", default="")
@writes
@run
async def transfer(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, node: str, options: sdk.WriteOptions) -> None:
    """Move leadership to NODE, or to whoever is most advanced."""
    reply = await plane.transfer_region(node, **options)
    cpctl.done({"leader": reply.leader, "term": reply.term}, f"{reply.leader} leads in term {reply.term}")


@region.command("break-glass")
@paged
@reads
@run
async def break_glass(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, limit: int, options: sdk.ReadOptions) -> None:
    """Who outside was shown what is pinned here, in an emergency, and who here was shown what is pinned elsewhere."""

    async def page(after: int, count: int) -> tuple[list[Shape], int, bool]:
        reply = await plane.list_break_glass(after_revision=after, limit=count, **options)
        found = [shapes.break_glass(each) for each in reply.reads]
        return found, reply.reads[-1].meta.revision if found else after, reply.more

    cpctl.show(await listing("reads", limit, page, 0), lambda document: _broken(document["reads"]))


def _broken(reads: list[Shape]) -> RenderableType:
    return table(
        reads,
        when=lambda each: datetime.fromtimestamp(each["meta"]["at_ms"] / 1000, UTC).isoformat(timespec="seconds"),
        what=lambda each: f"shown to {each['counterparty']}" if each["shown"] else f"read in {each['counterparty']}",
        who=lambda each: each["actor"],
        why=lambda each: each["reason"],
        call=lambda each: each["method"],
        partition=lambda each: each["partition"],
        reach=lambda each: each["reach"],
        digest=lambda each: each["digest"][:16],
    )


@click.group("member", cls=Group)
def member() -> None:
    """The nodes of the region."""


@member.command("health")
@click.option(
    "--watch",
    "watch_every_s",
    is_flag=False,
    flag_value=1.0,
    type=click.FloatRange(0.1, 3600),
    metavar="SECONDS",
    help="Show it again every so often.",
)
@pass_cpctl
def health(cpctl: Cpctl, watch_every_s: float | None) -> None:
    """Ask every node how it is, each for itself; exit code 11 if one is not well.

    Well is who answers, knows a leader, is up to date to 5 seconds, counts for majorities, and has the same state as
    others at the same revision.
    """
    cpctl.watch_every_s = watch_every_s
    finish(cpctl, _health(cpctl))


async def _health(cpctl: Cpctl) -> None:
    while True:
        rows = await _everyone(cpctl)
        cpctl.show({"members": rows}, lambda document: _health_table(document["members"]))
        if cpctl.watch_every_s is None:
            sys.exit(EXIT_UNHEALTHY if any(row["problem"] for row in rows) else 0)
        await asyncio.sleep(cpctl.watch_every_s)


async def _everyone(cpctl: Cpctl) -> list[Shape]:
    known = list(cpctl.settings().addresses)
    found = await asyncio.gather(*(_ask(cpctl, address) for address in known))
    # What answers names the rest of the region; those are asked as well.
    others = sorted({each["address"] for status in found if status for each in status["members"]} - set(known))
    found += await asyncio.gather(*(_ask(cpctl, address) for address in others))
    if not any(found) and (problem := await cpctl.explained()):
        raise problem
    return judged(known + others, found)


async def _ask(cpctl: Cpctl, address: str) -> Shape | None:
    try:
        async with asyncio.timeout(_MEMBER_TIMEOUT_S), cpctl.connect([address]) as plane:
            return shapes.status(await plane.get_status(consistency=sdk.LOCAL))
    except (TimeoutError, sdk.Unavailable, sdk.OutcomeUnknown):
        return None


def judged(addresses: Sequence[str], statuses: Sequence[Shape | None]) -> list[Shape]:
    """What there is to say of each node, given what it answered; `problem` is null for those that are well. Pure."""
    rows = [_row(address, status) for address, status in zip(addresses, statuses, strict=True)]
    _find_learners(rows, [status for status in statuses if status])
    _compare(rows)
    return sorted(rows, key=lambda row: (row["node"] or "~", row["address"]))


def _row(address: str, status: Shape | None) -> Shape:
    names = ("node", "role", "leader", "term", "applied", "commit", "hash", "records", "disk_free_bytes", "version")
    row: Shape = {"address": address, **{name: status[name] if status else None for name in names}}
    row["revision"] = status["served"]["revision"] if status else None
    row["age_ms"] = status["served"]["age_ms"] if status else None
    row["problem"] = _problem(status)
    return row


def _problem(status: Shape | None) -> str | None:
    if status is None:
        return "does not answer"
    if not status["leader"]:
        return "knows no leader"
    age_ms = status["served"]["age_ms"]
    if age_ms is None:
        return "has not shown yet that it is up to date"
    # Agents that hear from it alone hold still by then.
    return f"is {age_ms / 1000:.0f} s behind" if age_ms > limits.MIRROR_AGE_MAX_MS else None


def _find_learners(rows: Sequence[Shape], statuses: Sequence[Shape]) -> None:
    """A node whose disk was replaced answers like any other, but the region has to do without it until it counts."""
    leader = max((each for each in statuses if each["role"] == "leader"), key=lambda each: each["term"], default=None)
    learners = {each["name"] for each in leader["members"] if each["state"] == "learner"} if leader else set()
    for row in rows:
        if row["node"] in learners:
            row["problem"] = "does not count yet: it still fetches what the others have"


def _compare(rows: Sequence[Shape]) -> None:
    """Equal revision means equal hash; anything else is the worst that can be found."""
    hashes: dict[int, set[str]] = {}
    for row in rows:
        if row["revision"] is not None:
            hashes.setdefault(row["revision"], set()).add(row["hash"])
    for row in rows:
        if len(hashes.get(row["revision"], ())) > 1:
            row["problem"] = "another state at the same revision: stop this region and keep its data"


def _health_table(rows: list[Shape]) -> RenderableType:
    """Who is not well is said below in a line of its own: a column would break it into words where there is no room."""
    nodes = table(
        rows,
        node=lambda row: row["node"],
        address=lambda row: row["address"],
        role=lambda row: row["role"],
        term=lambda row: row["term"],
        revision=lambda row: row["revision"],
        applied=lambda row: row["applied"],
        age_ms=lambda row: row["age_ms"],
        hash=lambda row: (row["hash"] or "")[:12],
        records=lambda row: row["records"],
        health=lambda row: Text("not well", style="bold red") if row["problem"] else Text("well", style="green"),
    )
    ill = [row for row in rows if row["problem"]]
    return Stack(nodes, *(Text(f"{row['node'] or row['address']}: {row['problem']}", style="red") for row in ill))
