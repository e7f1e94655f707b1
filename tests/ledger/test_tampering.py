"""What a region, or somebody between it and the reviewer, could do to a bundle, and the claims that it turns.

Each row names all the claims that change; every other claim has to stay PASS, as it is for an honest bundle.
"""

import json
from dataclasses import replace

import pytest

from controlplane.ledger import checkpoint, leaves, merkle, notes
from controlplane.ledger.bundle import Record
from tests.ledger.material import (
    BEGIN_MS,
    KNOWN,
    LAST,
    SEEN,
    Desk,
    archived,
    at_ms,
    honest,
    packed,
    secret,
    signer,
    transfer,
    trust,
    unpacked,
    witness_of,
)

PASS, FAIL, NOT_CHECKED = "PASS", "FAIL", "NOT CHECKED"
MATCHED = ["MATCHED eu-central", "MATCHED us-east"]
COSIGNED = ["COSIGNED eu-central", "COSIGNED us-east"]
SCANS = ["SCAN n1", "SCAN n2", "SCAN n3"]
ON_RECORDS = ["REACH", "HOMES", *MATCHED]
ON_LEAVES = ["RANGE", "RECORDS", "SAMPLES", *ON_RECORDS]
ON_CHECKPOINT = ["GROWTH", "LEAVES", "IDENTITY", *COSIGNED, *ON_LEAVES]
ALL = ["FILES", "CHECKPOINT", *ON_CHECKPOINT, *SCANS]

LEDGER = honest("eu-west")
SAME_NAME = notes.Signer("acme/eu-west", signer("somebody")._key)


def failed(*claims, unchecked=()):
    return dict.fromkeys(unchecked, NOT_CHECKED) | dict.fromkeys(claims, FAIL)


def only(statuses):
    """The claims that are not PASS."""
    return {name: status for name, (status, _) in statuses.items() if status != PASS}


# Ways to change the files of a bundle in place.


def edited(name, old, new):
    def change(files):
        assert old in files[name]
        files[name] = files[name].replace(old, new, 1)

    return change


def on_lines(name, change):
    def apply(files):
        files[name] = b"".join(change(files[name].splitlines(keepends=True)))

    return apply


def on_json(name, change):
    def apply(files):
        told = json.loads(files[name])
        change(told)
        files[name] = json.dumps(told).encode()

    return apply


def on_record(at, change):
    def apply(lines):
        record = json.loads(lines[at])
        change(record)
        return [*lines[:at], json.dumps(record).encode() + b"\n", *lines[at + 1 :]]

    return on_lines("records.jsonl", apply)


def exchanged(lines, one, other):
    lines[one], lines[other] = lines[other], lines[one]
    return lines


def put(name, content):
    return lambda files: files.update({name: content})


def without(name):
    return lambda files: files.pop(name)


def swapped(one, other):
    return lambda files: files.update({one: files[other], other: files[one]})


def both(*changes):
    return lambda files: [change(files) for change in changes]


def reopened(record):
    """Another content, under another key: what whoever does not have the entry's salt can do."""
    record["content"] = {**record["content"], "count": 4}
    record["key"] = secret("a key").hex()


def manifest_range(start, end):
    return on_json("manifest.json", lambda told: told["leaves"].update({"from": start, "to": end}))


def proven(old):
    proof = [each.hex() for each in merkle.consistency_proof(old, LAST, LEDGER.node)]
    return on_json("proofs/consistency.json", lambda told: told.append({"old": old, "new": LAST, "hashes": proof}))


def unproven(old):
    def change(told):
        (one,) = (each for each in told if each["old"] == old)
        told.remove(one)

    return on_json("proofs/consistency.json", change)


def misproven(old):
    def change(told):
        (one,) = (each for each in told if each["old"] == old)
        one["hashes"][-1] = "00" * 32

    return on_json("proofs/consistency.json", change)


def from_21():
    hashes = [each.hex() for each in merkle.Frontier.read(21, LEDGER.node).hashes]
    return both(
        on_lines("leaves.jsonl", lambda lines: lines[1:]),
        manifest_range(21, 80),
        put("proofs/frontier.json", json.dumps({"size": 21, "hashes": hashes}).encode()),
    )


def signed(size, by=None, /, **changes):
    return checkpoint.sign(replace(LEDGER.head(size), **changes), by or signer("acme/eu-west"))


