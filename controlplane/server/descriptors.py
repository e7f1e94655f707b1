"""How many files and connections this process may have open, and how many of them callers may take.

Journal and store open files while they run; a node that cannot ends. So callers get what is left.
"""

from __future__ import annotations

import resource

from controlplane import limits
from controlplane.errors import Fatal


def provide() -> None:
    """Raise what this process may open to what it is allowed to raise it to. Raises `Fatal` if that is too little."""
    soft, hard = (_finite(each) for each in resource.getrlimit(resource.RLIMIT_NOFILE))
    wanted = min(hard, limits.DESCRIPTORS_MAX)
    if wanted < limits.DESCRIPTORS_MIN:
        raise Fatal(
            f"this process may open {wanted} files and connections, and needs {limits.DESCRIPTORS_MIN}: "
            "raise the limit (ulimit -n, or LimitNOFILE= of a systemd unit)"
        )
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def for_callers() -> int:
    """Return how many connections the client port may have."""
    soft = _finite(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return max(1, min(limits.CONNECTIONS_PER_NODE_MAX, soft - limits.DESCRIPTORS_RESERVED))


def _finite(limit: int) -> int:
    return limits.DESCRIPTORS_MAX if limit == resource.RLIM_INFINITY else limit
