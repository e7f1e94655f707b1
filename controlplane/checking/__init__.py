"""A second opinion on what clients saw: is it possible, if the system keeps its promises.

Callers record what they asked and what they were told (`histories`); everything else here judges that record and knows
nothing of the code that is judged. Nothing in this package has a clock, draws a number or talks to anyone.

1. `linearizability.check` searches for an order of the operations that explains every answer, under a sequential model
   (`models`). A search that ran out of steps is UNDECIDED, which counts as a failure everywhere.
2. `watches.check` compares the messages of watches with the transactions that were committed.
3. `invariants` are single promises that need no search: fences never go back, a confirmed kill stops, what was
   acknowledged is there, what failed is not.
4. `pictures` draws what was found.

Only an `OutcomeUnknown` may be recorded as unknown; all other errors are definite, and the checkers hold the system to
that.
"""
