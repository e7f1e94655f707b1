"""Bundles as files: the same bytes for the same evidence, streamed, and nothing in them that runs or fetches."""

import json
import re
import tarfile
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from controlplane.ledger import bundle, leaves
from controlplane.ledger.bundle import Partition, Record
from controlplane.ledger.leaves import Leaf
from tests.ledger.material import LAST, Desk, honest, secret, signer


def test_the_same_evidence_is_the_same_bytes(desk: Desk):
    again = desk.written(honest("eu-west").report())
    assert again.read_bytes() == (desk.folder / "eu-west.tar").read_bytes()
    with tarfile.open(again) as tar:
        infos = tar.getmembers()
    assert [info.name for info in infos][:3] == ["statement.md", "manifest.json", "report.html"]
    assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in infos} == {(0, 0, 0, "", 0o644)}


def test_the_statement_says_what_is_not_proven(desk: Desk):
    says = desk.files["statement.md"].decode()
    for word in (
        *("physically", "by hand", "outside of this system", "guess", "18 egress", "eu-west"),
        *("by the clock", "put into calls", "were answered", "was killed", "but for break-glass reads", "shared key"),
    ):
        assert word in says
        assert word in desk.files["report.html"].decode()


def test_the_statement_tells_of_break_glass_reads_where_there_were_any(desk: Desk):
    assert b"Break-glass" not in desk.files["statement.md"]
    told = {
        "peer": "us-east",
        "role": "approver",
        "reach": "home-only",
        "epoch": 1,
        "revision": 60,
        "digest": "cd" * 32,
    }
    extra = {n: [("break-glass", {**told, "way": way})] for n, way in ((40, "out"), (41, "out"), (42, "in"))}
    report = honest("eu-west", extra=extra).report()
    records = [Record(each.leaf, each.n, each.name, None) if each.leaf == 41 else each for each in report.records]
    with tarfile.open(desk.written(replace(report, records=records))) as tar:
        says = tar.extractfile("statement.md").read().decode()
    assert "- Once, approver of us-east was shown home-only data of eu-west." in says
    assert "- Once, approver of eu-west was shown home-only data of us-east." in says
    assert "- Once, and the record of it was erased or cannot be read." in says


class Page(HTMLParser):
    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), set(), []
        self.feed(content.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_that_fetches_and_runs_nothing(desk: Desk):
    evil = "<script src=//evil.example></script>'\"&"
    extra = {40: [("denial", {"door": evil, "count": 1})]}
    report = replace(
        honest("eu-west", extra=extra).report(),
        partitions=[Partition(evil, "eu-west", "global", "prod", 1)],
        jurisdiction=evil,
    )
    file = desk.written(report)
    with tarfile.open(file) as tar:
        content = tar.extractfile("report.html").read()
    page = Page(content)
    assert page.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "p",
        "ul",
        "li",
        *["table", "tr", "th", "td"],
    }
    assert page.attributes <= {"lang", "charset", "http-equiv", "content"}
    assert "default-src 'none'" in content.decode()
    assert not re.search(rb"url\(|@import|https?:|//[a-z]", content.replace(evil.encode(), b"").replace(b"//evil", b""))
    assert any(evil in text for text in page.texts)


def test_evidence_that_has_no_place(desk: Desk):
    report = desk.ledger.report()
    first, second, *rest = report.records
    for changed in (
        replace(report, records=[second, first, *rest]),
        replace(report, records=[first, first]),
        replace(report, leaves=[b"not a leaf"]),
        replace(report, records=[Record(20, 0, "denial", secret("x"), {"x": 0.5})]),
        replace(report, last=b"not a note"),
        replace(report, scans={"n" * 100: b""}),
    ):
        with pytest.raises(ValueError, match=r"leaf|record|note|long"):
            bundle.write(changed, desk.folder / "refused.tar")
        assert not (desk.folder / "refused.tar").exists()
        assert not (desk.folder / "refused.tar.unfinished").exists()


def test_the_manifest_counts(desk: Desk):
    told = bundle.write(desk.ledger.report(), desk.folder / "counted.tar")
    assert told == json.loads(desk.files["manifest.json"])
    assert told["counts"] == {
        "leaves": 60,
        "records": 39,
        "classes": {"denial": 2, "egress": 18, "ingress": 18, "switch": 1},
        "erased": 0,
    }


def test_leaves_stream(desk: Desk):
    """Twenty thousand leaves, made and read again in far less room than they take."""
    count = 20_000
    frontier, nodes = bundle.merkle.Frontier(), {}

    def line(index):
        return leaves.encode(Leaf(index, index, 1000 + index, b"h" * 32, b"e" * 32))

    for index in range(count):
        for level, at, value in frontier.append(bundle.merkle.leaf_hash(line(index))):
            nodes[level, at] = value
    head = replace(desk.ledger.head(LAST), size=count, root=frontier.root(), revision=count - 1, hash=b"h" * 32)
    note = bundle.checkpoint.sign(head, signer("acme/eu-west"))
    report = replace(
        desk.ledger.report(),
        first=note,
        last=note,
        start=0,
        records=[],
        cosigned={},
        known=[],
        from_ms=0,
        leaves=(line(index) for index in range(count)),
        node=lambda level, at: nodes[level, at],
    )
    tracemalloc.start()
    file = desk.written(report)
    says = desk.says(file, peers=[])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert says["LEAVES"][0] == says["SAMPLES"][0] == "PASS"
    assert file.stat().st_size > 4 << 20
    assert peak < 3 << 20
