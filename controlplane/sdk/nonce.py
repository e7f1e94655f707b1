"""Random names of requests and processes, cheap enough to make one for every write.

Rules: (1) the bytes come from the operating system; (2) a forked child never repeats what its parent would have
handed out: the pool is emptied in the child; (3) drawing is atomic across threads.
"""

from __future__ import annotations

import os
from collections import deque

from controlplane.limits import REQUEST_ID_BYTES

_POOL_SIZE = 512
_pool: deque[bytes] = deque()
os.register_at_fork(after_in_child=_pool.clear)


def nonce() -> bytes:
    """Return 16 fresh random bytes."""
    while True:
        try:
            return _pool.popleft()
        except IndexError:
            block = os.urandom(_POOL_SIZE * REQUEST_ID_BYTES)
            _pool.extend(block[at : at + REQUEST_ID_BYTES] for at in range(0, len(block), REQUEST_ID_BYTES))
