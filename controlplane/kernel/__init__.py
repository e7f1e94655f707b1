"""The replicated state machine: pure, deterministic, small enough to read in one sitting.

Theory of operation. A region's state is an ordered map from bytes to bytes (`store`), and one function changes it:
`machine.apply(store, index, term, entry)`. An entry is a list of transactions that a leader *planned* by running
feature functions over a view of its own store (`transaction.Tx`); what it records are their effects, never their
intents, so a replica needs no feature code to follow.

1. Everything that changes replicated state goes through `machine.Working`.
2. Nothing here knows what a flag, a lease or a workflow is; a `Kind` names a message and how long its past is kept.
3. No clock, no chance, no I/O but the store it is handed, no floats, no order that depends on a hash.
4. The revision grows by one per transaction, whatever becomes of it (and by one for an entry that holds none); the
   index of the log is only the store's position in the log.
5. An entry planned over another revision than the present one changes nothing but the revision: each of its
   transactions is a conflict and is planned again.
6. A request id has one outcome. It is written in the batch that holds the effects.
7. The running hash covers every entry, outcome and resulting change: equal revision, equal hash.
8. Apply is total. Bad input is an outcome; what cannot be understood at all (an unknown format) is `Fatal`.
"""
