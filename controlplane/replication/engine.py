"""The consensus core: who may vote, who leads, in which order entries stand, what is committed. Nothing else.

`Core` is the port; `SyncObjCore` is PySyncObj 0.3.17 behind it and `ModelCore` a small core of our own, the oracle of
the contract test and the way out if the library ever fails.
"""

from __future__ import annotations
