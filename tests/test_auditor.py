"""Two regions that cosign each other's ledgers, each a real node over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controlplane import auditor
from controlplane.auditor import Auditor, LedgerKeys, checkpoint_at
from controlplane.errors import Refused, Unavailable
from controlplane.features import audit, federation
from controlplane.features.partitions import system
from controlplane.ledger import checkpoint, merkle, notes
from controlplane.v1.federation_pb2 import CosignReply, CosignRequest
from controlplane.v1.records_pb2 import GLOBAL, Passage
from tests.node.harness import Region, within

AT_S = 1_700_000_000
KEYS = {name: Ed25519PrivateKey.generate() for name in ("eu", "us")}


def keys_of(region: str, other: str) -> LedgerKeys:
    return LedgerKeys("fleet", region, KEYS[region], {other: KEYS[other].public_key().public_bytes_raw()})


async def pass_something(region: Region, count: int) -> None:
    for _ in range(count):
        upto = region.node.revision + 1
        passage = Passage(direction=Passage.EGRESS, counterparty="us", reach=GLOBAL, epoch=1, upto=upto, records=1)
        await within(
            region.node.transact(system("eu"), "T", lambda tx, p=passage: federation.record_passage(tx, p), timeout_s=5)  # type: ignore[misc]
        )


class Pair:
    """Region eu, whose ledger grows, and a witness with another store that stands for region us."""

    def __init__(self, log: Region, witness: Region) -> None:
        self.log, self.asked = log, 0
        self.witness = Auditor(witness.node, keys_of("us", "eu"), nobody)
        self.auditor = Auditor(log.node, keys_of("eu", "us"), self.ask)
        self.line = ""

    async def ask(self, peer: str, request: CosignRequest) -> CosignReply:
        assert peer == "us"
        self.asked += 1
        return await self.witness.cosign("eu", CosignRequest.FromString(request.SerializeToString()), AT_S)

    def request(self, old: int, size: int) -> CosignRequest:
        proof = merkle.consistency_proof(old, size, audit.node_reader(self.log.store))
        return CosignRequest(note=self.auditor.note(size), old=old, proof=proof)


async def nobody(peer: str, request: CosignRequest) -> CosignReply:
    raise Unavailable("nobody is there", reason="UNREACHABLE")


async def with_pair(test: Callable[[Pair], Awaitable[None]]) -> None:
    async with Region() as log, Region() as witness:
        await test(Pair(log, witness))


async def test_a_peer_cosigns_what_continues_what_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor, "EVERY_S", 0.01)

    async def test(pair: Pair) -> None:
        await pass_something(pair.log, 3)
        pair.auditor.start()
        try:
            for size in (3, 8):
                await until_cosigned(pair, size)
                await pass_something(pair.log, 8 - size)
        finally:
            await pair.auditor.stop()
        kept = pair.auditor.cosigned()["us"]
        cosigner = notes.VerifierKey("fleet/us", notes.COSIGNATURE, KEYS["us"].public_key().public_bytes_raw())
        assert notes.parse(kept.note).opened([cosigner]) == {cosigner: AT_S}
        assert checkpoint.read(kept.note) == checkpoint_at(pair.log.store, "fleet/eu", 8)

    await with_pair(test)


async def test_a_ledger_whose_key_was_replaced_is_cosigned_again_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was cosigned bears the signature of before, which a reviewer does not trust any more."""
    monkeypatch.setattr(auditor, "EVERY_S", 0.01)

    async def test(pair: Pair) -> None:
        await pass_something(pair.log, 3)
        pair.auditor.start()
        try:
            await until_cosigned(pair, 3)
        finally:
            await pair.auditor.stop()
        new = Ed25519PrivateKey.generate()
        public = {name: key.public_key().public_bytes_raw() for name, key in (KEYS | {"eu": new}).items()}
        pair.witness = Auditor(pair.witness._node, LedgerKeys("fleet", "us", KEYS["us"], {"eu": public["eu"]}), nobody)
        pair.auditor = Auditor(pair.log.node, LedgerKeys("fleet", "eu", new, {"us": public["us"]}), pair.ask)
        log = notes.VerifierKey("fleet/eu", notes.NOTE, public["eu"])
        pair.auditor.start()
        try:
            async with asyncio.timeout(20):
                while log.id not in {each.id for each in notes.parse(pair.auditor.cosigned()["us"].note).signatures}:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert checkpoint.opened(pair.auditor.cosigned()["us"].note, log).size == 3
            # And only once.
            asked = pair.asked
            await pass_something(pair.log, 1)
            await until_cosigned(pair, 4)
            assert pair.asked == asked + 1
        finally:
            await pair.auditor.stop()

    await with_pair(test)


