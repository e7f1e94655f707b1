"""Drills: faults that operators put on a running region to see that it holds, and the proof that it did.

Theory of operation. Two sides that only share messages. *At the node* (`faults`, `injector`, `supervisor`): a node
started with `--drills` runs below a small process that can kill, stop, restart and replace it; faults on links happen
inside the node. *At the operator* (`scenarios`, `nodes`, `load`, `runner`, `evidence`, `record`): a drill is planned
from what the region is, run while clients work, judged from what they saw, and written down so that anyone with the
operator's public key can judge it again.

1. Every fault ends by the node's own timer. Nobody has to be there to end it.
2. One drill at a time: a node refuses the faults of another drill than the one it is kept for.
3. A fault has a name, and strikes once however often it is asked for.
4. A drill does not begin in a region that is not well, and ends early, healing, when its stop conditions say so.
5. Nothing is claimed that cannot be computed again from the history of the operations.
"""
