"""What differs between the supported versions of Python and Django; nothing else looks at one.

Django 6 has ``django.tasks``. On Django 5.2 the package ``django-tasks``, from which it came, takes
its place where it is installed; ``HAS_TASKS`` tells. Where both are installed, Django has its own.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING

import django

HAS_TASKS = True
if TYPE_CHECKING or django.VERSION >= (6, 0):
    from django import tasks as django_tasks
    from django.tasks import base as tasks_base
    from django.tasks import exceptions as tasks_exceptions
    from django.tasks import signals as tasks_signals
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.exceptions import InvalidTask
    from django.utils.json import normalize_json
else:
    try:
        import django_tasks
        from django_tasks import base as tasks_base
        from django_tasks import exceptions as tasks_exceptions
        from django_tasks import signals as tasks_signals
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.exceptions import InvalidTaskError as InvalidTask
        from django_tasks.utils import normalize_json
    except ImportError:
        HAS_TASKS = False

__all__ = [
    "HAS_TASKS",
    "BaseTaskBackend",
    "InvalidTask",
    "django_tasks",
    "normalize_json",
    "tasks_base",
    "tasks_exceptions",
    "tasks_signals",
    "uuid7",
]

if sys.version_info >= (3, 14):
    uuid7 = uuid.uuid7
else:

    class _Last(threading.local):
        """The last id that was made in this thread; no lock, which a fork might keep for ever."""

        number = 0

    _last = _Last()

    def uuid7() -> uuid.UUID:
        """Return a time-ordered UUID, version 7 (RFC 9562, section 5.7): 48 bits of milliseconds.

        Time-ordered ids keep the b-tree of a unique index compact, above all on MySQL and SQLite.
        Those of one thread are in order also within a millisecond, and when the clock is set back:
        each is larger than the last by a random number (section 6.2, method 2).
        """
        milliseconds = time.time_ns() // 1_000_000
        if milliseconds > _last.number >> 74:
            number = milliseconds << 74 | int.from_bytes(os.urandom(10), "big") >> 6
        else:
            number = _last.number + 1 + int.from_bytes(os.urandom(6), "big")
        _last.number = number
        # What is left of its 122 bits stands between and behind the version and the variant.
        time_and_version = (number >> 74) << 80 | 7 << 76
        rest = (number >> 62 & 0xFFF) << 64 | 2 << 62 | number & ((1 << 62) - 1)
        return uuid.UUID(int=time_and_version | rest)
