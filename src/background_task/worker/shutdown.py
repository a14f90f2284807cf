"""How a process ends that is not waited for, and how it starts anew."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from background_task import logs
from background_task.execution.runs import runs
from background_task.utils import SignalManager, exit_code, hold_off_signals, leave

logger = logs.named("background_task.tasks")

# The exit code of a process that wants to be started anew, a number of sysexits.h.
REPLACE = 75

# How long a forced stop waits for what runs to give way, and again for the database, in seconds.
GRACE = 2.0
# How long threads that tasks have left behind may keep a process that is done, and one whose place
# another is to take; and how long they may do so without a word. In seconds.
LONGEST_EXIT = 10.0
LONGEST_EXIT_OF_CHILD = 5.0
SHORT_EXIT = 0.5
# How often it is looked whether a second signal has come meanwhile, in seconds.
BETWEEN_LOOKS = 0.1
# So long the interpreter may take to let another thread go on, in seconds.
SWITCH = 0.02


def leave_soon(signals: SignalManager) -> None:
    """End the process soon after a second signal, whether or not the main thread gets to it."""
    hold_off_signals()
    time.sleep(GRACE)
    hand_back()
    if not runs.is_empty:
        runs.note_cut_off()
    leave(stop_code(signals.signum))


def hand_back() -> None:
    """Give up what runs, without waiting for the database for long."""
    if not _do_for_a_while(runs.hand_back):
        runs.note_cut_off()  # as far as anybody knows


def stop_code(signum: int | None) -> int:
    """Return the exit code of a process that was asked to stop: 0 unless something was cut off."""
    return exit_code(signum) if runs.were_cut_off else 0


def let_go() -> None:
    """Record what has ended, without waiting for the database for long."""
    _do_for_a_while(runs.let_go)


def _do_for_a_while(what: Callable[[], None]) -> bool:
    """Tell whether it has been done."""
    doing = threading.Thread(target=what, daemon=True)
    try:
        doing.start()
    except RuntimeError:  # no more are to be had, as in an exit handler of Python 3.12.0 and 3.12.1
        with suppress(Exception):
            what()
    else:
        doing.join(GRACE)
    return not doing.is_alive()


def leave_now(code: int) -> NoReturn:
    """End the process, by an exit where nothing but that is left to do."""
    if _others():
        leave(code)  # what a task has left running in threads would hold the process up
    sys.exit(code)


def limit_exit(code: int, longest: float) -> None:
    """See to it that no thread that a task has left behind keeps this process when it exits.

    Args:
        code: the exit code that it has then.
        longest: how long such threads may go on, in seconds.
    """
    has_begun = threading.Event()
    with suppress(RuntimeError):  # there is no room for a thread
        # Now: Python 3.12 starts no thread any more when the exit has begun.
        threading.Thread(
            target=_end_the_exit, args=[has_begun, code, longest], name="exit", daemon=True
        ).start()
        # Not by atexit, which comes after all threads have ended. The last that is registered here
        # is called first, before concurrent.futures waits for its own threads.
        threading._register_atexit(has_begun.set)  # type: ignore[attr-defined]


def _end_the_exit(has_begun: threading.Event, code: int, longest: float) -> None:
    hold_off_signals()
    has_begun.wait()
    until = time.monotonic() + longest
    time.sleep(SHORT_EXIT)  # an idle thread of a pool ends by itself now
    if others := _others():
        names = ", ".join(sorted(thread.name for thread in others))
        text = "Threads keep this process, whose work is done; it ends without them in %g s: %s"
        logger.warning(text, longest - SHORT_EXIT, names)
    while others := _others():
        left = until - time.monotonic()
        if left <= 0 or SignalManager.is_forced():
            leave(code)
        others[0].join(min(left, BETWEEN_LOOKS))


def _others() -> list[threading.Thread]:
    """Return the threads that Python waits for, beside the main one."""
    main = threading.main_thread()
    return [each for each in threading.enumerate() if each is not main and not each.daemon]


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
        _close_files_with_the_program()
        time.sleep(SWITCH)  # lets the main thread note a signal that has just come
        if (stopping := SignalManager.stopping()) is not None:
            leave(stop_code(stopping.signum))
        with suppress(OSError):
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *more])  # noqa: S606
    leave(REPLACE)


def _close_files_with_the_program() -> None:
    """Let the kernel close all files but the standard ones when another program takes this place.

    Until then they stay open: what still runs in other threads would take closed ones, or others
    of the same number, for its own.
    """
    with suppress(OSError):  # without such a folder there may be those that a C library has opened
        for number in map(int, os.listdir("/dev/fd")):
            if number > 2:
                with suppress(OSError):  # that of the folder
                    os.set_inheritable(number, False)
