"""How a process ends that is not waited for, and how it starts anew."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from background_task.execution.runs import runs
from background_task.utils import SignalManager, exit_code, hold_off_signals, leave

# The exit code of a process that wants to be started anew, a number of sysexits.h.
REPLACE = 75
# What a process may have open, which nobody else is to keep open.
MOST_FILES = 65_536

# How long a forced stop waits for what runs to give way, and again for the database, in seconds.
GRACE = 2.0
# So long the interpreter may take to let another thread go on, in seconds.
SWITCH = 0.02


def leave_soon(signals: SignalManager) -> None:
    """End the process soon after a second signal, whether or not the main thread gets to it."""
    hold_off_signals()
    time.sleep(GRACE)
    hand_back()
    leave(exit_code(signals.signum))


def hand_back() -> None:
    """Give up what runs, without waiting for the database for long."""
    with suppress(RuntimeError):  # the interpreter is ending already
        handing_back = threading.Thread(target=runs.hand_back, daemon=True)
        handing_back.start()
        handing_back.join(GRACE)


def leave_now(code: int) -> NoReturn:
    """End the process, by an exit where nothing but that is left to do."""
    others = set(threading.enumerate()) - {threading.main_thread()}
    if any(not thread.daemon for thread in others):
        leave(code)  # what a task has left running in threads would hold the process up
    sys.exit(code)


def start_anew(more: Sequence[str]) -> NoReturn:
    """Run the command line of this process from its start, in its place.

    Python can end no thread, so this is how to be rid of one. Where it cannot be done the process
    ends with the exit code :data:`REPLACE`.

    Args:
        more: arguments to add to the command line.
    """
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    if os.name == "posix" and sys.executable:
        # The caller's thread may hold signals off, which the new program would inherit.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        os.closerange(3, MOST_FILES)
        time.sleep(SWITCH)  # lets the main thread note a signal that has just come
        if SignalManager.is_stopping():
            leave(0)
        with suppress(OSError):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *more])  # noqa: S606
    leave(REPLACE)
