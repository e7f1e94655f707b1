"""Rounds of a leader, and what they say of how fresh its state is."""

from __future__ import annotations

from math import inf

from controlplane.replication.reads import Reads


def of_leader(reads_max: int = 8) -> Reads:
    return Reads(reads_max=reads_max, patience_s=1.0, answer=lambda done, proven: done(proven), reply=lambda *_: None)


def test_a_state_is_fresh_once_it_has_what_was_committed_when_the_round_began() -> None:
    # Fleets, one node, seed 8948: a leader that had started again said so while it was still applying what was there.
    reads = of_leader()
    reads.begin(5, 1.0, beat=True, able=True)
    reads.echoed(1, applied=3, now=1.1)
    assert reads.fresh_at == -inf
    reads.applied(4, 1.2)
    assert reads.fresh_at == -inf
    reads.begin(7, 1.3, beat=True, able=True)
    reads.echoed(2, applied=4, now=1.4)
    reads.applied(6, 1.5)
    assert reads.fresh_at == 1.0
    reads.applied(7, 1.6)
    assert reads.fresh_at == 1.3


def test_of_rounds_that_wait_for_the_same_index_the_last_one_counts() -> None:
    reads = of_leader()
    for n in range(1, 4):
        reads.begin(5, float(n), beat=True, able=True)
        reads.echoed(n, applied=3, now=float(n))
    reads.applied(5, 4.0)
    assert reads.fresh_at == 3.0


def test_what_waits_for_its_index_is_bounded_and_comes_to_its_end() -> None:
    reads = of_leader(reads_max=2)
    for n in range(1, 6):
        reads.begin(n, float(n), beat=True, able=True)
        reads.echoed(n, applied=0, now=float(n))
    assert len(reads._proven) == 2
    reads.applied(5, 6.0)
    assert reads.fresh_at == 5.0