async def test_what_a_peer_sends_instead_of_a_cosignature_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor, "EVERY_S", 0.01)

    async def test(pair: Pair) -> None:
        await pass_something(pair.log, 3)
        stranger = notes.Signer("fleet/us", Ed25519PrivateKey.generate(), notes.COSIGNATURE)
        line = stranger.line(checkpoint_at(pair.log.store, "fleet/eu", 3).text(), AT_S)

        async def forged(_: str, request: CosignRequest) -> CosignReply:
            pair.asked += 1
            return CosignReply(line=line, seen=3)

        pair.auditor._ask = forged
        pair.auditor.start()
        try:
            async with asyncio.timeout(20):
                while pair.asked < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
        finally:
            await pair.auditor.stop()
        assert pair.auditor.cosigned() == {}
        assert pair.auditor._missing == {"us": "COSIGNATURE_INVALID"}

    await with_pair(test)


async def until_cosigned(pair: Pair, size: int) -> None:
    async with asyncio.timeout(20):
        while pair.auditor.cosigned().get("us") is None or pair.auditor.cosigned()["us"].size < size:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_witness_says_what_it_saw_and_refuses_what_does_not_continue_it() -> None:
    async def test(pair: Pair) -> None:
        await pass_something(pair.log, 6)
        assert (await pair.witness.cosign("eu", pair.request(0, 4), AT_S)).line
        behind = await pair.witness.cosign("eu", pair.request(2, 6), AT_S)
        assert (behind.line, behind.seen) == ("", 4)
        with pytest.raises(Refused) as refused:
            await pair.witness.cosign("eu", pair.request(0, 3), AT_S)
        assert refused.value.reason == "SMALLER_TREE"
        assert (await pair.witness.cosign("eu", pair.request(4, 6), AT_S)).seen == 6
        again = Auditor(pair.witness._node, keys_of("us", "eu"), nobody)
        with pytest.raises(Refused):
            await again.cosign("eu", pair.request(0, 5), AT_S)

    await with_pair(test)


async def test_a_replaced_ledger_is_refused() -> None:
    async def test(pair: Pair) -> None:
        await pass_something(pair.log, 5)
        await pair.witness.cosign("eu", pair.request(0, 5), AT_S)
        async with Region() as other, Region() as unused:
            other.unix_ms += 1
            forged = Pair(other, unused)
            await pass_something(other, 1)
            await pass_something(other, 6)
            with pytest.raises(Refused):
                await pair.witness.cosign("eu", forged.request(5, 7), AT_S)

    await with_pair(test)


async def test_without_keys_there_is_nothing_to_sign() -> None:
    async with Region() as region:
        lone = Auditor(region.node, None, nobody)
        lone.start()
        assert lone.note(0) == b""
        assert lone.signed("n1") is None
        with pytest.raises(Unavailable):
            await lone.cosign("us", CosignRequest(), AT_S)
        await lone.stop()


async def test_every_replica_signs_the_same_bytes() -> None:
    async with Region() as region:
        await pass_something(region, 4)
        one, other = (Auditor(region.node, keys_of("eu", "us"), nobody) for _ in range(2))
        assert one.note(3) == other.note(3) != one.note(4)
        with pytest.raises(KeyError):
            one.note(5)
