"""What differs between the supported versions of Python; nothing else looks at a version."""

from __future__ import annotations

import os
import sys
import time
import uuid

if sys.version_info >= (3, 14):
    uuid7 = uuid.uuid7
else:

    def uuid7() -> uuid.UUID:
        """Return a time-ordered UUID, version 7 (RFC 9562, section 5.7): 48 bits of milliseconds.

        Time-ordered ids keep the b-tree of a unique index compact, above all on MySQL and SQLite.
        """
        milliseconds = time.time_ns() // 1_000_000
        random = int.from_bytes(os.urandom(10), "big")
        value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | random
        value = value & ~(0xF << 76) | 7 << 76
        value = value & ~(0x3 << 62) | 2 << 62
        return uuid.UUID(int=value)
