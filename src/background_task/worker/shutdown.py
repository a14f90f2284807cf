"""How a process ends that is not waited for."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from background_task.execution.runs import runs
from background_task.utils import SignalManager, exit_code, hold_off_signals, leave

# How long a forced stop waits for what runs to give way, and again for the database, in seconds.
GRACE = 2.0


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
