"""Defects that can be put back: each switches rules off, and names the schedules that suit it."""

from __future__ import annotations

from typing import NamedTuple

from chaos.sim_runs import Settings


class Plant(NamedTuple):
    """A defect: which rules are off (of guard.py or sim_disk.py), and where it is looked for."""

    what: str
    off: frozenset[str]
    profile: str
    nodes: int

    @property
    def settings(self) -> Settings:
        """For `sim_runs.simulate`."""
        return Settings(self.nodes, profile=self.profile, off=self.off)


def _plant(what: str, *off: str, profile: str = "lan", nodes: int = 3) -> Plant:
    return Plant(what, frozenset(off), profile, nodes)


PLANTS: dict[str, Plant] = {
    "B1": _plant("a commit index is believed without a check of the log", "B1"),
    "B2": _plant("acks of an earlier term count", "B2", profile="stale-acks", nodes=5),
    "B3": _plant("everything after the previous entry is cut", "B3"),
    "B4": _plant("every refusal moves the next index", "B4"),
    "B5": _plant("an older snapshot is installed", "B5", profile="old-snapshots"),
    "B6": _plant("a newer snapshot clears the log", "B6"),
    "B7": _plant("a trim clears the journal and writes it again", "B7"),
    "B8": _plant("nothing is synced before it is promised, nothing is checked", "barrier", "ownsync", "checksum"),
    "B9": _plant("apply does not begin after what was applied", "B9"),
    "B12": _plant("a vote counts twice", "B12", profile="double-votes", nodes=5),
    "B13": _plant("no pre-vote, and votes while the leader is alive", "B13", profile="steady"),
    "B14": _plant("a leader that nobody hears stays leader", "B14"),
    "B15": _plant("a broken link to the leader starts no election", "B15", profile="steady"),
    "B16": _plant("a lost leadership is answered with 'not done'", "B16"),
    "B18": _plant("entries wait for the next beat", "B18", profile="steady"),
    "B21": _plant("entries have no bound", "B21"),
    "barrier": _plant("acks and votes leave before their sync", "barrier"),
    "ownsync": _plant("a leader's own unsynced entries count", "ownsync"),
    "checksum": _plant("rows are read without a check", "checksum"),
    "readround": _plant("a read does not wait for a round", "readround"),
    "readterm": _plant("a new leader answers reads before it committed", "readterm", profile="new-leaders"),
    "nonce": _plant("an answer to an earlier process counts", "nonce", profile="old-answers"),
    "replace": _plant("an empty disk votes and counts at once", "replace"),
    "parts": _plant("a large entry on a slow link is taken for silence", "parts", profile="long-entries"),
    "patience": _plant("parts are waited for when their leader has given up", "patience", profile="long-entries"),
    "recount": _plant("a leader counts on a disk that was replaced", "recount", profile="lost-disk", nodes=5),
}

RULES = sorted(frozenset[str]().union(*(plant.off for plant in PLANTS.values())))
"""Every rule that can be switched off."""