def cosigned(size, by, *, of=None, **changes):
    """A checkpoint that somebody cosigned, or rather another text `of` it."""
    note = signed(size, **changes)
    return checkpoint.with_cosignatures(note, by.line(of or notes.parse(note).text, BEGIN_MS // 1000))


def scan(node, by=None, /, **changes):
    text = json.loads(notes.parse(LEDGER.scanned(node)).text) | changes
    line = json.dumps(text) + "\n"
    return put(f"scans/{node}.note", notes.write(line, (by or signer(f"acme/eu-west/{node}")).line(line)))


def scan_text(node, text):
    return put(f"scans/{node}.note", f"{text}\n{signer(f'acme/eu-west/{node}').line(text)}".encode())


STALE = {"of": LEDGER.head(LAST - 1).text()}

TAMPERINGS = {
    # Leaves.
    "a leaf changed": (edited("leaves.jsonl", b'"hash":"0', b'"hash":"1'), failed("LEAVES", unchecked=ON_LEAVES)),
    "a leaf's class changed": (
        edited("leaves.jsonl", b'["egress"', b'["denial"'),
        failed("LEAVES", "RECORDS", unchecked=ON_LEAVES),
    ),
    "a leaf dropped": (
        on_lines("leaves.jsonl", lambda lines: lines[:30] + lines[31:]),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "a leaf doubled": (
        on_lines("leaves.jsonl", lambda lines: lines[:30] + lines[29:]),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "two leaves exchanged": (
        on_lines("leaves.jsonl", lambda lines: exchanged(lines, 30, 31)),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "a leaf written otherwise": (
        edited("leaves.jsonl", b'"index":50,', b'"index":50, '),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "the last line not ended": (
        on_lines("leaves.jsonl", lambda lines: [*lines[:-1], lines[-1][:-1]]),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "the last leaf dropped": (
        on_lines("leaves.jsonl", lambda lines: lines[:-1]),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "no leaves": (put("leaves.jsonl", b""), failed("LEAVES", "RECORDS", unchecked=ON_LEAVES)),
    "a leaf too long": (put("leaves.jsonl", b"x" * (5 << 20)), failed("LEAVES", unchecked=ON_LEAVES)),
    "no file of leaves": (without("leaves.jsonl"), failed("FILES", "LEAVES", unchecked=ON_LEAVES)),
    "no file of records": (
        without("records.jsonl"),
        failed("FILES", "RECORDS", *MATCHED, unchecked=["REACH", "HOMES"]),
    ),
    "first and last the same": (put("checkpoints/first.note", signed(LAST)), failed()),
    "a range without its first leaf": (from_21(), failed("RANGE")),
    "a range without its last leaf": (
        both(on_lines("leaves.jsonl", lambda lines: lines[:-1]), manifest_range(20, 79), proven(79)),
        failed("RANGE"),
    ),
    "a frontier changed": (
        on_json("proofs/frontier.json", lambda told: told["hashes"].reverse()),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "a frontier of another size": (
        put("proofs/frontier.json", b'{"size": 19, "hashes": []}'),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "a frontier too short": (
        put("proofs/frontier.json", b'{"size": 20, "hashes": []}'),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "no proof from the end of the range": (unproven(80), failed("LEAVES", unchecked=ON_LEAVES)),
    # Records.
    "an egress record dropped": (
        on_lines("records.jsonl", lambda lines: lines[1:]),
        failed("RECORDS", unchecked=["REACH", "HOMES", "MATCHED us-east"]) | failed("MATCHED eu-central"),
    ),
    "a denial dropped": (
        on_lines("records.jsonl", lambda lines: [line for line in lines if b"denial" not in line]),
        failed("RECORDS", unchecked=ON_RECORDS),
    ),
    "all records dropped": (put("records.jsonl", b""), failed("RECORDS", *MATCHED, unchecked=["REACH", "HOMES"])),
    "a record doubled": (
        on_lines("records.jsonl", lambda lines: lines[:3] + lines[2:]),
        failed("RECORDS", unchecked=ON_RECORDS),
    ),
    "a record invented": (
        on_lines("records.jsonl", lambda lines: [*lines, lines[-1].replace(b'"leaf":', b'"leaf":1')]),
        failed("RECORDS", unchecked=ON_RECORDS),
    ),
    "two records exchanged": (
        on_lines("records.jsonl", lambda lines: exchanged(lines, 2, 3)),
        failed("RECORDS", *MATCHED, unchecked=["REACH", "HOMES"]),
    ),
    "a record altered": (
        on_record(0, lambda record: record["content"].update(count=4)),
        failed("RECORDS", "MATCHED eu-central", unchecked=["REACH", "HOMES", "MATCHED us-east"]),
    ),
    "a record opened as another": (
        on_record(0, reopened),
        failed("RECORDS", "MATCHED eu-central", unchecked=["REACH", "HOMES", "MATCHED us-east"]),
    ),
    "an egress record called a denial": (
        on_record(0, lambda record: record.update({"class": "denial"})),
        failed("RECORDS", "MATCHED eu-central", unchecked=["REACH", "HOMES", "MATCHED us-east"]),
    ),
    "a record with a short key": (
        on_record(0, lambda record: record.update(key=record["key"][:-2])),
        failed("RECORDS", "MATCHED eu-central", unchecked=["REACH", "HOMES", "MATCHED us-east"]),
    ),
    "a record neither opened nor erased": (
        on_record(0, lambda record: record.pop("key")),
        failed("RECORDS", "MATCHED eu-central", unchecked=["REACH", "HOMES", "MATCHED us-east"]),
    ),
    "an egress record marked erased, and nothing erased it": (
        on_lines("records.jsonl", lambda lines: [b'{"leaf":25,"n":0,"class":"egress","erased":true}\n', *lines[1:]]),
        failed("RECORDS", "MATCHED eu-central", unchecked=["REACH", "HOMES", "MATCHED us-east"]),
    ),
    "a denial marked erased, and nothing erased it": (
        on_lines(
            "records.jsonl",
            lambda lines: [
                b'{"leaf":37,"n":0,"class":"denial","erased":true}\n' if b'"leaf":37,' in line else line
                for line in lines
            ],
        ),
        failed(unchecked=["RECORDS", *ON_RECORDS]),
    ),
    "records that are no JSON": (
        on_lines("records.jsonl", lambda lines: [*lines[:-1], b"{\n"]),
        failed("RECORDS", unchecked=ON_RECORDS),
    ),
    "a deep record": (
        on_lines("records.jsonl", lambda lines: [*lines[:-1], b"[" * 60_000 + b"\n"]),
        failed("RECORDS", unchecked=ON_RECORDS),
    ),
    "a record too long": (
        on_lines("records.jsonl", lambda lines: [*lines[:-1], b'"' + b"x" * 70_000 + b'"\n']),
        failed("RECORDS", unchecked=ON_RECORDS),
    ),
    # Checkpoints.
    "a forged root": (
        edited("checkpoints/last.note", b"\n85\n", b"\n86\n"),
        failed("CHECKPOINT", unchecked=ON_CHECKPOINT),
    ),
    "a first checkpoint by an unknown key": (
        put("checkpoints/first.note", signed(10, SAME_NAME)),
        failed("CHECKPOINT", unchecked=ON_CHECKPOINT),
    ),
    "a last checkpoint by an unknown key": (
        put("checkpoints/last.note", signed(LAST, SAME_NAME)),
        failed("CHECKPOINT", unchecked=ON_CHECKPOINT),
    ),
    "a checkpoint of another region": (
        put("checkpoints/last.note", signed(LAST, origin="acme/eu-east")),
        failed("CHECKPOINT", unchecked=ON_CHECKPOINT),
    ),
    "a checkpoint that is no note": (
        put("checkpoints/last.note", b"acme/eu-west\n85\n"),
        failed("CHECKPOINT", unchecked=ON_CHECKPOINT),
    ),
    "a signature line of two words": (
        edited("checkpoints/last.note", b"\xe2\x80\x94 acme/eu-west ", b"\xe2\x80\x94 acme/eu-west"),
        failed("CHECKPOINT", unchecked=ON_CHECKPOINT),
    ),
    "a signature line of four words": (
        edited("checkpoints/last.note", b"\xe2\x80\x94 acme/eu-west ", b"\xe2\x80\x94 acme /eu-west "),
        failed("CHECKPOINT", unchecked=ON_CHECKPOINT),
    ),
    "first and last exchanged": (
        swapped("checkpoints/first.note", "checkpoints/last.note"),
        failed("GROWTH", "LEAVES", "COSIGNED us-east", "IDENTITY", unchecked=["COSIGNED eu-central", *ON_LEAVES]),
    ),
    "no first checkpoint": (
        without("checkpoints/first.note"),
        failed("FILES", "CHECKPOINT", unchecked=ON_CHECKPOINT),
    ),
    "a checkpoint signed over a rewritten tree": (
        put("checkpoints/last.note", signed(LAST, root=secret("a root"))),
        failed("GROWTH", "LEAVES", "COSIGNED us-east", "IDENTITY", unchecked=["COSIGNED eu-central", *ON_LEAVES]),
    ),
    "a first checkpoint that the last does not continue": (
        put("checkpoints/first.note", signed(10, root=secret("a root"))),
        failed("GROWTH"),
    ),
    "an empty first checkpoint": (
        put("checkpoints/first.note", signed(10, size=0, root=merkle.EMPTY_ROOT)),
        failed(),
    ),
    "an empty first checkpoint with a root": (put("checkpoints/first.note", signed(10, size=0)), failed("GROWTH")),
    "a revision that went back": (put("checkpoints/first.note", signed(10, revision=1000)), failed("GROWTH")),
    "a first checkpoint with another state than its leaf": (
        both(put("checkpoints/first.note", signed(30, hash=secret("a hash"))), proven(30)),
        failed("LEAVES", unchecked=ON_LEAVES),
    ),
    "no proof of growth": (unproven(10), failed("GROWTH")),
    "a wrong proof of growth": (misproven(10), failed("GROWTH")),
    "a proof of words": (
        on_json("proofs/consistency.json", lambda told: [each.update(hashes=["a" * 63]) for each in told]),
        failed("GROWTH", "LEAVES", "COSIGNED us-east", "IDENTITY", unchecked=ON_LEAVES),
    ),
    "a proof of numbers": (
        on_json("proofs/consistency.json", lambda told: [each.update(hashes=[7]) for each in told]),
        failed("GROWTH", "LEAVES", "COSIGNED us-east", "IDENTITY", unchecked=ON_LEAVES),
    ),
    "a proof that is endless": (
        on_json("proofs/consistency.json", lambda told: [each.update(hashes=["ab" * 32] * 2000) for each in told]),
        failed("GROWTH", "LEAVES", "COSIGNED us-east", "IDENTITY", unchecked=ON_LEAVES),
    ),
    "a proof that is none": (
        on_json("proofs/consistency.json", lambda told: [each.pop("hashes") for each in told]),
        failed("GROWTH", "LEAVES", "COSIGNED us-east", "IDENTITY", unchecked=ON_LEAVES),
    ),
    "proofs that are no JSON": (
        put("proofs/consistency.json", b"[" * 500_000),
        failed("GROWTH", "LEAVES", "COSIGNED us-east", "IDENTITY", unchecked=ON_LEAVES),
    ),
    # Cosignatures. eu-central cosigned the last checkpoint, us-east an earlier one.
    "no cosignature of us-east": (without("checkpoints/cosigned/us-east.note"), failed(unchecked=COSIGNED[1:])),
    "no cosignature of eu-central": (put("checkpoints/last.note", signed(LAST)), failed(unchecked=COSIGNED[:1])),
    "a cosignature of a smaller tree on the last checkpoint": (
        put("checkpoints/last.note", cosigned(LAST, witness_of("eu-central"), **STALE)),
        failed(COSIGNED[0]),
    ),
    "a cosignature by another key": (
        put("checkpoints/last.note", cosigned(LAST, notes.Signer("acme/eu-central/witness", signer("x")._key, 4))),
        failed(unchecked=COSIGNED[:1]),
    ),
    "a peer shown another ledger": (
        put("checkpoints/cosigned/us-east.note", cosigned(SEEN, witness_of("us-east"), root=secret("a root"))),
        failed(COSIGNED[1]),
    ),
    "a peer shown another root at the same size": (
        put("checkpoints/cosigned/us-east.note", cosigned(LAST, witness_of("us-east"), root=secret("a root"))),
        failed(COSIGNED[1]),
    ),
    "a peer's checkpoint that the region did not sign": (
        put(
            "checkpoints/cosigned/us-east.note",
            checkpoint.with_cosignatures(
                signed(SEEN, SAME_NAME), witness_of("us-east").line(LEDGER.head(SEEN).text(), 1)
            ),
        ),
        failed(COSIGNED[1]),
    ),
    "a peer's note without its signature": (
        put("checkpoints/cosigned/us-east.note", signed(SEEN)),
        failed(COSIGNED[1]),
    ),
    "no proof from what a peer saw": (unproven(SEEN), failed(COSIGNED[1])),
    "a wrong proof from what a peer saw": (misproven(SEEN), failed(COSIGNED[1])),
    "a peer that saw nothing of the range": (
        both(put("checkpoints/cosigned/us-east.note", cosigned(20, witness_of("us-east"))), proven(20)),
        failed(unchecked=COSIGNED[1:]),
    ),
    # Scans.
    "a scan with findings": (scan("n2", foreign=1), failed("SCAN n2")),
    "a scan by another key": (scan("n2", signer("acme/eu-west/n1")), failed("SCAN n2")),
    "a scan unsigned": (put("scans/n2.note", notes.parse(LEDGER.scanned("n2")).text.encode()), failed("SCAN n2")),
    "a scan edited": (edited("scans/n2.note", b'"size":85', b'"size":86'), failed("SCAN n2")),
    "two scans exchanged": (swapped("scans/n1.note", "scans/n2.note"), failed("SCAN n1", "SCAN n2")),
    "a scan under another node's name": (scan("n2", node="n1"), failed("SCAN n2")),
    "a scan of another region": (scan("n2", region="eu-central"), failed("SCAN n2")),
    "a scan of nothing": (scan("n2", searched={}), failed("SCAN n2")),
    "a scan that counts in words": (scan("n2", foreign="none"), failed("SCAN n2")),
    "a scan in another format": (scan("n2", format="controlplane-scan/2"), failed("SCAN n2")),
    "a scan of a size in words": (scan("n2", size="all"), failed("SCAN n2")),
    "a scan at no time": (scan("n2", at_ms=None), failed("SCAN n2")),
    "a scan with a tab": (
        scan_text("n2", notes.parse(LEDGER.scanned("n2")).text.replace(",", ",\t")),
        failed("SCAN n2"),
    ),
    "a scan that is a list": (scan_text("n2", "[]\n"), failed("SCAN n2")),
    "a scan that is no JSON": (scan_text("n2", "nothing found\n"), failed("SCAN n2")),
    "a scan that negates": (scan("n2", foreign=-1), failed("SCAN n2")),
    "a scan that lies deep": (scan("n2", searched={"records": [[[]]]}), failed("SCAN n2")),
    "a scan from before": (scan("n2", size=20), failed(unchecked=["SCAN n2"])),
    "no scan": (without("scans/n2.note"), failed(unchecked=["SCAN n2"])),
    # The manifest, which nobody signs.
    "another jurisdiction": (on_json("manifest.json", lambda told: told.update(jurisdiction="us")), failed("REACH")),
    "a partition declared wider than it was sent": (
        on_json("manifest.json", lambda told: told["partitions"].clear()),
        failed(),
    ),
    "another fleet": (
        on_json("manifest.json", lambda told: told.update(fleet="other")),
        failed("CHECKPOINT", *SCANS, unchecked=ON_CHECKPOINT),
    ),
    "files exchanged": (
        swapped("records.jsonl", "leaves.jsonl"),
        failed("LEAVES", "RECORDS", unchecked=ON_LEAVES),
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_named(desk: Desk, name):
    change, expected = TAMPERINGS[name]
    assert only(desk.says(desk.changed(change))) == expected


def test_an_honest_bundle_passes(desk: Desk):
    says = desk.says()
    assert set(says) == set(ALL)
    assert only(says) == {}


def test_digests_of_the_manifest(desk: Desk):
    files = {**desk.files, "statement.md": b"All is well."}
    says = desk.says(archived(files, desk.folder / "digests.tar"))
    assert only(says) == failed("FILES")
    assert "statement.md" in says["FILES"][1]


# A region that signs what it should not. Its keys are genuine, so only what others keep can tell.


def test_a_ledger_replaced_by_another(desk: Desk):
    other = honest("eu-west", "rewritten")
    report = replace(other.report(), last=other.signed(LAST), cosigned={})
    assert only(desk.says(desk.written(report))) == failed("IDENTITY", unchecked=COSIGNED)
    # The cosignatures of the ledger that was replaced do not help.
    report = replace(
        other.report(), last=other.signed(LAST), cosigned={"us-east": desk.ledger.cosigned(SEEN, "us-east")}
    )
    expected = failed("IDENTITY", COSIGNED[1], unchecked=COSIGNED[:1])
    assert only(desk.says(desk.written(report))) == expected


@pytest.mark.parametrize("size", [KNOWN, 20, 50, 80, LAST])
def test_a_kept_checkpoint_at_any_size(desk: Desk, size):
    report = replace(desk.ledger.report(), known=[KNOWN])
    kept = trust(**{"eu-west": desk.ledger.signed(size)})
    says = desk.says(desk.written(report), trust=kept)
    assert only(says) == {}
    forged = trust(**{"eu-west": signed(size, root=secret("a root"))})
    assert only(desk.says(desk.written(report), trust=forged)) == failed("IDENTITY")
    # Another state after the same leaves: seen if the bundle has the last of them, or a checkpoint of as many.
    stated = trust(**{"eu-west": signed(size, hash=secret("a hash"))})
    unseen = size in (KNOWN, 20)
    assert only(desk.says(desk.written(report), trust=stated)) == failed(*[] if unseen else ["IDENTITY"])


def test_a_kept_checkpoint_that_the_bundle_does_not_reach(desk: Desk):
    assert only(desk.says(trust=trust(**{"eu-west": desk.ledger.signed(LAST + 2)}))) == failed("IDENTITY")
    report = replace(desk.ledger.report(), known=[LAST + 2])
    says = desk.says(desk.written(report), trust=trust(**{"eu-west": desk.ledger.signed(LAST + 2)}))
    assert only(says) == {}
    assert says["IDENTITY"][1].startswith("the checkpoint of 87 leaves that you kept continues it")
    # Between two sizes that it proves anything about.
    assert only(desk.says(trust=trust(**{"eu-west": desk.ledger.signed(12)}))) == failed(unchecked=["IDENTITY"])


SIGNED_LEAVES = {
    "another class": (b'"open":[]', b'"open":[["gossip","' + b"ab" * 32 + b'"]]'),
    "a record without a class": (b'"open":[]', b'"open":["' + b"ab" * 32 + b'"]'),
    "records run together": (
        b'"open":[]',
        b'"open":[["egress","' + b"ab" * 32 + b'"]["egress","' + b"ab" * 32 + b'"]]',
    ),
    "records named twice": (b'"open":[]', b'"open":[],"open":[["egress","' + b"ab" * 32 + b'"]]'),
    "another version": (b'"v":1', b'"v":2'),
    "another place": (b'"index":40', b'"index":41'),
    "a place written otherwise": (b'"index":40', b'"index":040'),
    "a revision that went back": (b'"revision":81', b'"revision":78'),
    "a revision beyond the next": (b'"revision":81', b'"revision":84'),
    "a time that went back": (b'"at_ms":1700002400000', b'"at_ms":1700002339999'),
    "a time beyond the next": (b'"at_ms":1700002400000', b'"at_ms":1700002460001'),
}


@pytest.mark.parametrize("name", SIGNED_LEAVES)
def test_a_leaf_that_the_region_signed_and_that_is_none(desk: Desk, name):
    """The tree is over this very line, so that its root is no reason to refuse it."""
    ledger = honest("eu-west")
    lines = [leaves.encode(leaf) for leaf in ledger.leaves]
    old, new = SIGNED_LEAVES[name]
    assert old in lines[40]
    lines[40] = lines[40].replace(old, new)
    frontier = merkle.Frontier()
    for line in lines:
        ledger.nodes.update({(level, at): value for level, at, value in frontier.append(merkle.leaf_hash(line))})
    files = unpacked(desk.written(ledger.report()))
    files["leaves.jsonl"] = b"".join(line + b"\n" for line in lines[20:80])
    says = desk.says(packed(files, desk.folder / "signed.tar"), trust=trust())
    assert says["LEAVES"][0] == FAIL
    assert "root" not in says["LEAVES"][1]


LEAKS = {
    "home-only data sent to a peer": (transfer("eu-central", "home-only", 50), "home-only"),
    "data of the jurisdiction sent out of it": (transfer("us-east", "jurisdiction", 50), "which is in us"),
    "data of the jurisdiction sent to nobody knows whom": (transfer("ap-south", "jurisdiction", 50), "do not know"),
    "home-only data sent through another door": (transfer("us-east", "home-only", 50, door="metrics"), "home-only"),
    "a pinned partition sent as a global one": (
        transfer("us-east", "global", 50, partition="eu-west.prod.home-only", door="http"),
        "has reach home-only",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("kind", ["egress", "ingress"])
def test_a_leak_that_is_in_the_ledger(desk: Desk, name, kind):
    content, why = LEAKS[name]
    leaking = honest("eu-west", extra={40: [(kind, content)]})
    says = desk.says(desk.written(leaking.report()), trust=trust())
    changed = only(says)
    assert changed.pop("IDENTITY") == NOT_CHECKED
    # What was sent by federation, and no peer says that it received, is noticed there as well.
    for peer in MATCHED:
        if changed.get(peer):
            assert changed.pop(peer) == FAIL
            assert (kind, content["door"]) == ("egress", "federation")
    assert changed == failed("REACH")
    assert why in says["REACH"][1]


def test_what_a_peer_received_and_nobody_says_was_sent(desk: Desk):
    kept_quiet = honest("eu-central", extra={40: [("ingress", transfer("eu-west", "global", 62))]})
    peer = desk.folder / "peer.tar"
    desk.written(kept_quiet.report()).rename(peer)
    says = desk.says(peers=[peer, desk.folder / "us-east.tar"])
    assert only(says) == failed("MATCHED eu-central")
    assert "no egress record" in says["MATCHED eu-central"][1]


GRANTS = [
    ("us-east", "global", True, None),
    ("eu-central", "jurisdiction", True, None),
    ("us-east", "jurisdiction", False, None),
    ("us-east", "jurisdiction", True, "may go between eu-west and us-east, which is in us"),
    ("eu-central", "home-only", True, "home-only data may go"),
]


@pytest.mark.parametrize(("peer", "reach", "is_open", "why"), GRANTS)
def test_a_right_to_hold_copies(desk: Desk, peer, reach, is_open, why):
    granting = honest("eu-west", extra={40: [("grant", {"peer": peer, "reach": reach, "open": is_open})]})
    says = desk.says(desk.written(granting.report()), trust=trust())
    assert only(says) == failed(*["REACH"] * bool(why), unchecked=["IDENTITY"])
    assert why is None or why in says["REACH"][1]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("egress", transfer("us-east", "", 50, door="agent")),
        ("ingress", transfer("us-east", "", 50, door="agent")),
        ("unreadable", {"kind": "passage", "unreadable": "ab"}),
    ],
)
def test_records_that_do_not_tell_enough(desk: Desk, kind, content):
    vague = honest("eu-west", extra={40: [(kind, content)]})
    says = desk.says(desk.written(vague.report()), trust=trust())
    assert only(says) == failed(unchecked=["IDENTITY", "REACH"])
    # What is known to be wrong is said first.
    worse = honest(
        "eu-west", extra={40: [(kind, content), ("egress", transfer("us-east", "home-only", 50, door="http"))]}
    )
    says = desk.says(desk.written(worse.report()), trust=trust())
    assert only(says) == failed("REACH", unchecked=["IDENTITY"])


UNCONFIRMED = [
    ([(60, 70)], []),
    ([(50, 61), (62, 80)], []),
    ([(62, 67)], []),
    ([(60, 66)], ["MATCHED eu-central"]),
    ([(63, 70)], ["MATCHED eu-central"]),
    ([(50, 61), (64, 80)], ["MATCHED eu-central"]),
    ([], ["MATCHED eu-central"]),
]


@pytest.mark.parametrize(("spans", "failing"), UNCONFIRMED)
def test_what_was_sent_and_not_confirmed_may_have_been_received(desk: Desk, spans, failing):
    """The peer received revisions 62 to 67 before the link broke, and the region only knows what it had sent."""
    sent = [("egress", transfer("eu-central", "global", first, last=last, door="unconfirmed")) for first, last in spans]
    region = honest("eu-west", extra={45: sent})
    peer = desk.folder / "peer.tar"
    desk.written(honest("eu-central", extra={40: [("ingress", transfer("eu-west", "global", 62))]}).report()).rename(
        peer
    )
    says = desk.says(desk.written(region.report()), trust=trust(), peers=[peer, desk.folder / "us-east.tar"])
    assert only(says) == failed(*failing, unchecked=["IDENTITY"])
    assert failing or f"{len(spans)} more" in says["MATCHED eu-central"][1]


@pytest.mark.parametrize("change", [{"reach": "jurisdiction"}, {"epoch": 2}, {"peer": "us-east"}, {"door": "agent"}])
def test_what_was_sent_otherwise_covers_nothing(desk: Desk, change):
    content = {**transfer("eu-central", "global", 60, last=70, door="unconfirmed"), **change}
    region = honest("eu-west", extra={45: [("egress", content)]})
    peer = desk.folder / "peer.tar"
    desk.written(honest("eu-central", extra={40: [("ingress", transfer("eu-west", "global", 62))]}).report()).rename(
        peer
    )
    says = desk.says(desk.written(region.report()), trust=trust(), peers=[peer, desk.folder / "us-east.tar"])
    assert says["MATCHED eu-central"][0] == FAIL


def test_the_margins_of_matching(desk: Desk):
    """Near the end of the other bundle, and before this one, nothing has to be met."""
    peers = [desk.folder / "peer.tar", desk.folder / "us-east.tar"]
    for entry, expected in ((77, []), (78, []), (79, [])):
        late = honest("eu-west", extra={entry: [("egress", transfer("eu-central", "global", 150, digest="ab" * 32))]})
        says = desk.says(desk.written(late.report()), trust=trust())
        unmet = entry < 79
        assert only(says) == failed(*["MATCHED eu-central"] * unmet, *expected, unchecked=["IDENTITY"])
    # The first leaf of the range is at revision 41. What is written of revision 41 stands after it.
    for first, entry, expected in ((35, 20, PASS), (35, 21, NOT_CHECKED), (35, 40, NOT_CHECKED), (36, 20, FAIL)):
        received = [("ingress", transfer("eu-west", "global", first, digest="ab" * 32))]
        desk.written(honest("eu-central", extra={entry: received}).report()).rename(peers[0])
        says = desk.says(peers=peers)
        assert says.pop("MATCHED eu-central")[0] == expected
        assert only(says) == {}


def test_a_peer_s_bundle_of_another_time(desk: Desk):
    """It says nothing of what passed in the time of this one."""
    other = desk.ledgers["eu-central"]
    report = replace(
        other.report(),
        from_ms=at_ms(2),
        to_ms=at_ms(9),
        start=0,
        leaves=[leaves.encode(leaf) for leaf in other.leaves[:11]],
        records=[record for record in other.records if record.leaf < 11],
    )
    earlier = desk.written(report).rename(desk.folder / "earlier.tar")
    says = desk.says(peers=[earlier, desk.folder / "us-east.tar"])
    assert only(says) == failed(unchecked=["MATCHED eu-central"])
    assert "another time" in says["MATCHED eu-central"][1]


def test_what_agrees_is_counted_without_what_lies_outside(desk: Desk):
    late = honest("eu-west", extra={79: [("egress", transfer("eu-central", "global", 150, digest="ab" * 32))]})
    says = desk.says(desk.written(late.report()), trust=trust())
    assert "12 records of copies that were sent to eu-central and 12 of copies" in says["MATCHED eu-central"][1]
    assert "1 lie outside" in says["MATCHED eu-central"][1]


def test_an_unreadable_record_that_the_ledger_holds(desk: Desk):
    for content in (
        {"what": "something"},
        transfer("us-east", "galactic", 50),
        transfer("us-east", "global", 5, last="x"),
    ):
        vague = honest("eu-west", extra={40: [("egress", content)]})
        says = desk.says(desk.written(vague.report()), trust=trust())
        assert only(says) == failed("RECORDS", unchecked=["IDENTITY", *ON_RECORDS])


def test_an_unreadable_record_is_not_made_clear_by_erasing_it(desk: Desk):
    vague = honest(
        "eu-west",
        extra={
            40: [("unreadable", {"kind": "passage", "unreadable": "ab"})],
            41: [("break-glass", glass("out", "us-east", 60))],
            60: [("erase", {"leaves": [40]})],
        },
    )
    says = desk.says(desk.written(erased_report(vague, 40)), trust=trust())
    assert only(says) == failed(unchecked=["IDENTITY", "REACH"])
    assert "1 records are unreadable" in says["REACH"][1]
    # And what is known besides is said all the same.
    assert "showed us-east data of eu-west" in says["REACH"][1]


def test_break_glass_is_said_aloud(desk: Desk):
    used = honest("eu-west", extra={40: [("break-glass", glass("out", "us-east", 60))]})
    says = desk.says(desk.written(used.report()), trust=trust())
    assert only(says) == failed(unchecked=["IDENTITY"])
    assert "1 break-glass" in says["REACH"][1]
    assert "showed us-east data of eu-west" in says["REACH"][1]


def glass(way, peer, revision, **other):
    """The record of a break-glass read of one side."""
    told = {"way": way, "peer": peer, "role": "approver", "reach": "home-only", "epoch": 1, "revision": revision}
    return {**told, "digest": "cd" * 32, "who_and_why": "ef" * 32, **other}


@pytest.mark.parametrize(
    ("at_home", "matched"),
    [
        ([glass("out", "eu-central", 60)], True),
        ([glass("out", "eu-central", 60)] * 2, True),
        ([], False),
        ([glass("out", "us-east", 60)], False),
        ([glass("in", "eu-central", 60)], False),
        ([glass("out", "eu-central", 60, digest="ab" * 32)], False),
        ([glass("out", "eu-central", 61)], False),
        ([glass("out", "eu-central", 60, epoch=2)], False),
    ],
)
def test_a_break_glass_read_that_the_home_does_not_name(desk: Desk, at_home, matched):
    home = honest("eu-west", extra={40: [("break-glass", each) for each in at_home]})
    peers = honest("eu-central", extra={41: [("break-glass", glass("in", "eu-west", 60))]})
    peer = desk.folder / "peer.tar"
    desk.written(peers.report()).rename(peer)
    says = desk.says(desk.written(home.report()), trust=trust(), peers=[peer, desk.folder / "us-east.tar"])
    assert only(says) == failed(*([] if matched else ["MATCHED eu-central"]), unchecked=["IDENTITY"])
    assert ("so do 1 break-glass reads" if matched else "no break-glass record") in says["MATCHED eu-central"][1]


def test_a_read_of_before_the_bundle_that_was_made_in_its_time(desk: Desk):
    peers = honest("eu-central", extra={41: [("break-glass", glass("in", "eu-west", 40))]})
    peer = desk.written(peers.report()).rename(desk.folder / "peer.tar")
    says = desk.says(peers=[peer, desk.folder / "us-east.tar"])
    assert says["MATCHED eu-central"][0] == NOT_CHECKED


def test_two_that_were_read_and_one_that_was_shown(desk: Desk):
    home = honest("eu-west", extra={40: [("break-glass", glass("out", "eu-central", 60))]})
    peers = honest("eu-central", extra={n: [("break-glass", glass("in", "eu-west", 60))] for n in (41, 42)})
    peer = desk.folder / "peer.tar"
    desk.written(peers.report()).rename(peer)
    says = desk.says(desk.written(home.report()), trust=trust(), peers=[peer, desk.folder / "us-east.tar"])
    assert "no break-glass record" in says["MATCHED eu-central"][1]


@pytest.mark.parametrize(
    "change", [{"way": "by"}, {"peer": 1}, {"reach": "galactic"}, {"epoch": "1"}, {"revision": -1}, {"digest": "x"}]
)
def test_a_break_glass_record_that_does_not_say_who_was_shown_what(desk: Desk, change):
    vague = honest("eu-west", extra={40: [("break-glass", {**glass("out", "us-east", 60), **change})]})
    says = desk.says(desk.written(vague.report()), trust=trust())
    assert only(says)["RECORDS"] == "FAIL"


def erased_report(ledger, at):
    """A report after the salt of leaf `at` was destroyed."""
    report = ledger.report()
    records = [Record(each.leaf, each.n, each.name, None) if each.leaf == at else each for each in report.records]
    return replace(report, records=records)


def test_what_was_erased_and_the_ledger_says_so(desk: Desk):
    ledger = honest("eu-west", extra={60: [("erase", {"leaves": [37]})]})
    says = desk.says(desk.written(erased_report(ledger, 37)), trust=trust(), peers=None)
    assert "ERASED" in says["RECORDS"][1]
    assert only(says) == failed(unchecked=["IDENTITY"])


def test_what_was_erased_before_it_was_written(desk: Desk):
    """An erasure destroys the salts of leaves that are there: it explains none that come later."""
    ledger = honest("eu-west", extra={30: [("erase", {"leaves": [37]})]})
    says = desk.says(desk.written(erased_report(ledger, 37)), trust=trust(), peers=None)
    assert only(says)["RECORDS"] == NOT_CHECKED


def test_what_left_cannot_be_called_erased(desk: Desk):
    ledger = honest("eu-west", extra={60: [("erase", {"leaves": [25]})]})
    says = desk.says(desk.written(erased_report(ledger, 25)), trust=trust(), peers=None)
    assert "never erased" in says["RECORDS"][1]
    assert only(says)["RECORDS"] == FAIL


# What is not there is NOT CHECKED, and never PASS.


def test_without_the_bundles_of_peers(desk: Desk):
    assert only(desk.says(peers=[])) == failed(unchecked=MATCHED)
    assert only(desk.says(peers=[desk.folder / "us-east.tar"])) == failed(unchecked=MATCHED[:1])


def test_bundles_that_are_no_peer_s(desk: Desk):
    both_peers = [desk.folder / "eu-central.tar", desk.folder / "us-east.tar"]
    assert only(desk.says(peers=[*both_peers, desk.folder / "eu-west.tar"])) == failed("MATCHED")
    assert only(desk.says(peers=[*both_peers, both_peers[0]])) == failed(MATCHED[0])
    broken = desk.folder / "broken.tar"
    broken.write_bytes(b"")
    assert only(desk.says(peers=[*both_peers, broken])) == failed("MATCHED")


def test_a_peer_s_bundle_that_does_not_hold(desk: Desk):
    tampered = desk.folder / "tampered.tar"
    desk.written(replace(desk.ledgers["eu-central"].report(), records=[])).rename(tampered)
    says = desk.says(peers=[tampered, desk.folder / "us-east.tar"])
    assert only(says) == failed("MATCHED eu-central")
    assert "RECORDS is FAIL" in says["MATCHED eu-central"][1]


def test_without_a_seed_or_a_kept_checkpoint(desk: Desk):
    assert only(desk.says(seed=None)) == failed(unchecked=["SAMPLES"])
    assert only(desk.says(trust=trust())) == failed(unchecked=["IDENTITY"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f'checkpoint_key = "{signer("acme/eu-west").verifier}"', failed(unchecked=["CHECKPOINT", *ON_CHECKPOINT])),
        (f'checkpoint_key = "{signer("acme/us-east").verifier}"', failed(unchecked=MATCHED[1:])),
        (f'cosign_key = "{witness_of("us-east").verifier}"', failed(unchecked=COSIGNED[1:])),
        (f'cosign_key = "{witness_of("eu-west").verifier}"', failed()),
    ],
)
def test_without_a_key(desk: Desk, line, expected):
    assert line in desk.trust
    assert only(desk.says(trust=desk.trust.replace(line, ""))) == expected


def test_without_the_key_of_a_node(desk: Desk):
    key = str(signer("acme/eu-west/n2").verifier)
    assert only(desk.says(trust=desk.trust.replace(key, ""))) == failed(unchecked=["SCAN n2"])
    more = desk.trust.replace("[regions.eu-west.nodes]", f'[regions.eu-west.nodes]\nn9 = "{signer("n9").verifier}"')
    assert only(desk.says(trust=more)) == failed(unchecked=["SCAN n9"])


def test_a_region_that_the_reviewer_does_not_know(desk: Desk):
    unknown = desk.trust.replace("[regions.eu-west", "[regions.eu-north").replace("known_checkpoint", "# ", 1)
    unknown = trust().replace("[regions.eu-west", "[regions.eu-north")
    says = desk.says(trust=unknown, peers=[])
    assert {status for name, (status, _) in says.items() if name != "FILES"} == {NOT_CHECKED}
    assert "MATCHED eu-north" in says


def test_a_range_to_the_end_of_the_ledger(desk: Desk):
    report = desk.ledger.report()
    lines = [leaves.encode(leaf) for leaf in desk.ledger.leaves[20:LAST]]
    records = [record for record in desk.ledger.records if 20 <= record.leaf < LAST]
    later = replace(report, leaves=lines, records=records, to_ms=BEGIN_MS + 10**9)
    says = desk.says(desk.written(later))
    assert only(says) == failed(unchecked=["RANGE"])
    assert "ask for a later checkpoint" in says["RANGE"][1]


RESTORED = {"after": 30, "after_ms": at_ms(38), "revision": 1000}


@pytest.mark.parametrize(("since", "told"), [(at_ms(38), True), (at_ms(10), True), (BEGIN_MS + 10**9, False)])
def test_a_time_that_the_region_forgot_is_not_covered(desk: Desk, since, told):
    again = honest("eu-west", extra={40: [("restore", {**RESTORED, "after_ms": since})]})
    bundle = desk.written(again.report())
    says = desk.says(bundle, trust=trust())
    assert only(says) == failed(unchecked=["IDENTITY", *(["RANGE"] if told else [])])
    assert not told or "began again from a backup" in says["RANGE"][1]
    assert "is forgotten, up to revision 1000" in bundle.read_bytes().decode("utf-8", "replace")


@pytest.mark.parametrize("wrong", [{"after_ms": "then"}, {"after": -1}, {"revision": None}])
def test_a_record_that_says_no_time_is_none_of_a_restoration(desk: Desk, wrong):
    vague = honest(
        "eu-west", extra={40: [("restore", {k: v for k, v in {**RESTORED, **wrong}.items() if v is not None})]}
    )
    assert desk.says(desk.written(vague.report()), trust=trust())["RECORDS"][0] == FAIL


def test_a_clock_that_was_far_ahead_once(desk: Desk):
    """Times never go back: what passed after that has the time of then, and is in no report of its own time."""
    ahead = honest("eu-west", clock=lambda entry: at_ms(entry) if entry < 40 else at_ms(entry) + 10**14)
    report = replace(
        ahead.report(),
        from_ms=at_ms(45),
        to_ms=at_ms(70),
        start=39,
        leaves=[leaves.encode(leaf) for leaf in ahead.leaves[39:41]],
        records=[],
    )
    says = desk.says(desk.written(report), trust=trust(), peers=[])
    assert only(says) == failed("RANGE", unchecked=["IDENTITY", *MATCHED])
    assert "still to come" in says["RANGE"][1]


def test_a_range_from_the_beginning(desk: Desk):
    ledger = desk.ledger
    report = replace(
        ledger.report(),
        from_ms=0,
        start=0,
        leaves=[leaves.encode(leaf) for leaf in ledger.leaves[:80]],
        records=[record for record in ledger.records if record.leaf < 80],
    )
    assert only(desk.says(desk.written(report))) == {}


def test_tampering_with_nothing_changes_nothing(desk: Desk):
    assert only(desk.says(packed(desk.files, desk.folder / "again.tar"))) == {}
