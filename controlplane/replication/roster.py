"""Who the members of the region are on disk: which data folder each node had when it joined.

Majorities are promises of disks, not of names. A node that comes back with another disk under the old name
would break promises that it no longer remembers, so every handshake shows the incarnation of the folder, and:

1. A member remembers, durably, the incarnation of every peer. Another one under that name is refused, unless
   it says that it is replacing a lost disk; then it is remembered instead of the old, which is refused from
   then on.
2. A bootstrapping node becomes a member once it has met every peer and each was as empty as itself or already
   knew this very folder. So a region comes into being only among disks that have all seen each other empty; a
   slow one may be the last to notice.
3. A peer that has data but does not know this folder ends a bootstrap: it must be a `--replace`.
4. A replacing node needs all its peers reachable, and at least one that has data.
5. A leader refuses a member whose log ends before what it acknowledged to this very leader: its disk lied about a sync,
   or an old copy was put back. What else it promised and forgot cannot be known. (A newer term may have cut it.)
"""

from __future__ import annotations

from controlplane.datadir import DataFolder, Standing
from controlplane.errors import Fatal, Refused
from controlplane.v1 import peer_pb2
from controlplane.v1.peer_pb2 import PeerHello

INCARNATION_CHANGED = "INCARNATION_CHANGED"
DISK_SET_BACK = "DISK_SET_BACK"
"""Why a peer refuses a folder: it is another than the one that joined, or it forgot what it had acknowledged."""

_ON_WIRE = {
    Standing.MEMBER: peer_pb2.STANDING_MEMBER,
    Standing.BOOTSTRAPPING: peer_pb2.STANDING_BOOTSTRAPPING,
    Standing.REPLACING: peer_pb2.STANDING_REPLACING,
}
_REPLACE = "Empty its data folder and start it with --replace."


class Roster:
    """The handshakes of one node, judged by the rules above."""

    def __init__(self, folder: DataFolder, peers: frozenset[str]) -> None:
        self._folder = folder
        self._peers = peers
        self._met: dict[str, str] = {}
        self._with_data: set[str] = set()

    @property
    def missing(self) -> frozenset[str]:
        """The peers not met since this process started."""
        return self._peers - self._met.keys()

    def hello(self, peer: str) -> PeerHello:
        """Return the part of a hello to `peer` that says who this folder is."""
        mine = self._folder.identity
        return PeerHello(
            incarnation=mine.incarnation,
            known=self._folder.members.get(peer, ""),
            standing=_ON_WIRE[mine.standing],
        )

    def meet(self, peer: str, hello: PeerHello) -> None:
        """Take what `peer` says.

        Raises `Refused` for a disk that is not the member's, `Fatal` if ours cannot join.
        """
        self._check_theirs(peer, hello)
        if self._folder.identity.standing is Standing.BOOTSTRAPPING:
            self._check_ours(peer, hello)
        self._met[peer] = hello.incarnation
        if not hello.log_empty:
            self._with_data.add(peer)

    @staticmethod
    def check_acknowledged(peer: str, hello: PeerHello, term: int, acknowledged: int) -> None:
        """Judge by rule 5, as the leader of `term`; `acknowledged` is the index that `peer` said is on its disk."""
        judged = hello.HasField("last_index") and hello.standing == peer_pb2.STANDING_MEMBER and hello.term <= term
        if judged and hello.last_index < acknowledged:
            raise Refused(
                f"the log of {peer} ends at {hello.last_index}, but it acknowledged {acknowledged}: its disk lost what"
                " it said was safe",
                reason=DISK_SET_BACK,
                hint=_REPLACE,
            )

    def join(self) -> None:
        """Remember every peer, durably, once all were met. Raises `Fatal` for a replacement among empty peers."""
        if self._folder.identity.standing is Standing.REPLACING and not self._with_data:
            raise Fatal(
                f"{self._folder.path}: none of the peers has data to replace a lost disk from. "
                f"If the whole region is new, empty the folder and start with --bootstrap."
            )
        self._folder.remember(self._met)

    def _check_theirs(self, peer: str, hello: PeerHello) -> None:
        known = self._folder.members.get(peer)
        if known is None or known == hello.incarnation:
            return
        if hello.standing == peer_pb2.STANDING_REPLACING:
            self._folder.remember({peer: hello.incarnation})
            return
        raise Refused(
            f"{peer} has another data folder than the one that joined the region",
            reason=INCARNATION_CHANGED,
            hint=_REPLACE,
        )

    def _check_ours(self, peer: str, hello: PeerHello) -> None:
        mine = self._folder.identity.incarnation
        if hello.known == mine or (hello.log_empty and not hello.known):
            return
        raise Fatal(
            f"{self._folder.path} is new, but {peer} already has the region's data. A region is bootstrapped once: "
            f"empty the folder and start this node with --replace."
        )
