"""Linearizable reads without a write: which of them may be answered, and from when on. Pure.

Theory of operation (ReadIndex). A read may be answered from the local state once that state holds everything that was
committed when the read began. A leader knows what is committed only if it still leads, so it numbers *rounds*: a
round begins with a beat to every follower, which echoes its number, and it is answered when a majority has echoed it
or a later one. A read waits for a round that began after it arrived, and then until the round's index is applied
here. Any other node asks the leader for such an index, all its waiting reads as one.

1. A round's index is the commit index at its beginning, and counts only after a commit of the leader's own term: for
   reads, and also as a proof of how fresh this node's state is. Either has to wait until that index is applied here.
2. What was asked of a leader is answered, or given up after `patience_s`, or when that leadership ends. Asked from
   elsewhere, it is asked anew as soon as another leader is known or the link to this one is a new one: a leader that
   fell silent answers nobody, and an answer under way is lost with its link.
3. Everything that waits is bounded by `reads_max`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from controlplane.v1.raft_pb2 import Read as RemoteRead

ReadDone = Callable[[bool], None]
Asker = tuple[str, RemoteRead]


@dataclass(frozen=True, slots=True)
class _Read:
    done: ReadDone
    started: float


class _Round(NamedTuple):
    number: int
    commit: int
    reads: list[_Read]
    remote: list[Asker]


class _Start(NamedTuple):
    """That a round began, and at which commit index."""

    number: int
    commit: int
    at: float


class Reads:
    """Every read that waits at this node.

    `answer(done, proven)` answers a local read, `reply(asker, index)` a peer's (None: cannot say).
    """

    def __init__(
        self,
        *,
        reads_max: int,
        patience_s: float,
        answer: Callable[[ReadDone, bool], None],
        reply: Callable[[Asker, int | None], None],
    ) -> None:
        self.round = 0
        self.fresh_at = -inf  # When the last read or round that was proven began.
        self._reads_max, self._patience_s = reads_max, patience_s
        self._answer, self._reply = answer, reply
        self._asked: list[_Read] = []
        self._remote: list[Asker] = []
        self._rounds: deque[_Round] = deque()
        self._starts: deque[_Start] = deque()
        self._proven: deque[_Start] = deque()
        self._able = False
        self._forwarded: dict[int, list[_Read]] = {}
        self._to_apply: list[tuple[int, _Read]] = []

    @property
    def waiting(self) -> bool:
        """Whether any read waits for a round, here or at the leader."""
        return bool(self._asked or self._remote or self._forwarded)

    @property
    def asked(self) -> bool:
        """Whether reads of this node wait to be asked of a leader, itself or another."""
        return bool(self._asked)

    def ask(self, done: ReadDone, now: float) -> None:
        """Take a read of this node."""
        if len(self._asked) >= self._reads_max:
            self._answer(done, False)
        else:
            self._asked.append(_Read(done, now))

    def ask_remote(self, asker: Asker) -> None:
        """Take a read of a peer; leader only."""
        if len(self._remote) >= self._reads_max:
            self._reply(asker, None)
        else:
            self._remote.append(asker)

    # As leader.

    def begin(self, commit: int, now: float, *, beat: bool, able: bool) -> bool:
        """Begin a round at a beat, or at once if this leader is `able` (rule 1) and reads wait or it just became so.

        True if every follower has to hear of it at once.
        """
        asked = able and bool(self._asked or self._remote)
        first = able and not self._able
        if not (beat or asked or first):
            return False
        self._able = able
        self.round += 1
        if able:
            self._starts.append(_Start(self.round, commit, now))
        if asked:
            self._rounds.append(_Round(self.round, commit, self._asked, self._remote))
            self._asked, self._remote = [], []
        return asked or first

    def echoed(self, number: int, applied: int, now: float) -> None:
        """Answer every round up to `number`: a majority has echoed it."""
        while self._starts and self._starts[0].number <= number:
            start = self._starts.popleft()
            # Of those that wait for the same index the last one says most; of too many, the last but one least.
            if self._proven and (self._proven[-1].commit == start.commit or len(self._proven) >= self._reads_max):
                self._proven.pop()
            self._proven.append(start)
        self._refresh(applied)
        while self._rounds and self._rounds[0].number <= number:
            done = self._rounds.popleft()
            self._prove(done.reads, done.commit, applied, now)
            for asker in done.remote:
                self._reply(asker, done.commit)

    def leadership_ended(self) -> None:
        """Give up every round: it can no longer be proven."""
        self._able = False
        self._starts.clear()
        rounds, self._rounds = self._rounds, deque()
        remote, self._remote = self._remote, []
        for lost in rounds:
            self._give_up(lost.reads)
            remote += lost.remote
        for asker in remote:
            self._reply(asker, None)

    # As anyone else.

    def forward(self, number: int) -> bool:
        """Put all waiting reads under `number`, to be asked of the leader as one; False if they had to be given up."""
        reads, self._asked = self._asked, []
        if len(self._forwarded) >= self._reads_max:
            self._give_up(reads)
            return False
        self._forwarded[number] = reads
        return True

    def recall(self) -> None:
        """Have everything that was asked of a leader wait to be asked again (rule 2)."""
        if self._forwarded:
            again = [read for reads in self._forwarded.values() for read in reads]
            self._forwarded.clear()
            waiting = again + self._asked
            self._asked = waiting[: self._reads_max]
            self._give_up(waiting[self._reads_max :])

    def no_leader(self) -> None:
        """Give up what waits here: there is nobody to ask."""
        reads, self._asked = self._asked, []
        self._give_up(reads)

    def told(self, number: int, index: int | None, applied: int, now: float) -> None:
        """Take the leader's answer to what was forwarded under `number`."""
        reads = self._forwarded.pop(number, [])
        if index is None:
            self._give_up(reads)
        else:
            self._prove(reads, index, applied, now)

    # As both.

    def expire(self, now: float) -> None:
        """Give up what has waited too long for a leader."""
        since = now - self._patience_s
        for number in [number for number, reads in self._forwarded.items() if reads[0].started < since]:
            self._give_up(self._forwarded.pop(number))
        if self._asked and self._asked[0].started < since:
            self._give_up([read for read in self._asked if read.started < since])
            self._asked = [read for read in self._asked if read.started >= since]

    def applied(self, index: int, now: float) -> None:
        """Answer what only waited for `index` to be applied."""
        self._refresh(index)
        if self._to_apply:
            waiting, self._to_apply = self._to_apply, []
            for needed, read in waiting:
                self._prove([read], needed, index, now)

    def _refresh(self, applied: int) -> None:
        while self._proven and self._proven[0].commit <= applied:
            self.fresh_at = max(self.fresh_at, self._proven.popleft().at)

    def _prove(self, reads: list[_Read], needed: int, applied: int, now: float) -> None:
        for read in reads:
            if applied >= needed:
                self.fresh_at = max(self.fresh_at, read.started)
                self._answer(read.done, True)
            elif now - read.started > self._patience_s:
                self._answer(read.done, False)
            else:
                self._to_apply.append((needed, read))

    def _give_up(self, reads: list[_Read]) -> None:
        for read in reads:
            self._answer(read.done, False)
