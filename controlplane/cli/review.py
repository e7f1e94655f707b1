"""`cpctl region report`, `region checkpoint`, `region scan`: evidence for reviewers, to be checked without the region.

What these commands write is checked by `controlplane/ledger/verify.py`, a file of its own that a reviewer gets from
elsewhere, with keys that a reviewer was given by somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import grpc
import grpc.aio
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.text import Text

from controlplane import limits, sdk, status
from controlplane.cli.command import EXIT_UNHEALTHY, Command, Cpctl, card, finish, not_installed, pass_cpctl, table
from controlplane.cli.files import check_folder, written
from controlplane.cli.shapes import Shape
from controlplane.sdk.session import credentials
from controlplane.v1 import audit_pb2 as messages
from controlplane.v1 import records_pb2 as records

_SERVICE = "/controlplane.v1.Reviewers/"
_TIMEOUT_S = 10.0
_SCAN_TIMEOUT_S = 60.0
_DAY_S = 86_400
_TIME_MS_MAX = int(datetime.max.replace(tzinfo=UTC).timestamp()) * 1000
_REACHES = {records.HOME_ONLY: "home-only", records.JURISDICTION: "jurisdiction", records.GLOBAL: "global"}
_OPTIONS = [
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


def _moment(_: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A moment as ISO 8601, in UTC unless it says otherwise; in Unix milliseconds."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no time; write it like 2026-11-23 or 2026-11-23T12:30", param=parameter
        ) from None
    at_ms = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if not 0 <= at_ms < _TIME_MS_MAX:
        raise click.BadParameter(f"{value!r} is not between the years 1970 and 9999, in UTC", param=parameter)
    return at_ms


class Reader:
    """The calls for reviewers at one node of the region."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def ask(self, method: str, request: Any, reply: type[Any], timeout_s: float = _TIMEOUT_S) -> Any:
        """One call, one reply. Raises the eight errors."""
        call: Any = self._channel.unary_unary(_SERVICE + method)
        try:
            return reply.FromString(await call(request.SerializeToString(), timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None

    async def pages(self, request: messages.ReadLedgerRequest) -> AsyncGenerator[messages.ReadLedgerReply, None]:
        """The pages of the ledger. Raises the eight errors."""
        method: Any = self._channel.unary_stream(_SERVICE + "ReadLedger")
        call = method(request.SerializeToString())
        try:
            async for page in call:
                yield messages.ReadLedgerReply.FromString(page)
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None
        finally:
            call.cancel()

    async def checkpoint(self, size: int = 0) -> messages.GetCheckpointReply:
        """The checkpoint over `size` leaves; 0: all."""
        found = await self.ask("GetCheckpoint", messages.GetCheckpointRequest(size=size), messages.GetCheckpointReply)
        assert isinstance(found, messages.GetCheckpointReply)
        return found


@click.command("checkpoint", cls=Command)
@pass_cpctl
def checkpoint(cpctl: Cpctl, /) -> None:
    """The newest signed checkpoint of the region's ledger: keep it, and later reports can be held to it."""

    async def show() -> None:
        async with _reader(cpctl) as reader:
            found = await reader.checkpoint()
        document = {
            "region": found.region.name,
            "size": found.size,
            "note": found.note.decode() or None,
            "cosigned": [{"region": each.region, "note": each.note.decode()} for each in found.cosigned],
        }
        cpctl.show(document, lambda told: Text(told["note"] or "the region has no ledger key"))

    finish(cpctl, show())


@click.command("scan", cls=Command)
@pass_cpctl
def scan(cpctl: Cpctl, /) -> None:
    """Have every node search its own disk for records that are pinned elsewhere.

    Exit code 11 if a node found some, or did not answer.
    """

    async def search() -> list[Shape]:
        addresses = await _members(cpctl)
        return list(await asyncio.gather(*(_scan(cpctl, name, address) for name, address in addresses.items())))

    async def show() -> None:
        found = await search()
        cpctl.show({"nodes": found}, lambda document: _scans(document["nodes"]))
        if any(each["error"] or each["foreign"] for each in found):
            raise SystemExit(EXIT_UNHEALTHY)

    finish(cpctl, show())


@click.command("report", cls=Command)
@click.option("--region", "wanted", help="Refuse to report on another region than this.")
@click.option("--from", "from_ms", callback=_moment, help="ISO 8601, UTC; a day ago unless said otherwise.")
@click.option("--to", "to_ms", callback=_moment, help="ISO 8601, UTC; now unless said otherwise.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The bundle to write.")
@click.option("--no-scan", is_flag=True, help="Do not have the nodes search their disks.")
@pass_cpctl
def report(
    cpctl: Cpctl, /, wanted: str | None, from_ms: int | None, to_ms: int | None, out: Path, no_scan: bool
) -> None:
    """Write a residency report: a statement in plain words, and the evidence for it, to be verified offline."""
    now_ms = time.time_ns() // 1_000_000
    between = from_ms if from_ms is not None else now_ms - _DAY_S * 1000, to_ms if to_ms is not None else now_ms
    if between[0] > between[1]:
        raise click.UsageError("--from is later than --to")

    check_folder(out.parent)

    async def write() -> None:
        scans = {} if no_scan else await _signed_scans(cpctl)
        async with _reader(cpctl) as reader:
            manifest = await _write(reader, wanted, between, scans, out)
        cpctl.show({"out": str(out), **manifest}, _manifest)

    finish(cpctl, write())


async def _write(
    reader: Reader, wanted: str | None, between: tuple[int, int], scans: dict[str, bytes], out: Path
) -> dict[str, Any]:
    bundle = _bundles()
    last = await reader.checkpoint()
    about = last.region
    if wanted is not None and wanted != about.name:
        raise sdk.Refused(f"the region at hand is {about.name}", reason="REGION_MISMATCH", hint="choose a --context")
    if not last.note:
        raise sdk.Refused(
            "the region has no ledger key, so nothing is signed",
            reason="LEDGER_KEY_MISSING",
            hint="name one in the region file (ledger_key) and restart its nodes",
        )
    if not last.size:
        raise sdk.Refused("the ledger is empty: nothing has passed yet", reason="LEDGER_EMPTY")
    request = messages.ReadLedgerRequest(from_ms=between[0], to_ms=between[1], size=last.size)
    async with contextlib.aclosing(reader.pages(request)) as beginning:
        first_page = await anext(beginning, None)
    start = first_page.start if first_page is not None else last.size
    first = await reader.checkpoint(max(1, start))
    loop = asyncio.get_running_loop()

    def node(level: int, at: int) -> bytes:
        asked = messages.ReadNodesRequest(nodes=[messages.NodeAt(level=level, at=at)])
        reply = reader.ask("ReadNodes", asked, messages.ReadNodesReply)
        return bytes(asyncio.run_coroutine_threadsafe(reply, loop).result(_TIMEOUT_S).hashes[0])

    def pages() -> Iterator[messages.ReadLedgerReply]:
        source = reader.pages(request)
        while True:
            page = asyncio.run_coroutine_threadsafe(_next(source), loop).result(_SCAN_TIMEOUT_S)
            if page is None:
                return
            yield page

    told = bundle.Report(
        fleet=about.fleet,
        region=about.name,
        jurisdiction=about.jurisdiction,
        from_ms=between[0],
        to_ms=between[1],
        partitions=[
            bundle.Partition(each.id, each.home, _REACHES[each.reach], each.environment, each.epoch)
            for each in last.partitions
        ],
        first=first.note,
        last=last.note,
        start=start,
        leaves=(leaf for page in pages() for leaf in page.leaves),
        records=(_record(each) for page in pages() for each in page.records),
        node=node,
        cosigned={each.region: each.note for each in last.cosigned},
        scans=scans,
    )
    with written(out):
        manifest: dict[str, Any] = await asyncio.to_thread(bundle.write, told, out)
    return manifest


def _bundles() -> ModuleType:
    try:
        from controlplane.ledger import bundle  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from None
    return bundle


def _record(opened: messages.OpenedRecord) -> Any:
    record = _bundles().Record
    if not opened.key:
        return record(opened.leaf, opened.n, opened.name, None)
    return record(opened.leaf, opened.n, opened.name, opened.key, json.loads(opened.content))


async def _next(source: AsyncIterator[messages.ReadLedgerReply]) -> messages.ReadLedgerReply | None:
    return await anext(source, None)


async def _signed_scans(cpctl: Cpctl) -> dict[str, bytes]:
    addresses = await _members(cpctl)
    found = await asyncio.gather(*(_scan(cpctl, name, address) for name, address in addresses.items()))
    return {each["node"]: each["note"].encode() for each in found if each["note"]}


async def _scan(cpctl: Cpctl, name: str, address: str) -> Shape:
    try:
        async with _reader(cpctl, address) as reader:
            found = await reader.ask("ScanDisk", messages.ScanDiskRequest(), messages.ScanDiskReply, _SCAN_TIMEOUT_S)
    except sdk.ControlPlaneError as error:
        return {"node": name, "foreign": 0, "findings": [], "note": None, "error": str(error)}
    return {
        "node": found.node,
        "foreign": found.foreign,
        "findings": list(found.findings),
        "note": found.note.decode() or None,
        "error": None,
    }


async def _members(cpctl: Cpctl) -> dict[str, str]:
    async with cpctl.connect() as plane:
        found = await plane.get_status(consistency=sdk.LOCAL)
        return {member.name: member.address for member in found.members}


@asynccontextmanager
async def _reader(cpctl: Cpctl, address: str = "") -> AsyncIterator[Reader]:
    """Calls at one node: the given one, or the first of the context that answers."""
    settings = cpctl.settings()
    tls = credentials(
        settings.authority or None, settings.certificate or None, settings.key or None, insecure=settings.insecure
    )
    for candidate in [address] if address else settings.addresses:
        channel = (
            grpc.aio.insecure_channel(candidate, options=_OPTIONS)
            if tls is None
            else grpc.aio.secure_channel(candidate, tls(), options=_OPTIONS)
        )
        async with channel:
            try:
                async with asyncio.timeout(_TIMEOUT_S / 4):
                    await channel.channel_ready()
            except TimeoutError:
                continue
            yield Reader(channel)
            return
    raise sdk.Unavailable(
        f"no node answered at {address or ', '.join(settings.addresses)}",
        reason="UNREACHABLE",
        hint="are the addresses right, the nodes up, and the certificates of this fleet?",
    )


def _error(error: grpc.aio.AioRpcError) -> sdk.ControlPlaneError:
    pairs = [(str(key), value) for key, value in (error.trailing_metadata() or ())]
    return status.from_call(error.code(), error.details(), pairs)


def _scans(found: list[Shape]) -> RenderableType:
    rows = table(
        found,
        node=lambda each: each["node"],
        foreign=lambda each: Text(str(each["foreign"]), style="red" if each["foreign"] else "green"),
        signed=lambda each: bool(each["note"]),
        problem=lambda each: each["error"] or "; ".join(each["findings"]),
    )
    return Stack(rows)


def _manifest(told: Shape) -> RenderableType:
    counts = told["counts"]
    return card(
        bundle=told["out"],
        region=f"{told['region']} ({told['jurisdiction']})",
        leaves=f"{told['leaves']['from']} to {told['leaves']['to']}",
        records=", ".join(f"{number} {name}" for name, number in sorted(counts["classes"].items())) or "none",
        next="python verify.py BUNDLE --trust TRUST_FILE, with both files from elsewhere than this region",
    )
