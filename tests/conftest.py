"""What all tests share: properties are not timed, because the machine may be busy with other things.

Their folders are in memory where there is room: what is durable is what was synced, which tests with a library under
them know and a disk does not tell; and a disk takes a third of the time of tests of nodes with its syncs.
"""

import os
import signal

from hypothesis import settings

from chaos.scratch import scratch

# What gRPC has to say of every connection that a test cut would stand between the dots.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

if place := scratch():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", place)

# A shell starts what runs in its background with this signal ignored, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
