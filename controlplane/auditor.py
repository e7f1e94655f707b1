"""Signed checkpoints of the region's ledger, and the exchange of cosignatures with other regions.

A checkpoint says nothing but what the tree says at its size, so every node that holds the region's key signs the same
bytes. The leader shows the newest one to each peer region and keeps what the peer cosigned; as a peer itself, it keeps
the newest checkpoint that it cosigned for each other region before the cosignature leaves, and refuses what does not
continue it. Both are records of the log, so they survive whoever leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controlplane.errors import ControlPlaneError, Refused, Unavailable
from controlplane.features import audit, partitions
from controlplane.kernel import keys, machine
from controlplane.kernel.store import View
from controlplane.kernel.transaction import Kind, Tx, scope_of
from controlplane.ledger import checkpoint, leaves, merkle, notes
from controlplane.ledger.checkpoint import Checkpoint, Witness
from controlplane.ledger.notes import Signer, VerifierKey
from controlplane.node import Node
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.federation_pb2 import CosignReply, CosignRequest
from controlplane.v1.records_pb2 import Cosigned, Witnessed
from controlplane.v1.state_pb2 import Event

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EVERY_S = 2.0
"""How often a tree that grew is shown to the peers."""
_TIMEOUT_S = 5.0
_PROOF_MAX = merkle.PROOF_HASHES_MAX

WITNESSED = Kind("witnessed", Witnessed, reserved=True)
COSIGNED = Kind("cosigned", Cosigned, reserved=True)

Ask = Callable[[str, CosignRequest], Awaitable[CosignReply]]
"""Puts a request to a peer region. Raises the eight errors."""


class LedgerKeys:
    """What a region signs with, and the keys of the ledgers of others, by region."""

    def __init__(self, fleet: str, region: str, key: Ed25519PrivateKey, peers: Mapping[str, bytes]) -> None:
        """`peers` are public keys, 32 bytes each. Raises ValueError for names or keys that cannot be."""
        self._key, self._origin = key, checkpoint.origin_of(fleet, region)
        self.signer = Signer(self._origin, key)
        self.cosigner = Signer(self._origin, key, notes.COSIGNATURE)
        self.peers = {
            peer: VerifierKey(checkpoint.origin_of(fleet, peer), notes.NOTE, public) for peer, public in peers.items()
        }
        self.cosigners = {peer: replace(key, type=notes.COSIGNATURE) for peer, key in self.peers.items()}

    def of_node(self, name: str) -> Signer:
        """What signs in the name of one node of the region."""
        return Signer(f"{self._origin}/{name}", self._key)


def checkpoint_at(view: View, origin: str, size: int) -> Checkpoint:
    """What the tree says at `size` leaves, and the state after the last of them. Raises KeyError for one too large."""
    node = audit.node_reader(view)
    root = merkle.Frontier.read(size, node).root()
    if not size:
        return Checkpoint(origin, 0, root, 0, bytes(32))
    packed = audit.leaf_at(view, size - 1)
    if packed is None:
        raise KeyError(size)
    last = leaves.decode(packed)
    return Checkpoint(origin, size, root, last.revision, last.hash)


class Auditor:
    """One node's part in the ledger."""

    def __init__(self, node: Node, keys_of_region: LedgerKeys | None, ask: Ask) -> None:
        self._node, self._keys, self._ask = node, keys_of_region, ask
        self.origin = checkpoint.origin_of(node.fleet, node.region)
        self._task: asyncio.Task[None] | None = None
        self._missing: dict[str, str] = {}
        self._system = partitions.system(node.region)

    def start(self) -> None:
        """Begin to ask for cosignatures while this node leads; nothing is done without a key."""
        if self._keys is not None and self._keys.peers:
            self._task = self._node.needs(asyncio.create_task(self._run(), name="auditor"))

    async def stop(self) -> None:
        """Stop at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def size(self) -> int:
        """Leaves of the tree here."""
        return self._node.ledger.size

    def note(self, size: int) -> bytes:
        """The signed checkpoint at `size`; empty without a key."""
        if self._keys is None:
            return b""
        return checkpoint.sign(checkpoint_at(self._node.store, self.origin, size), self._keys.signer)

    def cosigned(self) -> dict[str, Cosigned]:
        """The newest checkpoint that each peer cosigned."""
        found = {}
        prefix = keys.RECORD + scope_of(self._system) + keys.text(COSIGNED.name)
        for _, packed in self._node.store.scan(*keys.children(prefix)):
            each = Cosigned.FromString(Event.FromString(packed).value)
            found[each.region] = each
        return found

    def signed(self, name: str) -> Signer | None:
        """What signs in the name of one node, with the region's key; None without one."""
        return None if self._keys is None else self._keys.of_node(name)

    # -- as a witness

    async def cosign(self, peer: str, request: CosignRequest, at_s: int) -> CosignReply:
        """Cosign a peer's checkpoint, if it continues what was cosigned before. Only the leader does.

        Raises `Invalid`, `Refused` for what speaks against the peer's ledger, and `Unavailable`.
        """
        if self._keys is None or peer not in self._keys.peers:
            raise Unavailable(f"the key of {peer}'s ledger is not known here", reason="LEDGER_KEY_UNKNOWN")
        await self._node.log.barrier(timeout_s=_TIMEOUT_S)
        seen = self._seen(peer)
        witness = Witness(self._keys.peers[peer], self._keys.cosigner)
        try:
            new, line = witness.cosign(seen, request.note, list(request.proof[:_PROOF_MAX]), at_s)
        except Refused as refusal:
            if refusal.reason == "BAD_PROOF" and seen is not None and request.old != seen.size:
                return CosignReply(seen=seen.size)
            _log.error("ledger_refused", peer=peer, reason=refusal.reason, size=0 if seen is None else seen.size)
            raise
        await self._keep_witnessed(peer, seen, new, request.note)
        return CosignReply(line=line, seen=new.size)

    def _seen(self, peer: str) -> Checkpoint | None:
        event = machine.event_at(self._node.store, keys.within(scope_of(self._system), WITNESSED.name, peer))
        return None if event is None else checkpoint.read(Witnessed.FromString(event.value).note)

    async def _keep_witnessed(self, peer: str, seen: Checkpoint | None, new: Checkpoint, note: bytes) -> None:
        def keep(tx: Tx) -> RequestHeader | None:
            row = tx.get(WITNESSED, peer)
            before = None if row is None else checkpoint.read(row.value.note)
            if before != seen:
                raise Refused("another checkpoint was cosigned meanwhile", reason="WITNESSED_MEANWHILE")
            if before == new:
                return None
            tx.put(WITNESSED, peer, Witnessed(region=peer, note=note))
            return RequestHeader()

        await self._node.transact(self._system, "Cosign", keep, timeout_s=_TIMEOUT_S)

    # -- as a log

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if self._node.log.status().ready and self._keys is not None:
                await asyncio.gather(*(self._ask_peer(*each) for each in self._keys.cosigners.items()))

    async def _ask_peer(self, peer: str, cosigner: VerifierKey) -> None:
        size = self.size
        known = self.cosigned().get(peer, Cosigned())
        if not size or (size == known.size and self._bears_keys_of_now(known.note, cosigner)):
            return
        try:
            note = self.note(size)
            reply = await self._ask(peer, self._request(note, known.size, size))
            if not reply.line and reply.seen <= size:
                reply = await self._ask(peer, self._request(note, reply.seen, size))
            if reply.line:
                await self._keep_cosigned(cosigner, peer, size, checkpoint.with_cosignatures(note, reply.line))
                self._missing.pop(peer, None)
        except ControlPlaneError as error:
            # It is asked again. Said once for each reason: a peer may be away for long.
            if self._missing.get(peer) != error.reason:
                self._missing[peer] = error.reason
                _log.warning("cosignature_missing", peer=peer, reason=error.reason, problem=str(error))

    def _bears_keys_of_now(self, note: bytes, cosigner: VerifierKey) -> bool:
        assert self._keys is not None
        both = {self._keys.signer.verifier, cosigner}
        try:
            return notes.parse(note).opened(both).keys() == both
        except notes.NoteInvalid:
            return False

    def _request(self, note: bytes, old: int, new: int) -> CosignRequest:
        proof = merkle.consistency_proof(old, new, audit.node_reader(self._node.store))
        return CosignRequest(note=note, old=old, proof=proof)

    async def _keep_cosigned(self, cosigner: VerifierKey, peer: str, size: int, note: bytes) -> None:
        try:
            notes.parse(note).opened([cosigner])
        except notes.NoteInvalid as error:
            raise Refused(f"what {peer} sent is no cosignature: {error}", reason="COSIGNATURE_INVALID") from error

        def keep(tx: Tx) -> RequestHeader | None:
            row = tx.get(COSIGNED, peer)
            if row is not None and (row.value.size > size or row.value.note == note):
                return None
            tx.put(COSIGNED, peer, Cosigned(region=peer, size=size, note=note))
            return RequestHeader()

        await self._node.transact(self._system, "KeepCosignature", keep, timeout_s=_TIMEOUT_S)
