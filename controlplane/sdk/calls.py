"""Every plain call of the API as a typed method.

Reads are linearizable unless told otherwise. Every write gets a request id of its own that stays the same for all
attempts, so the retries below this layer can never apply it twice. Replies are the API's own messages; `reply.header`
says which revision was served, where, and how old it may be.

Each method raises the eight errors of `controlplane.errors` and nothing else. `Unavailable` and `OutcomeUnknown` come
only after retrying until the call's deadline; after `OutcomeUnknown` ask `get_outcome` with the same request id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypedDict, TypeVar, Unpack

from google.protobuf.message import DecodeError

from controlplane.errors import OutcomeUnknown, Unavailable
from controlplane.sdk.channel import SINCE_TOO_OLD, Channel
from controlplane.sdk.nonce import nonce
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records


@dataclass(frozen=True, slots=True)
class Consistency:
    """How new a read must be."""

    mode: api.Consistency
    revision: int = 0


EPOCHS_MAX = 1024
"""Partitions whose epochs a client remembers."""
REQUESTS_REMEMBERED_MAX = 4096
"""Request ids of the caller's of which a client remembers the first use."""

LINEARIZABLE = Consistency(api.LINEARIZABLE)
"""Sees everything that was committed anywhere in the region before the call."""
LOCAL = Consistency(api.LOCAL)
"""Whatever the node at hand has: fastest, and possible while the region has no leader."""


def at_least(revision: int) -> Consistency:
    """Require everything up to `revision`, such as a write of one's own, to be seen."""
    return Consistency(api.AT_LEAST, revision)


class ReadOptions(TypedDict, total=False):
    """What every read accepts by keyword.

    `break_glass`: why it is an emergency. Where the home of another region's partition lets people of this region and
    role do so, it shows what is pinned there, and both regions keep a record of who read it.
    """

    consistency: Consistency
    partition: str
    timeout_s: float
    break_glass: str


class WriteOptions(TypedDict, total=False):
    """What every write accepts by keyword.

    `fence`: refuse the write unless this is the live record's. `reason`: why, for the record. `request_id`: 16 random
    bytes, to be able to ask for the outcome later, or to make the same call again; made up when absent. `since`: for
    who makes a call of an earlier client again: what `revision` that one had before it. Without it, this client's own
    first use of the request id counts.
    """

    fence: api.Fence
    reason: str
    partition: str
    timeout_s: float
    request_id: bytes
    since: int


_READ_OPTIONS = frozenset(ReadOptions.__annotations__)
_WRITE_OPTIONS = frozenset(WriteOptions.__annotations__)


class _Reply(Protocol):
    @property
    def header(self) -> api.ReplyHeader: ...


class _Request(Protocol):
    @property
    def header(self) -> api.RequestHeader: ...
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name.


ReplyT = TypeVar("ReplyT", bound=_Reply)


