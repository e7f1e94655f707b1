"""Region files: what a region is made of, as data.

A region file is TOML, read whole before anything starts. Every problem in it is reported, not just the first,
each with the file, the key and what to write instead; an unknown key is a problem, because it is usually a
misspelt one. Nothing in it is executed, included or taken from the environment.

Membership is fixed: the nodes of a region are those of its file, one, three or five. The engine's own
membership change loses acknowledged writes, so there is none.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from controlplane import limits
from controlplane.addresses import is_every
from controlplane.errors import Invalid
from controlplane.geography import SHARED, Atlas, shareable
from controlplane.identity import ENVIRONMENTS, PEOPLE, Identity, name_is_valid, word_is_valid
from controlplane.v1 import records_pb2

FORMAT: Final = 1
KINDS: Final = ("flag", "switch", "workflow", "election", "stop")
REACHES: Final = {
    "home-only": records_pb2.HOME_ONLY,
    "jurisdiction": records_pb2.JURISDICTION,
    "global": records_pb2.GLOBAL,
}
MEMBERSHIPS: Final = (1, 3, 5)
FIRST_EPOCH: Final = 1

_FILE_BYTES_MAX = 1 << 20
_PARTITIONS_MAX = 256
_ADMINISTRATORS_MAX = 64
_REGIONS_MAX = 64
_ENDPOINTS_MAX = 16
_MIB = 1 << 20
_PARTITION_ID = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+", re.ASCII)
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})", re.ASCII)


class ConfigError(Exception):
    """A region file cannot be used; `problems` says everything that is wrong with it."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node: where clients, peers and metrics scrapers find it, and its certificate and key."""

    name: str
    address: str
    peer_address: str
    metrics_address: str
    certificate: Path
    key: Path
    listen: str = ""
    peer_listen: str = ""
    """Where it listens for clients and for the other nodes, if that is not where those find it."""

    @property
    def listens(self) -> tuple[str, str]:
        """Where it listens for clients, and for the other nodes."""
        return self.listen or self.address, self.peer_listen or self.peer_address

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it is found: by clients, by the other nodes, by scrapers of metrics."""
        return self.address, self.peer_address, self.metrics_address

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names and addresses under which others dial this node, without ports."""
        return tuple(sorted({split_address(self.address)[0], split_address(self.peer_address)[0]}))


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast a silent leader is replaced: raise all three together for long links."""

    election_min_ms: int = 150
    election_max_ms: int = 300
    beat_ms: int = 30


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """A region that this one federates with: where its nodes listen, which of them count, what may leave for it."""

    region: str
    endpoints: tuple[str, ...]
    certificate_names: frozenset[str]
    """Of the nodes of that region whose certificates are accepted."""
    may_leave: frozenset[records_pb2.Reach]
    """Reaches of this region's partitions that may be sent there. Never wider than the law."""
    ledger_key: Path | None = None
    """The public key that signs that region's ledger (PEM). Without it, its checkpoints are not cosigned here."""
    break_glass: frozenset[str] = frozenset()
    """Roles of people of that region who may, in an emergency, read what is pinned here."""


@dataclass(frozen=True, slots=True)
class RegionConfig:
    """A region file that has passed every check."""

    file: Path
    fleet: str
    name: str
    jurisdiction: str
    authority: Path
    nodes: tuple[NodeConfig, ...]
    partitions: tuple[records_pb2.Partition, ...]
    administrators: tuple[Identity, ...]
    timing: Timing
    quota_bytes: int
    ballast_bytes: int
    peers: tuple[PeerConfig, ...] = ()
    jurisdictions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Jurisdiction → its regions, of the whole fleet. Empty for a region that knows no other."""
    ledger_key: Path | None = None
    """The key that signs this region's ledger (Ed25519, PEM), the same on all nodes. Without it nothing is signed."""

    @property
    def atlas(self) -> Atlas:
        """What `geography` decides by."""
        regions = {region: name for name, regions in self.jurisdictions.items() for region in regions}
        may_leave = {peer.region: peer.may_leave for peer in self.peers}
        return Atlas(self.fleet, self.name, {**regions, self.name: self.jurisdiction}, may_leave)

    def peer(self, region: str) -> PeerConfig | None:
        """Return what the file says of the peer `region`, if it is one."""
        return next((peer for peer in self.peers if peer.region == region), None)

    def node(self, name: str) -> NodeConfig:
        """Return the node called `name`; raises `ConfigError` naming those there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise ConfigError([f"{self.file}: there is no node {name!r}; the nodes are {names}"])


def load(file: Path) -> RegionConfig:
    """Read and check the region file `file`; raises `ConfigError` with every problem found."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_FILE_BYTES_MAX + 1)
        if len(content) > _FILE_BYTES_MAX:
            _stop(file, f"is larger than {_FILE_BYTES_MAX} bytes; a region file is a page of text")
        return parse(content.decode("utf-8"), file)
    except OSError as error:
        _stop(file, f"cannot be read ({error.strerror}); give the path of a region file", error)
    except UnicodeDecodeError as error:
        _stop(file, "is not UTF-8 text; save it as UTF-8", error)


