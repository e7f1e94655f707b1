"""Elections: leases on names, with at most one holder and a fence that only grows.

No clock is involved. The record says for how long its holder asked; the leader's reaper counts that time on its own
monotonic clock, from the last write to the record, and proposes `expire` for the revision it saw. A holder counts from
before it asked, so it gives up first. Its fence is (epoch, revision at which the record was created): whoever guards a
resource compares it with the live record, so a holder that sleeps through its own expiry is refused.
"""

from __future__ import annotations

from controlplane import limits
from controlplane.errors import Invalid, Refused
from controlplane.features import checks
from controlplane.kernel.transaction import Kind, Reader, Row, Tx
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Election

ELECTION = Kind("election", Election, erasable=True)


def campaign(tx: Tx, request: api.CampaignRequest) -> api.CampaignReply:
    """Take the name if nobody holds it. Losing is an answer: the reply names the holder.

    Campaigning again in the same process is the same campaign: it renews, and the fence stays.
    """
    name = checks.name(request.name, "name")
    process = _process(request.process)
    checks.between(request.ttl_ms, limits.LEASE_TTL_MS_MIN, limits.LEASE_TTL_MS_MAX, "ttl_ms")
    mine = Election(name=name, holder=tx.actor, process=process, ttl_ms=request.ttl_ms, value=request.value)
    checks.size(mine, "value")
    row = tx.get(ELECTION, name)
    if row is not None and not _holds(row, tx.actor, process):
        return api.CampaignReply(holder=view(tx, row), elected=False)
    if row is None:
        _room_for_one_more(tx)
    return api.CampaignReply(holder=view(tx, tx.put(ELECTION, name, mine)), elected=True)


def renew(tx: Tx, request: api.RenewRequest) -> api.RenewReply:
    """Start the lease's time again. Refused unless the caller's process holds it under this very fence."""
    row = tx.get(ELECTION, checks.name(request.name, "name"))
    process = _process(request.process)
    if row is None or not _holds(row, tx.actor, process) or not _is(tx, row, request.fence):
        raise Refused(
            f"the lease on {request.name!r} is not held under this fence any more",
            reason="LEASE_LOST",
            hint="campaign again; what was done under the old fence since it was lost is refused",
        )
    tx.put(ELECTION, request.name, row.value, quiet=True)
    return api.RenewReply(ttl_ms=row.value.ttl_ms)


def resign(tx: Tx, request: api.ResignRequest) -> api.ResignReply:
    """Give the name up. Not holding it any more is an answer, not an error."""
    row = tx.get(ELECTION, checks.name(request.name, "name"))
    process = _process(request.process)
    if row is None or not _holds(row, tx.actor, process) or not _is(tx, row, request.fence):
        return api.ResignReply(resigned=False)
    tx.delete(ELECTION, request.name)
    return api.ResignReply(resigned=True)


def expire(tx: Tx, name: str, revision: int) -> bool:
    """Remove a lease that stands as it was last seen. The leader's reaper proposes this; nobody can call it."""
    row = tx.get(ELECTION, name)
    if row is None or row.revision != revision:
        return False
    tx.delete(ELECTION, name)
    return True


def get(reader: Reader, request: api.GetElectionRequest) -> api.GetElectionReply:
    """Who holds the name."""
    row = reader.get(ELECTION, checks.name(request.name, "name"))
    return api.GetElectionReply(holder=view(reader, row) if row else None)


def list_elections(reader: Reader, request: api.ListElectionsRequest) -> api.ListElectionsReply:
    """All held names, by name."""
    rows, more = checks.page(reader.list(ELECTION, checks.prefix(request.prefix), request.after), request.limit)
    return api.ListElectionsReply(elections=[view(reader, row) for row in rows], more=more)


def require(tx: Tx, scope: bytes, epoch: int, fence: api.Fence) -> None:
    """Refuse unless `fence` is the live one of its election, held by the caller. `scope` is where elections live."""
    name = checks.name(fence.election, "fence.election")
    row = tx.read_in(scope, ELECTION, name)
    if row is None or (fence.epoch, fence.revision) != (epoch, row.created):
        raise Refused(
            f"the fence of {name!r} is stale",
            reason="FENCE_STALE",
            hint="somebody else may be acting: stop, and campaign again",
            live=row.created if row else 0,
        )
    if row.value.holder != tx.actor:
        raise Refused(f"the fence of {name!r} is somebody else's", reason="FENCE_NOT_YOURS")


def view(reader: Reader, row: Row[Election]) -> api.ElectionView:
    """A lease as callers see it."""
    fence = api.Fence(election=row.name, epoch=reader.partition.epoch, revision=row.created)
    return api.ElectionView(election=row.value, fence=fence, meta=checks.meta(row))


def _holds(row: Row[Election], actor: str, process: bytes) -> bool:
    return row.value.holder == actor and row.value.process == process


def _is(reader: Reader, row: Row[Election], fence: api.Fence) -> bool:
    return (fence.epoch, fence.revision) == (reader.partition.epoch, row.created)


def _process(value: bytes) -> bytes:
    if len(value) != limits.PROCESS_BYTES:
        raise Invalid(
            f"process must be {limits.PROCESS_BYTES} random bytes, drawn once per process",
            reason="PROCESS_BAD",
        )
    return value


def _room_for_one_more(tx: Tx) -> None:
    if tx.count(ELECTION) >= limits.ELECTIONS_MAX:
        raise Refused(f"{limits.ELECTIONS_MAX} elections are held already", reason="ELECTIONS_FULL")
