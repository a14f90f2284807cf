"""A process that a supervisor has started: it does as it is told, and ends with its supervisor.

Imported by a new interpreter before Django is set up, so it imports later what needs that.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING

from background_task.utils import (
    ForcedStop,
    SignalManager,
    exit_code,
    hold_off_signals,
    leave,
    say,
    signal_main_thread,
)

if TYPE_CHECKING:
    from background_task.worker.options import Options

# What a supervisor may say.
STOP, FORCE, FAST, SLOW = "stop", "force", "fast", "slow"
# The exit codes that it knows, beside that of a process which wants to be replaced.
DONE, CANNOT_START = 0, 1
# Above this it was told to end at once, and has handed something back.
CUT_OFF = 128
# How long a signal may take to be heard, in seconds.
PATIENCE = 1.0


def main(orders: Connection, options: Options, supervisor: str, log_std: bool) -> None:
    """Work, in the main thread of a process of its own.

    Args:
        orders: where the supervisor speaks; it is told there which worker this is, once what that
            runs can be rescued.
        options: what to do.
        supervisor: its ``worker_id``.
        log_std: whether what is printed goes to the log.
    """
    import django

    signals = ChildSignals()
    signals.keep()  # the supervisor has had them held back until here
    django.setup()
    from background_task.worker.shutdown import LONGEST_EXIT_OF_CHILD, limit_exit

    code = 1
    try:
        code = _work(orders, options, signals, supervisor, log_std)
    finally:
        limit_exit(code, LONGEST_EXIT_OF_CHILD)
    sys.exit(code)


def _work(
    orders: Connection, options: Options, signals: ChildSignals, supervisor: str, log_std: bool
) -> int:
    from background_task.exceptions import BackgroundTaskError
    from background_task.identity import this_worker
    from background_task.tasks import tasks
    from background_task.worker.output import log_what_is_printed
    from background_task.worker.process import Process
    from background_task.worker.shutdown import REPLACE, leave_now

    threading.Thread(target=obey, args=[orders, signals], name="orders", daemon=True).start()
    if log_std:
        log_what_is_printed()
    process = Process(
        tasks,
        options,
        signals,
        supervisor=supervisor,
        on_ready=lambda: orders.send(this_worker()),
        replace=lambda: leave(REPLACE),
    )
    try:
        process.run()
    except ForcedStop:
        leave_now(exit_code(signals.signum))
    except BackgroundTaskError as error:
        say(f"CommandError: {error}")
        return CANNOT_START
    finally:
        signals.ignore()
    return REPLACE if process.is_used_up else DONE


class ChildSignals(SignalManager):
    """One signal is enough, and only the supervisor can ask for more.

    A terminal, or whoever signals the whole group, reaches the supervisor as well.
    """

    may_force = False

    def __init__(self) -> None:
        super().__init__(self._leave_soon)

    def _leave_soon(self) -> None:
        from background_task.worker.shutdown import leave_soon

        leave_soon(self)

    def _install(self) -> None:
        super()._install()
        for name in ("SIGINT", "SIGTSTP", "SIGBREAK"):
            if hasattr(signal, name):
                number = getattr(signal, name)
                self._handlers[number] = signal.SIG_IGN
                signal.signal(number, signal.SIG_IGN)

    def exit_gracefully(self, signum: int | None, frame: FrameType | None) -> None:
        """Ask for a stop; again only when the supervisor has said so."""
        if not self.kill_now or self.may_force:
            super().exit_gracefully(signum, frame)


def obey(orders: Connection, signals: ChildSignals) -> None:
    """Do as the process says that has started this one, and stop when it has ended."""
    hold_off_signals()
    try:
        while True:
            order = orders.recv()
            if order == FAST:
                signals.speed_up(None, None)
            elif order == SLOW:
                signals.slow_down(None, None)
            else:
                _stop(signals, by_force=order == FORCE)
    except (EOFError, OSError):
        if not signals.kill_now:
            say("The process that has started this one has ended; it finishes what runs, and ends.")
        _stop(signals, by_force=False)


def _stop(signals: ChildSignals, *, by_force: bool) -> None:
    from background_task.worker.shutdown import hand_back, stop_code

    signals.may_force = by_force
    until = time.monotonic() + PATIENCE
    # Through a signal: nothing else reaches a task that runs in the main thread.
    while not (signals.force_now if by_force else signals.kill_now):
        if time.monotonic() < until:
            signal_main_thread(signal.SIGTERM)
            time.sleep(0.05)
        elif by_force:  # a task has seen to it that signals are not heard
            hand_back()
            leave(stop_code(signal.SIGTERM))
        else:
            signals.exit_gracefully(signal.SIGTERM, None)