def parse(text: str, file: Path) -> RegionConfig:
    """Check `text` as the content of `file`, to whose folder relative paths refer; raises `ConfigError`."""
    try:
        table = tomllib.loads(text)
    # Numbers of thousands of digits are a plain ValueError, of which TOMLDecodeError is one kind.
    except (ValueError, RecursionError) as error:
        _stop(file, f"is not TOML: {error}", error)
    problems: list[str] = []
    region = _region(_Table(table, "", file, problems), file)
    if problems:
        raise ConfigError(problems)
    return region


def overridden(
    region: RegionConfig, name: str, authority: Path | None, certificate: Path | None, key: Path | None
) -> RegionConfig:
    """Return `region` with other certificate files for node `name`; None keeps what the file says."""
    mine = region.node(name)
    mine = replace(mine, certificate=certificate or mine.certificate, key=key or mine.key)
    nodes = tuple(mine if node.name == name else node for node in region.nodes)
    return replace(region, nodes=nodes, authority=authority or region.authority)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; an IPv6 host loses its brackets. Raises ValueError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not int(match["port"]) < 1 << 16:
        raise ValueError(f"{address!r} is not host:port")
    return match["host"].strip("[]"), int(match["port"])


def _stop(file: Path, problem: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigError([f"{file}: {problem}"]) from cause


class _Table:
    """One table of the file. What cannot be used is noted as a problem and replaced by something harmless."""

    def __init__(self, values: dict[str, Any], where: str, file: Path, problems: list[str]) -> None:
        self._values = values
        self._where = where
        self.file = file
        self._problems = problems

    def problem(self, key: str, text: str) -> None:
        self._problems.append(f"{self.file}: {self._where}{key}: {text}")

    def text(self, key: str, valid: Callable[[str], bool], wanted: str, default: str | None = None) -> str:
        value = self._values.pop(key, default)
        if value is None:
            self.problem(key, f"is missing; write {wanted}")
        elif not isinstance(value, str) or not valid(value):
            self.problem(key, f"is {_shown(value)}; write {wanted}")
        else:
            return value
        return ""

    def has(self, key: str) -> bool:
        return key in self._values

    def integer(self, key: str, lowest: int, highest: int, default: int | None = None) -> int:
        value = self._values.pop(key, default)
        wanted = f"a whole number from {lowest} to {highest}"
        if value is None:
            self.problem(key, f"is missing; write {wanted}")
        elif not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            self.problem(key, f"is {_shown(value)}; write {wanted}")
        else:
            return value
        return lowest

    def texts(
        self, key: str, valid: Callable[[str], bool], wanted: str, most: int, least: int | None = None
    ) -> tuple[str, ...]:
        """From `least` to `most` texts; without `least` the key may be left out."""
        values = self._values.pop(key, [] if least is None else None)
        if values is None:
            self.problem(key, f"is missing; write a list of {wanted}")
            return ()
        if not isinstance(values, list) or not (least or 0) <= len(values) <= most:
            bounds = f"from {least} to {most}" if least else f"at most {most}"
            self.problem(key, f"is {_shown(values)}; write a list of {wanted}, {bounds}")
            return ()
        for value in values:
            if not isinstance(value, str) or not valid(value):
                self.problem(key, f"holds {_shown(value)}; write {wanted}")
        return tuple(value for value in values if isinstance(value, str) and valid(value))

    def table(self, key: str) -> _Table:
        value = self._values.pop(key, {})
        if not isinstance(value, dict):
            self.problem(key, f"is {_shown(value)}; write it as a table: [{key}]")
            value = {}
        return _Table(value, f"{self._where}{key}.", self.file, self._problems)

    def tables(self, key: str, most: int) -> list[_Table]:
        values = self._values.pop(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            self.problem(key, f"is {_shown(values)}; write each as a table of its own: [[{key}]]")
            return []
        if len(values) > most:
            self.problem(key, f"occurs {len(values)} times; at most {most} are possible")
        return [
            _Table(value, f"{key}[{number}].", self.file, self._problems)
            for number, value in enumerate(values[:most], start=1)
        ]

    def names(self) -> tuple[str, ...]:
        """Its keys, where they are names that the file gives."""
        return tuple(self._values)

    def finish(self, known: str) -> None:
        for key in self._values:
            self.problem(key, f"is not known; the keys here are {known}")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "too long or too deep to be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def _word(table: _Table, key: str) -> str:
    return table.text(key, word_is_valid, 'a lower-case word of letters, digits and "-"')


def _leads_somewhere(text: str) -> bool:
    return _address_is_valid(text) and not is_every(split_address(text)[0])


def _address_is_valid(text: str) -> bool:
    try:
        return bool(split_address(text)[0])
    except ValueError:
        return False


def _region(table: _Table, file: Path) -> RegionConfig:
    table.integer("format", FORMAT, FORMAT)
    fleet, name, jurisdiction = _word(table, "fleet"), _word(table, "region"), _word(table, "jurisdiction")
    nodes = _nodes(table, file)
    jurisdictions = _jurisdictions(table, name, jurisdiction)
    region = RegionConfig(
        file=file,
        fleet=fleet,
        name=name,
        jurisdiction=jurisdiction,
        authority=_file(table, "authority", "the path of the certificate authority's certificate", file),
        nodes=nodes,
        partitions=_partitions(table, name, shares=bool(jurisdictions)),
        administrators=_administrators(table, fleet, name),
        timing=_timing(table.table("timing"), table),
        quota_bytes=table.integer("quota_bytes", 16 * _MIB, 1 << 44, limits.QUOTA_BYTES),
        ballast_bytes=table.integer("ballast_bytes", 0, 1 << 40, 64 * _MIB),
        peers=_peers(table, name, jurisdiction, jurisdictions, nodes),
        jurisdictions=jurisdictions,
        ledger_key=_optional_file(table, "ledger_key", "the path of the key that signs the ledger", file),
    )
    table.finish(
        "format, fleet, region, jurisdiction, authority, ledger_key, administrators, quota_bytes, ballast_bytes, "
        "[timing], [[node]], [[partition]], [jurisdictions] and [[peer]]"
    )
    return region


def _jurisdictions(table: _Table, region: str, own: str) -> dict[str, frozenset[str]]:
    """All jurisdictions of the fleet. Whoever is in none, or in two, could be sent what must not reach it."""
    found: dict[str, frozenset[str]] = {}
    where: dict[str, str] = {}
    each = table.table("jurisdictions")
    for name in each.names():
        if not word_is_valid(name):
            each.problem(name, 'names a jurisdiction; write a lower-case word of letters, digits and "-"')
        regions = each.texts(name, word_is_valid, "names of regions", _REGIONS_MAX, 1)
        for listed in regions:
            if listed in where:
                each.problem(name, f"{listed!r} is in {where[listed]!r} already; a region has one jurisdiction")
            where.setdefault(listed, name)
        found[name] = frozenset(regions)
    if not found or not region or not own:
        return found
    if region not in where:
        table.problem("jurisdictions", f"does not name this region; add {region!r} to {own!r}")
    elif where[region] != own:
        table.problem("jurisdiction", f"is {own!r}, but [jurisdictions] has {region!r} in {where[region]!r}")
    return found


def _peers(
    table: _Table,
    region: str,
    own: str,
    jurisdictions: Mapping[str, frozenset[str]],
    nodes: Iterable[NodeConfig],
) -> tuple[PeerConfig, ...]:
    taken = {_dialled(each): "one of this region's own" for node in nodes for each in node.addresses}
    peers = []
    for each in table.tables("peer", _REGIONS_MAX):
        peer = _peer(each)
        theirs = next((name for name, regions in jurisdictions.items() if peer.region in regions), None)
        if peer.region == region and region:
            each.problem("region", "is this region itself; a peer is another region")
        elif peer.region and theirs is None:
            each.problem("region", f"{peer.region!r} is in no jurisdiction; add it to one of [jurisdictions]")
        elif theirs is not None and not peer.may_leave <= frozenset(shareable(own, theirs)):
            each.problem("may_leave", f'holds "jurisdiction", but {peer.region!r} is in {theirs!r}, not in {own!r}')
        for endpoint in peer.endpoints:
            if endpoint_of := taken.get(_dialled(endpoint)):
                each.problem("endpoints", f"{endpoint!r} is {endpoint_of}; write where the nodes of that region listen")
            taken.setdefault(_dialled(endpoint), f"one of {peer.region!r} already")
        peers.append(peer)
    _unique(table, "peer", "region", (peer.region for peer in peers))
    return tuple(peers)


def _peer(table: _Table) -> PeerConfig:
    def endpoint_is_valid(text: str) -> bool:
        return _address_is_valid(text) and split_address(text)[1] != 0

    reaches = {word: reach for word, reach in REACHES.items() if reach in SHARED}
    endpoints = 'hosts and ports where clients reach its nodes, like "n1.example.org:7443"'
    peer = PeerConfig(
        region=_word(table, "region"),
        endpoints=table.texts("endpoints", endpoint_is_valid, endpoints, _ENDPOINTS_MAX, 1),
        certificate_names=frozenset(
            table.texts("certificate_names", name_is_valid, "names of its nodes", _ENDPOINTS_MAX, 1)
        ),
        may_leave=frozenset(
            reaches[word]
            for word in table.texts(
                "may_leave",
                reaches.__contains__,
                f'{_one_of(reaches)} (what is "home-only" never leaves; [] if nothing may)',
                len(reaches),
                0,
            )
        ),
        ledger_key=_optional_file(table, "ledger_key", "the path of the public key that signs its ledger", table.file),
        break_glass=frozenset(
            table.texts("break_glass", PEOPLE.__contains__, f"{_one_of(sorted(PEOPLE))} (people alone)", len(PEOPLE))
        ),
    )
    table.finish("region, endpoints, certificate_names, may_leave, ledger_key and break_glass")
    return peer


def _dialled(address: str) -> tuple[str, int] | None:
    """What tells two addresses apart; None for none."""
    try:
        host, port = split_address(address)
    except ValueError:
        return None
    return host.lower(), port


def _file(table: _Table, key: str, wanted: str, file: Path) -> Path:
    return file.parent / table.text(key, lambda text: 0 < len(text) < 4096 and "\0" not in text, wanted)


def _optional_file(table: _Table, key: str, wanted: str, file: Path) -> Path | None:
    return _file(table, key, wanted, file) if table.has(key) else None


def _nodes(table: _Table, file: Path) -> tuple[NodeConfig, ...]:
    nodes = tuple(_node(each, file) for each in table.tables("node", max(MEMBERSHIPS) + 1))
    if len(nodes) not in MEMBERSHIPS:
        table.problem(
            "node",
            f"there are {len(nodes)}; a region has 1, 3 or 5 nodes (an even number survives no more "
            "losses than the odd one below it). Write one [[node]] table for each",
        )
    _unique(table, "node", "name", (node.name for node in nodes))
    addresses = [address for node in nodes for address in (node.address, node.peer_address)]
    addresses += [node.metrics_address for node in nodes if not node.metrics_address.endswith(":0")]
    _unique(table, "node", "address", addresses)
    return nodes


def _node(table: _Table, file: Path) -> NodeConfig:
    host_port = 'a host and a port, like "127.0.0.1:7001"'
    found = 'a host and a port that others can go to, like "n1.example.org:7001" ("listen" may be any address)'
    name = table.text("name", name_is_valid, "a name of letters, digits and . _ -")
    node = NodeConfig(
        name=name,
        address=table.text("address", _leads_somewhere, found),
        peer_address=table.text("peer_address", _leads_somewhere, found),
        metrics_address=table.text("metrics_address", _address_is_valid, host_port, "127.0.0.1:0"),
        certificate=_file(table, "certificate", "the path of the node's certificate", file),
        key=_file(table, "key", "the path of the node's key", file),
        listen=table.text("listen", _address_is_valid, host_port) if table.has("listen") else "",
        peer_listen=table.text("peer_listen", _address_is_valid, host_port) if table.has("peer_listen") else "",
    )
    one, other = node.listens
    if one and one == other:
        table.problem("peer_listen", f"is {one!r}, where the node listens for clients; it needs a port of its own")
    table.finish("name, address, peer_address, listen, peer_listen, metrics_address, certificate and key")
    return node


def _unique(table: _Table, key: str, what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value and value in seen:
            table.problem(key, f"{what} {value!r} is used twice; each needs its own")
        seen.add(value)


def _partitions(table: _Table, region: str, *, shares: bool) -> tuple[records_pb2.Partition, ...]:
    partitions = tuple(_partition(each, region) for each in table.tables("partition", _PARTITIONS_MAX))
    if not partitions:
        table.problem("partition", "there is none; write at least one [[partition]] table")
    _unique(table, "partition", "id", (partition.id for partition in partitions))
    for partition in partitions:
        if "switch" in partition.default_for and partition.reach not in (records_pb2.HOME_ONLY, 0) and shares:
            table.problem(
                "partition",
                f'{partition.id!r} holds kill switches, which say who and why: write reach "home-only", and have'
                ' other regions told by a partition with default_for = ["stop"]',
            )
    _unique(
        table,
        "partition",
        "default_for of environment and kind",
        (f"{each.environment} {kind}" for each in partitions for kind in each.default_for),
    )
    return partitions


def _partition(table: _Table, region: str) -> records_pb2.Partition:
    partition = records_pb2.Partition(
        id=table.text(
            "id",
            lambda text: text.startswith(f"{region}.") and _partition_id_is_valid(text),
            f'lower-case words joined by dots that begin with the region, like "{region}.prod.state"',
        ),
        home=region,
        epoch=FIRST_EPOCH,
        reach=REACHES.get(table.text("reach", REACHES.__contains__, _one_of(REACHES))),
        environment=table.text("environment", ENVIRONMENTS.__contains__, _one_of(ENVIRONMENTS)),
        default_for=table.texts("default_for", KINDS.__contains__, _one_of(KINDS), len(KINDS)),
    )
    table.finish("id, environment, reach and default_for")
    return partition


def _partition_id_is_valid(text: str) -> bool:
    return len(text) <= limits.NAME_BYTES_MAX and _PARTITION_ID.fullmatch(text) is not None


def _one_of(words: Iterable[str]) -> str:
    return "one of " + ", ".join(f'"{word}"' for word in words)


def _administrators(table: _Table, fleet: str, region: str) -> tuple[Identity, ...]:
    def valid(uri: str) -> bool:
        try:
            identity = Identity.parse(uri)
        except Invalid:
            return False
        return (identity.fleet, identity.region, identity.role) == (fleet, region, "operator")

    wanted = f'identities of operators, like "controlplane://{fleet}/prod/{region}/operator/on-call"'
    uris = table.texts("administrators", valid, wanted, _ADMINISTRATORS_MAX)
    return tuple(Identity.parse(uri) for uri in dict.fromkeys(uris))


def _timing(table: _Table, region: _Table) -> Timing:
    usual = Timing()
    timing = Timing(
        election_min_ms=table.integer("election_min_ms", 50, 60_000, usual.election_min_ms),
        election_max_ms=table.integer("election_max_ms", 100, 120_000, usual.election_max_ms),
        beat_ms=table.integer("beat_ms", 5, 10_000, usual.beat_ms),
    )
    table.finish("election_min_ms, election_max_ms and beat_ms")
    if timing.election_max_ms < timing.election_min_ms * 3 // 2:
        region.problem("timing.election_max_ms", "write at least 1.5 times election_min_ms")
    if timing.election_min_ms < timing.beat_ms * 3:
        region.problem("timing.beat_ms", "write at most a third of election_min_ms")
    return timing
