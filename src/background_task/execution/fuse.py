"""A timer of the kernel that ends this process, for when no Python gets to run in it any more.

A function that keeps Python's global lock, inside of C code that does not come to an end, stops
every thread that could end it. The kernel asks for no lock.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import signal
import sys
from collections.abc import Callable

from background_task import logs

logger = logs.named("background_task.tasks")

# Ends a process that has no handler for it, and is used for nothing else that is common.
SIGNAL = getattr(signal, "SIGVTALRM", None)

# Of <time.h> and <signal.h> on Linux.
_CLOCK_MONOTONIC = 1
_SIGEV_SIGNAL = 0


class _Event(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 64),
    )


class _Setting(ctypes.Structure):
    _fields_ = (
        ("every_seconds", ctypes.c_long),
        ("every_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Fuse:
    """The timer. On systems other than Linux it does nothing."""

    def __init__(self) -> None:
        self._set: Callable[[_Setting], object] = _nothing
        if sys.platform == "linux":
            try:
                self._make()
            except (OSError, AttributeError) as error:
                logger.debug("The kernel has no timer for us: %s", error)

    def _make(self) -> None:
        # Since glibc 2.34, and always in musl, it is part of what is loaded already.
        library = ctypes.CDLL(None, use_errno=True)
        if not hasattr(library, "timer_create"):
            library = ctypes.CDLL(ctypes.util.find_library("rt"), use_errno=True)
        event = _Event(signal=SIGNAL, notify=_SIGEV_SIGNAL)
        timer = ctypes.c_void_p()
        if library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "timer_create")
        self._set = lambda setting: library.timer_settime(timer, 0, ctypes.byref(setting), None)

    def light(self, seconds: float) -> None:
        """End this process after so many seconds, unless it is lit anew or put out before."""
        part, whole = math.modf(max(seconds, 0.001))  # nothing at all would put it out
        self._set(_Setting(seconds=int(whole), nanoseconds=int(part * 1e9)))

    def put_out(self) -> None:
        """End nothing."""
        self._set(_OUT)


_OUT = _Setting()


def _nothing(setting: _Setting) -> None:
    pass
