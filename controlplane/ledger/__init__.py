"""The ledger of a region: what it can prove to somebody who does not trust it.

Theory of operation. Every replica of a region applies the same entries in the same order, so every replica can grow the
same Merkle tree (RFC 6962), with one leaf for each entry that wrote something audited; the running hash in a leaf
covers the entries before it. A *leaf* (`leaves`) says where the region stood and commits to the entry and to each
audited record in it, without showing either. A *checkpoint* (`checkpoint`) is the signed root
of the tree at one size; other regions *cosign* it once they have seen that it only grew. A *bundle* (`bundle`) is what
a reviewer is handed: the leaves of some time in full, the audited records opened, checkpoints and proofs. `verify` is
the reviewer's own program: one file that shares no code with the rest of this package.

1. The tree is a function of the entries: no clock, no chance, no node is in it.
2. A leaf never changes, and nothing personal stands in it in clear. What has to be forgotten is forgotten by destroying
   an entry's salt; the leaf stays, and what it commits to can no longer be opened or guessed.
3. Every audited record has a commitment of its own in the leaf of its entry. Leaving a record out of a report is
   therefore visible, and opening one opens no other.
4. A region signs only what continues what it signed before; a peer cosigns only what continues what it saw before.
5. What is proven is that the region told everyone the same story and that the story is whole. That the story is true
   rests on the region's nodes; the statement at the head of every bundle says so.
"""
