"""Bundles made to hurt the program that reads them: it answers with a claim, in bounded room, and writes nothing."""

import io
import json
import tarfile
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.ledger import notes, verify
from tests.ledger.material import Desk, archived, honest, packed, signer, transfer, trust

NOTHING = {"NOT CHECKED"}


def info_of(name, content=b"", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    return info


def header(name, content=b"", kind=tarfile.USTAR_FORMAT, **changes):
    return info_of(name, content, **changes).tobuf(kind)


def block(content):
    return content + bytes(-len(content) % 512)


END = bytes(1024)


def with_first(desk, member):
    return member + (desk.folder / "eu-west.tar").read_bytes()


HOSTILE = {
    "nothing": ("cut short", lambda desk: b""),
    "no archive": ("plain file", lambda desk: b"PK\x03\x04" + bytes(2000)),
    "an empty archive": ("manifest.json is missing", lambda desk: END),
    "one block": ("end", lambda desk: bytes(512)),
    "a huge file that is not there": ("cut short", lambda desk: header("leaves.jsonl", size=(1 << 33) - 1) + END),
    "a note of a gigabyte": ("too large", lambda desk: header("checkpoints/last.note", size=1 << 30) + END),
    "a size in base 256": (
        "damaged",
        lambda desk: resummed(header("leaves.jsonl"), 124, (1 << 95 | 1 << 40).to_bytes(12, "big")) + END,
    ),
    "a negative size": ("damaged", lambda desk: resummed(header("statement.md"), 124, b"-0000000001\0") + END),
    "an absolute path": ("no place", lambda desk: with_first(desk, header("/etc/passwd"))),
    "a path upwards": ("no place", lambda desk: with_first(desk, header("../../statement.md"))),
    "a path upwards in a known folder": ("no place", lambda desk: with_first(desk, header("scans/../../x.note"))),
    "a backslash": ("no place", lambda desk: with_first(desk, header("scans\\n1.note"))),
    "a name after a zero": ("plain file", lambda desk: with_first(desk, resummed(header("scans/n9.note"), 20, b"x"))),
    "a prefix": ("plain file", lambda desk: with_first(desk, resummed(header("scans/n9.note"), 345, b"/etc"))),
    "a link": (
        "plain file",
        lambda desk: with_first(desk, header("scans/n9.note", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    ),
    "a hard link": (
        "plain file",
        lambda desk: with_first(desk, header("scans/n9.note", type=tarfile.LNKTYPE, linkname="x")),
    ),
    "a folder": ("plain file", lambda desk: with_first(desk, header("scans", type=tarfile.DIRTYPE))),
    "a device": ("plain file", lambda desk: with_first(desk, header("scans/n9.note", type=tarfile.CHRTYPE))),
    "a sparse file": (
        "plain file",
        lambda desk: with_first(desk, header("scans/n9.note", type=tarfile.GNUTYPE_SPARSE)),
    ),
    "an extended header": (
        "plain file",
        lambda desk: with_first(
            desk, header("scans/n9.note", kind=tarfile.PAX_FORMAT, pax_headers={"path": "/etc/passwd"})
        ),
    ),
    "a file twice": ("twice", lambda desk: with_first(desk, header("statement.md", b"x") + block(b"x"))),
    "too many files": (
        "too many",
        lambda desk: b"".join(header(f"scans/n{number}.note") for number in range(1100)) + END,
    ),
    "a damaged header": (
        "plain file",
        lambda desk: (desk.folder / "eu-west.tar").read_bytes().replace(b"ustar", b"tsar ", 1),
    ),
    "a header whose sum is wrong": (
        "damaged",
        lambda desk: (desk.folder / "eu-west.tar").read_bytes().replace(b"0000644", b"0000645", 1),
    ),
    "something after the end": ("after the end", lambda desk: (desk.folder / "eu-west.tar").read_bytes()[:-1] + b"x"),
    "zeros without end": ("after the end", lambda desk: (desk.folder / "eu-west.tar").read_bytes() + bytes(20_480)),
    "a file too many": ("differ", lambda desk: with_first(desk, header("scans/n9.note"))),
}


def resummed(packed_header, at, content):
    """A header with bytes changed and a checksum that fits."""
    made = bytearray(packed_header)
    made[at : at + len(content)] = content
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_bundle_is_said_to_be_none(desk: Desk, name):
    file = desk.folder / "hostile.tar"
    reason, content = HOSTILE[name]
    file.write_bytes(content(desk))
    says = desk.says(file)
    assert says["FILES"][0] == "FAIL"
    assert reason in says["FILES"][1]
    if name != "a file too many":
        assert {status for claim, (status, _) in says.items() if claim != "FILES"} == NOTHING


def test_a_file_too_many_turns_nothing_else(desk: Desk):
    file = desk.folder / "hostile.tar"
    file.write_bytes(HOSTILE["a file too many"][1](desk))
    assert [claim for claim, (status, _) in desk.says(file).items() if status != "PASS"] == ["FILES"]


@pytest.mark.parametrize("part", range(0, 100, 3))
def test_a_bundle_cut_short(desk: Desk, part):
    # What is behind the mark of the end is only there to fill a record.
    whole = (desk.folder / "eu-west.tar").read_bytes().rstrip(b"\0") + bytes(512)
    file = desk.folder / "cut.tar"
    file.write_bytes(whole[: len(whole) * part // 100])
    says = desk.says(file)
    assert says["FILES"][0] == "FAIL"
    assert {status for claim, (status, _) in says.items() if claim != "FILES"} == NOTHING


DEEP = [b"[" * 1_000_000, b'{"a":' * 150_000, b"[" * 5000 + b"]" * 5000, b'{"a":' * 900 + b"1" + b"}" * 900]
ODD = [
    b"",
    b"null",
    b"7",
    b"[]",
    b"{}",
    b'"x"',
    b"\xff",
    b"1e999",
    b"NaN",
    b"9" * 5000,
    b'[{"old":[],"new":{}}]',
    b"[[]]",
]
PARTS = ["manifest.json", "proofs/frontier.json", "proofs/consistency.json", "records.jsonl", "leaves.jsonl"]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("content", [*DEEP, *ODD], ids=range(len(DEEP) + len(ODD)))
def test_odd_and_deep_json(desk: Desk, name, content):
    if name == "manifest.json":
        file = archived({**desk.files, name: content}, desk.folder / "odd.tar")
    else:
        file = packed({**desk.files, name: content + b"\n"}, desk.folder / "odd.tar")
    assert "FAIL" in {status for status, _ in desk.says(file).values()}


MANIFESTS = [
    ("fleet", "\x1b[31m"),
    ("fleet", 7),
    ("region", "eu-west\n"),
    ("region", "../x"),
    ("asked", {"from_ms": -1, "to_ms": 5}),
    ("asked", {"from_ms": True, "to_ms": 5}),
    ("asked", {"from_ms": 6, "to_ms": 5}),
    ("asked", {"from_ms": 1, "to_ms": 1 << 70}),
    ("asked", []),
    ("leaves", {"from": 5, "to": 5}),
    ("leaves", {"from": 0, "to": "5"}),
    ("partitions", [{"id": "x", "reach": "everywhere"}]),
    ("partitions", [{"id": [], "reach": "global"}]),
    ("partitions", [{"id": 7, "reach": "global"}]),
    ("partitions", 7),
    ("partitions", [{"id": "x", "home": "eu-west", "reach": "global", "epoch": epoch} for epoch in (1, 2)]),
    ("files", {"name": "x"}),
    ("files", [{"name": 5, "sha256": "x"}]),
    ("files", [{"name": "statement.md", "sha256": []}]),
    ("files", [{"name": "statement.md", "sha256": "x"}] * 2),
    ("format", "controlplane-bundle/2"),
]


@pytest.mark.parametrize(("name", "value"), MANIFESTS)
def test_a_manifest_that_says_something_else(desk: Desk, name, value):
    told = {**json.loads(desk.files["manifest.json"]), name: value}
    says = desk.says(archived({**desk.files, "manifest.json": json.dumps(told).encode()}, desk.folder / "odd.tar"))
    assert says["FILES"][0] == "FAIL"
    assert {status for claim, (status, _) in says.items() if claim != "FILES"} == NOTHING


TWICE = [
    ("records.jsonl", b'"content":{', b'"content":{"reach":"home-only",'),
    ("records.jsonl", b'"leaf":25,', b'"leaf":24,"leaf":25,'),
    ("scans/n1.note", b'"foreign":', b'"foreign":3,"foreign":'),
    ("proofs/frontier.json", b'"size"', b'"size": 7, "size"'),
    ("manifest.json", b'"region"', b'"region": "us-east", "region"'),
    ("manifest.json", b"{", b"\xef\xbb\xbf{"),
]


@pytest.mark.parametrize(("name", "old", "new"), TWICE)
def test_json_that_others_might_read_otherwise(desk: Desk, name, old, new):
    """Of two values of one name, some programs believe the first, and people the one that they see."""
    content = desk.files[name]
    assert old in content
    content = content.replace(old, new, 1)
    if name.endswith(".note"):
        text = content.decode().rpartition("\n\n")[0] + "\n"
        content = notes.write(text, signer("acme/eu-west/n1").line(text))
    make = archived if name == "manifest.json" else packed
    says = desk.says(make({**desk.files, name: content}, desk.folder / "odd.tar"))
    assert "FAIL" in {status for status, _ in says.values()}


RECORDS = [
    {"leaf": 25, "n": 0},
    {"leaf": 25, "n": 0, "class": [], "key": [], "content": []},
    {"leaf": 25, "n": 0, "class": "egress", "erased": 1},
    {"leaf": 25, "n": 0, "class": "egress", "erased": True, "key": "00" * 32, "content": {}},
    {"leaf": 25, "n": 0, "class": "egress", "key": "00" * 32, "content": {"a": "\ud800"}},
    {"leaf": 25, "n": 0, "class": "egress", "key": "00" * 32, "content": {"a": [[[]]]}},
    {"leaf": True, "n": 0},
    {"leaf": 1 << 80, "n": 0},
    {"leaf": -1, "n": 0},
]


@pytest.mark.parametrize("record", RECORDS)
def test_records_that_say_something_else(desk: Desk, record):
    _, *rest = desk.files["records.jsonl"].splitlines(keepends=True)
    line = json.dumps(record).encode() + b"\n"
    says = desk.says(packed({**desk.files, "records.jsonl": b"".join([line, *rest])}, desk.folder / "odd.tar"))
    assert says["RECORDS"][0] == "FAIL"
    assert says["LEAVES"][0] == "PASS"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_anywhere_get_an_answer(desk: Desk, data):
    whole = bytearray((desk.folder / "eu-west.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        some = data.draw(st.binary(min_size=1, max_size=8))
        whole[at : at + len(some)] = some
    file = desk.folder / "bytes.tar"
    file.write_bytes(whole)
    statuses = {status for status, _ in desk.says(file, peers=[]).values()}
    assert statuses <= {"PASS", "FAIL", "NOT CHECKED"}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_evidence_is_seen(desk: Desk, data):
    name = data.draw(st.sampled_from(sorted(set(desk.files) - {"manifest.json", "statement.md", "report.html"})))
    content = bytearray(desk.files[name])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    says = desk.says(packed({**desk.files, name: bytes(content)}, desk.folder / "change.tar"))
    if {status for status, _ in says.values()} == {"PASS"}:
        # JSON that says the same: spaces, or the case of nothing that is hashed.
        assert name in ("records.jsonl", "proofs/consistency.json", "proofs/frontier.json")
        assert at_rest(name, content) == at_rest(name, desk.files[name])


def at_rest(name, content):
    if name == "records.jsonl":
        return [told(json.loads(line)) for line in bytes(content).splitlines()]
    read = json.loads(bytes(content))
    return read if isinstance(read, dict) else [each["hashes"] for each in read if each["old"] in (10, 15, 70, 80)]


def told(record):
    return {name: record.get(name) for name in ("leaf", "n", "class", "key", "content", "erased")}


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ("TRANSFERS_KEPT_MAX", {"MATCHED eu-central": "NOT CHECKED", "MATCHED us-east": "NOT CHECKED"}),
        ("WAYS_MAX", {"RECORDS": "FAIL"}),
        ("RECORDS_MAX", {"RECORDS": "FAIL"}),
        ("FILES_MAX", {"FILES": "FAIL"}),
        ("SIGNATURES_MAX", {"CHECKPOINT": "FAIL"}),
    ],
)
def test_bounds(desk: Desk, monkeypatch, bound, expected):
    monkeypatch.setattr(verify, bound, 1)
    says = desk.says()
    assert {claim: says[claim][0] for claim in expected} == expected


LONG = "x" * 8000
LONG_NAMES = [
    ("egress", {**transfer("us-east", "global", 50), "peer": LONG}),
    ("ingress", {**transfer("us-east", "global", 50), "partition": LONG}),
    ("egress", {**transfer("us-east", "global", 50), "door": LONG}),
    ("grant", {"peer": LONG, "reach": "global", "open": True}),
    ("break-glass", {"way": "in", "peer": LONG, "reach": "global", "epoch": 1, "revision": 1, "digest": "ab" * 32}),
    (
        "move",
        {"partition": LONG, "from": "a", "to": "b", "phase": "left", "former_epoch": 1, "epoch": 2},
    ),
]


@pytest.mark.parametrize(("name", "content"), LONG_NAMES)
def test_names_are_kept_and_so_are_short(desk: Desk, name, content):
    """A region could sign a hundred thousand of them, each as long as a record."""
    says = desk.says(desk.written(honest("eu-west", extra={40: [(name, content)]}).report()), trust=trust())
    assert says["RECORDS"][0] == "FAIL"


def test_what_is_printed_cannot_steer_a_terminal(desk: Desk, capsys):
    file = packed({**desk.files, "manifest.json": desk.files["manifest.json"]}, desk.folder / "printed.tar")
    trusted = desk.folder / "printed.toml"
    trusted.write_text(trust())
    odd = io.BytesIO()
    with tarfile.open(fileobj=odd, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info_of("\x1b[2J\u202e.md"))
    steering = desk.folder / "steering.tar"
    steering.write_bytes(odd.getvalue())
    for each in (file, steering):
        verify.main([str(each), "--trust", str(trusted), "--peer-bundle", str(steering)])
        printed = capsys.readouterr().out
        assert "\x1b" not in printed
        assert "\u202e" not in printed
        assert "FAIL" in printed


def test_sizes_are_looked_at_before_anything_is_held(desk: Desk):
    file = desk.folder / "huge.tar"
    with file.open("wb") as out:
        out.write(header("checkpoints/last.note", size=1 << 32))
        out.truncate(1 << 33)
    tracemalloc.start()
    says = desk.says(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert says["FILES"][0] == "FAIL"
    assert peak < 64 << 20
    file.unlink()