class Calls:
    """The plain calls over a channel; the base of `ControlPlane`."""

    def __init__(self, channel: Channel, timeout_s: float) -> None:
        self._channel = channel
        self.clock = channel.clock
        self._timeout_s = timeout_s
        self._revision = 0
        self._epochs: dict[str, int] = {}
        self._first_seen: dict[bytes, tuple[int, int]] = {}
        channel.on_started_over.append(self._start_over)

    @property
    def revision(self) -> int:
        """The newest revision that this client has seen."""
        return max(self._revision, self._channel.revision)

    # Workflows

    async def create_workflow(
        self,
        workflow_id: str,
        state: bytes,
        *,
        schema_version: int = 1,
        code_version: str = "",
        **options: Unpack[WriteOptions],
    ) -> api.CreateWorkflowReply:
        """Create a workflow at version 1. Raises Refused (WORKFLOW_EXISTS) if there is one."""
        request = api.CreateWorkflowRequest(
            header=self._write_header("workflow", options),
            id=workflow_id,
            state=state,
            schema_version=schema_version,
            code_version=code_version,
        )
        return await self._write("CreateWorkflow", "workflow", request, api.CreateWorkflowReply, options)

    async def get_workflow(
        self,
        workflow_id: str,
        *,
        at_revision: int = 0,
        schema_range: tuple[int, int] = (0, 0),
        **options: Unpack[ReadOptions],
    ) -> api.GetWorkflowReply:
        """Read a workflow, now or as it stood at a revision.

        A `schema_range` other than (0, 0) has a state outside of it refused with a reason of its own.
        """
        request = api.GetWorkflowRequest(
            header=self._read_header("workflow", options),
            id=workflow_id,
            at_revision=at_revision,
            schema_min=schema_range[0],
            schema_max=schema_range[1],
        )
        return await self._read("GetWorkflow", "workflow", request, api.GetWorkflowReply, options)

    async def compare_and_swap(
        self,
        workflow_id: str,
        version: int,
        state: bytes,
        *,
        schema_version: int = 1,
        code_version: str = "",
        **options: Unpack[WriteOptions],
    ) -> api.CompareAndSwapWorkflowReply:
        """Replace the state if the workflow is still at `version`. Raises Refused (VERSION_MISMATCH) if not."""
        request = api.CompareAndSwapWorkflowRequest(
            header=self._write_header("workflow", options),
            id=workflow_id,
            version=version,
            state=state,
            schema_version=schema_version,
            code_version=code_version,
        )
        return await self._write(
            "CompareAndSwapWorkflow", "workflow", request, api.CompareAndSwapWorkflowReply, options
        )

    async def list_workflows(
        self, *, prefix: str = "", after: str = "", limit: int = 0, **options: Unpack[ReadOptions]
    ) -> api.ListWorkflowsReply:
        """Read one page of workflows in the order of their ids, those above `after`."""
        header = self._read_header("workflow", options)
        request = api.ListWorkflowsRequest(header=header, prefix=prefix, after=after, limit=limit)
        return await self._read("ListWorkflows", "workflow", request, api.ListWorkflowsReply, options)

    async def workflow_history(
        self, workflow_id: str, *, before_revision: int = 0, limit: int = 0, **options: Unpack[ReadOptions]
    ) -> api.GetWorkflowHistoryReply:
        """Read one page of a workflow's versions, newest first."""
        header = self._read_header("workflow", options)
        request = api.GetWorkflowHistoryRequest(
            header=header, id=workflow_id, before_revision=before_revision, limit=limit
        )
        return await self._read("GetWorkflowHistory", "workflow", request, api.GetWorkflowHistoryReply, options)

    # Flags

    async def set_flag(
        self,
        flag: records.Flag,
        *,
        expected_revision: int = 0,
        must_not_exist: bool = False,
        **options: Unpack[WriteOptions],
    ) -> api.SetFlagReply:
        """Write a flag whole; with `expected_revision`, only if it still stands at that revision. Operators only."""
        request = api.SetFlagRequest(
            header=self._write_header("flag", options),
            flag=flag,
            expected_revision=expected_revision,
            must_not_exist=must_not_exist,
        )
        return await self._write("SetFlag", "flag", request, api.SetFlagReply, options)

    async def get_flag(self, name: str, *, at_revision: int = 0, **options: Unpack[ReadOptions]) -> api.GetFlagReply:
        """Read a flag, now or as it stood at a revision."""
        header = self._read_header("flag", options)
        request = api.GetFlagRequest(header=header, name=name, at_revision=at_revision)
        return await self._read("GetFlag", "flag", request, api.GetFlagReply, options)

    async def list_flags(
        self, *, prefix: str = "", after: str = "", limit: int = 0, **options: Unpack[ReadOptions]
    ) -> api.ListFlagsReply:
        """Read one page of flags in the order of their names, those above `after`."""
        header = self._read_header("flag", options)
        request = api.ListFlagsRequest(header=header, prefix=prefix, after=after, limit=limit)
        return await self._read("ListFlags", "flag", request, api.ListFlagsReply, options)

    async def flag_history(
        self, name: str, *, before_revision: int = 0, limit: int = 0, **options: Unpack[ReadOptions]
    ) -> api.GetFlagHistoryReply:
        """Read one page of a flag's revisions, newest first. People only."""
        header = self._read_header("flag", options)
        request = api.GetFlagHistoryRequest(header=header, name=name, before_revision=before_revision, limit=limit)
        return await self._read("GetFlagHistory", "flag", request, api.GetFlagHistoryReply, options)

    async def restore_flag(self, name: str, revision: int, **options: Unpack[WriteOptions]) -> api.RestoreFlagReply:
        """Make a flag what it was at `revision`, as a new write. Operators only."""
        header = self._write_header("flag", options)
        request = api.RestoreFlagRequest(header=header, name=name, revision=revision)
        return await self._write("RestoreFlag", "flag", request, api.RestoreFlagReply, options)

    async def get_agent_config(self, user: str, tenant: str, **options: Unpack[ReadOptions]) -> api.GetAgentConfigReply:
        """Have the server evaluate an agent's configuration; `ControlPlane.config` does it without a call."""
        header = self._read_header("flag", options)
        request = api.GetAgentConfigRequest(header=header, user=user, tenant=tenant)
        return await self._read("GetAgentConfig", "flag", request, api.GetAgentConfigReply, options)

    # Kill switches

    async def engage(self, scope: records.Scope, **options: Unpack[WriteOptions]) -> api.EngageSwitchReply:
        """Stop what `scope` covers; idempotent. A `reason` is required. Operators only."""
        request = api.EngageSwitchRequest(header=self._write_header("switch", options), scope=scope)
        return await self._write("EngageSwitch", "switch", request, api.EngageSwitchReply, options)

    async def release(self, scope: records.Scope, **options: Unpack[WriteOptions]) -> api.ReleaseSwitchReply:
        """Let what `scope` covers act again; idempotent. A `reason` is required. Operators only."""
        request = api.ReleaseSwitchRequest(header=self._write_header("switch", options), scope=scope)
        return await self._write("ReleaseSwitch", "switch", request, api.ReleaseSwitchReply, options)

    async def except_switch(
        self, scope: records.Scope, region: str, epoch: int, revision: int, **options: Unpack[WriteOptions]
    ) -> api.ExceptSwitchReply:
        """Do not heed, here, exactly one stop of a region that cannot release it; idempotent. A `reason` is required.

        `list_switches` shows the stops of other regions with their epoch and revision. Operators only.
        """
        request = api.ExceptSwitchRequest(
            header=self._write_header("switch", options), scope=scope, region=region, epoch=epoch, revision=revision
        )
        return await self._write("ExceptSwitch", "switch", request, api.ExceptSwitchReply, options)

    async def list_switches(
        self,
        *,
        engaged_only: bool = False,
        after: str = "",
        limit: int = 0,
        **options: Unpack[ReadOptions],
    ) -> api.ListSwitchesReply:
        """Read one page of kill switches; continue with `after=reply.next` while `reply.more`, an empty one too.

        The first page has other regions' stops.
        """
        header = self._read_header("switch", options)
        request = api.ListSwitchesRequest(header=header, engaged_only=engaged_only, after=after, limit=limit)
        return await self._read("ListSwitches", "switch", request, api.ListSwitchesReply, options)

    async def check_switches(self, subject: api.Subject, **options: Unpack[ReadOptions]) -> api.CheckSwitchesReply:
        """Ask the server which switches stop `subject`; `ControlPlane.stopped` does it without a call."""
        request = api.CheckSwitchesRequest(header=self._read_header("switch", options), subject=subject)
        return await self._read("CheckSwitches", "switch", request, api.CheckSwitchesReply, options)

    # Elections; `ControlPlane.election` is the comfortable way.

    async def campaign(
        self,
        name: str,
        process: bytes,
        ttl_ms: int,
        value: bytes = b"",
        **options: Unpack[WriteOptions],
    ) -> api.CampaignReply:
        """Ask for the lease on `name` once; `reply.elected` says whether `process` holds it now."""
        header = self._write_header("election", options)
        request = api.CampaignRequest(header=header, name=name, process=process, ttl_ms=ttl_ms, value=value)
        return await self._write("Campaign", "election", request, api.CampaignReply, options)

    async def renew(
        self, name: str, process: bytes, held: api.Fence, **options: Unpack[WriteOptions]
    ) -> api.RenewReply:
        """Prolong the lease that `held` names. Raises Refused if it is no longer the live one."""
        header = self._write_header("election", options)
        request = api.RenewRequest(header=header, name=name, process=process, fence=held)
        return await self._write("Renew", "election", request, api.RenewReply, options)

    async def resign(
        self, name: str, process: bytes, held: api.Fence, **options: Unpack[WriteOptions]
    ) -> api.ResignReply:
        """Give the lease up; idempotent."""
        header = self._write_header("election", options)
        request = api.ResignRequest(header=header, name=name, process=process, fence=held)
        return await self._write("Resign", "election", request, api.ResignReply, options)

    async def get_election(self, name: str, **options: Unpack[ReadOptions]) -> api.GetElectionReply:
        """Read who holds the lease on `name`, if anyone."""
        request = api.GetElectionRequest(header=self._read_header("election", options), name=name)
        return await self._read("GetElection", "election", request, api.GetElectionReply, options)

    async def list_elections(
        self, *, prefix: str = "", after: str = "", limit: int = 0, **options: Unpack[ReadOptions]
    ) -> api.ListElectionsReply:
        """Read one page of the leases that are held, in the order of their names."""
        header = self._read_header("election", options)
        request = api.ListElectionsRequest(header=header, prefix=prefix, after=after, limit=limit)
        return await self._read("ListElections", "election", request, api.ListElectionsReply, options)

    # The region

    async def get_region(self, **options: Unpack[ReadOptions]) -> api.GetRegionReply:
        """Read who leads the region, as the node at hand knows it."""
        request = api.GetRegionRequest(header=self._read_header("", options))
        return await self._read("GetRegion", "", request, api.GetRegionReply, options)

    async def watch_region(self) -> AsyncGenerator[api.Region, None]:
        """Yield the region as it is and then after every change of its leader."""
        async for region in self._channel.regions():
            yield region

    async def get_status(self, **options: Unpack[ReadOptions]) -> api.GetStatusReply:
        """Read the view of the node at hand. People only."""
        request = api.GetStatusRequest(header=self._read_header("", options))
        return await self._read("GetStatus", "", request, api.GetStatusReply, options)

    async def get_outline(self, region: str = "", **options: Unpack[ReadOptions]) -> api.GetOutlineReply:
        """Read what `region`, a peer of the one at hand, shows of itself; without `outline` if it cannot be asked.

        `reply.link` is what the region at hand knows of it. People only. Raises NotFound (REGION_UNKNOWN), and Denied
        if that region shows itself to this one in no way.
        """
        request = api.GetOutlineRequest(header=self._read_header("", options), region=region)
        return await self._read("GetOutline", "", request, api.GetOutlineReply, options)

    async def list_break_glass(
        self, *, after_revision: int = 0, limit: int = 0, **options: Unpack[ReadOptions]
    ) -> api.ListBreakGlassReply:
        """Read one page of the break-glass reads of this environment, oldest first. People only."""
        header = self._read_header("", options)
        request = api.ListBreakGlassRequest(header=header, after_revision=after_revision, limit=limit)
        return await self._read("ListBreakGlass", "", request, api.ListBreakGlassReply, options)

    async def erase_record(self, kind: str, name: str, **options: Unpack[WriteOptions]) -> api.EraseRecordReply:
        """Destroy a workflow, or what is left of an election, for good; idempotent. Say `partition` and `reason`.

        The log says so when this returns; each node's `get_status` says when its files have nothing of it. Approvers
        only; outside of production operators, too.
        """
        request = api.EraseRecordRequest(header=self._write_header("", options), kind=kind, name=name)
        return await self._write("EraseRecord", "", request, api.EraseRecordReply, options)

    async def transfer_region(self, target: str = "", **options: Unpack[WriteOptions]) -> api.TransferRegionReply:
        """Move the region's leadership to `target`, or to whoever is most advanced.

        Operators of prod, and administrators, only.
        """
        request = api.TransferRegionRequest(header=self._write_header("", options), target=target)
        return await self._write("TransferRegion", "", request, api.TransferRegionReply, options)

    async def list_events(
        self,
        *,
        after_revision: int = 0,
        kinds: tuple[str, ...] = (),
        limit: int = 0,
        **options: Unpack[ReadOptions],
    ) -> api.ListEventsReply:
        """Read one page of the event log, oldest first; the next goes on after its `seen`, while there is `more`.

        Raises Compacted below what is kept. People only.
        """
        header = self._read_header("", options)
        request = api.ListEventsRequest(header=header, after_revision=after_revision, kinds=kinds, limit=limit)
        return await self._read("ListEvents", "", request, api.ListEventsReply, options)

    async def list_partitions(self, name: str = "", **options: Unpack[ReadOptions]) -> api.ListPartitionsReply:
        """Read where partitions are at home, and what becomes of moves; all of the environment's, or one.

        People only.
        """
        request = api.ListPartitionsRequest(header=self._read_header("", options), partition=name)
        return await self._read("ListPartitions", "", request, api.ListPartitionsReply, options)

    async def move_partition(
        self,
        name: str,
        to: str = "",
        *,
        cancel: bool = False,
        forced: bool = False,
        attestation: str = "",
        upto: int = 0,
        **options: Unpack[WriteOptions],
    ) -> api.MovePartitionReply:
        """Begin to move a partition's home to the region `to`, or call that off. A `reason` is required.

        Operators only. Asking again changes nothing. `forced`: without the old home, which an operator says is down
        (`attestation`); what it wrote after `upto`, the revision up to which it was copied, is given up.
        """
        request = api.MovePartitionRequest(
            header=self._write_header("", options),
            partition=name,
            to=to,
            cancel=cancel,
            forced=forced,
            attestation=attestation,
            upto=upto,
        )
        return await self._write("MovePartition", "", request, api.MovePartitionReply, options)

    async def list_quarantine(
        self, name: str, *, after: bytes = b"", limit: int = 0, **options: Unpack[ReadOptions]
    ) -> api.ListQuarantineReply:
        """Read one page of what this region wrote to a partition when it was its home no longer. People only."""
        header = self._read_header("", options)
        request = api.ListQuarantineRequest(header=header, partition=name, after=after, limit=limit)
        return await self._read("ListQuarantine", "", request, api.ListQuarantineReply, options)

    async def get_outcome(
        self, request_id: bytes, *, since: int | None = None, **options: Unpack[ReadOptions]
    ) -> api.GetOutcomeReply:
        """Ask what became of a write made earlier by the same identity under `request_id`."""
        header = self._read_header("", options)
        header.request_id = request_id
        if since is None and request_id in self._first_seen:
            since, _ = self._first_seen[request_id]
        if since is not None:
            header.since = since
        request = api.GetOutcomeRequest(header=header)
        return await self._read("GetOutcome", "", request, api.GetOutcomeReply, options)

    # Below: how a call is made.

    def _read_header(self, kind: str, options: ReadOptions) -> api.RequestHeader:
        _check_known(options, _READ_OPTIONS)
        consistency = options.get("consistency", LINEARIZABLE)
        return api.RequestHeader(
            partition=options.get("partition"),
            consistency=consistency.mode,
            revision=consistency.revision,
            epoch=self._epochs.get(options.get("partition") or kind, 0),
            break_glass=options.get("break_glass"),
        )

    def _write_header(self, kind: str, options: WriteOptions) -> api.RequestHeader:
        if not options:
            epoch = self._epochs.get(kind, 0)
            return api.RequestHeader(request_id=nonce(), since=self.revision, epoch=epoch)
        _check_known(options, _WRITE_OPTIONS)
        request_id, since = options.get("request_id"), options.get("since", self.revision)
        # A partition named by the caller may stand at another epoch than the default one.
        epoch = self._epochs.get(options.get("partition") or kind, 0)
        if request_id:
            since, epoch = self._as_first(request_id, since, epoch)
        return api.RequestHeader(
            partition=options.get("partition"),
            request_id=request_id or nonce(),
            since=since,
            epoch=epoch,
            fence=options.get("fence"),
            reason=options.get("reason"),
        )

    def _start_over(self) -> None:
        """Forget what the region told before it was started over."""
        self._revision = 0
        self._epochs.clear()
        self._first_seen.clear()

    def _as_first(self, request_id: bytes, since: int, epoch: int) -> tuple[int, int]:
        """What was seen before a request was first made: by it the region tells whether that may be forgotten."""
        first = self._first_seen.setdefault(request_id, (since, epoch))
        if len(self._first_seen) > REQUESTS_REMEMBERED_MAX:
            del self._first_seen[next(iter(self._first_seen))]
        return first

    async def _read(
        self, method: str, kind: str, request: _Request, reply_type: type[ReplyT], options: ReadOptions
    ) -> ReplyT:
        deadline = self.clock() + options.get("timeout_s", self._timeout_s)
        return await self._call(method, kind, request, reply_type, deadline, writes=False)

    async def _write(
        self, method: str, kind: str, request: _Request, reply_type: type[ReplyT], options: WriteOptions
    ) -> ReplyT:
        deadline = self.clock() + options.get("timeout_s", self._timeout_s)
        try:
            return await self._call(method, kind, request, reply_type, deadline, writes=True)
        except Unavailable as error:
            if error.reason != SINCE_TOO_OLD:
                raise
        # This client was idle for so long that the region could not tell whether it had seen the request. The
        # channel knows that it had not: it was the only attempt ever made.
        request.header.since = self.revision
        request.header.epoch = 0
        return await self._call(method, kind, request, reply_type, deadline, writes=True)

    async def _call(
        self,
        method: str,
        kind: str,
        request: _Request,
        reply_type: type[ReplyT],
        deadline: float,
        *,
        writes: bool,
    ) -> ReplyT:
        body = await self._channel.call(method, request.SerializeToString(), deadline, writes=writes)
        try:
            reply: ReplyT = reply_type.FromString(body)  # type: ignore[attr-defined]
        except DecodeError:
            raise OutcomeUnknown("the reply cannot be read", reason="REPLY_MALFORMED") from None
        header = reply.header
        if self._channel.region.name in ("", header.region):
            # Another region, which answered for a partition of its own, counts for itself.
            self._revision = max(self._revision, header.revision)
        if header.epoch and kind:
            self._remember_epoch(request.header.partition or kind, header.epoch)
        return reply

    def _remember_epoch(self, of: str, epoch: int) -> None:
        if len(self._epochs) >= EPOCHS_MAX:
            self._epochs.clear()
        self._epochs[of] = epoch


def _check_known(options: Mapping[str, object], known: frozenset[str]) -> None:
    """What is misspelt must not be left out: it may be a fence."""
    unknown = options.keys() - known
    if unknown:
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}; known are {', '.join(sorted(known))}")
