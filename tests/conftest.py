"""What all tests share: properties are not timed, because the machine may be busy with other things."""

import signal

from hypothesis import settings

# A shell starts what runs in its background with this signal ignored, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
