"""``manage.py process_tasks``: the worker."""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.utils import autoreload

from background_task import vendors
from background_task.exceptions import TaskModuleError
from background_task.execution.runs import runs
from background_task.models import Task
from background_task.models.tasks import named_databases
from background_task.records import Wanted
from background_task.settings import app_settings
from background_task.signals import close_old
from background_task.storage import readiness
from background_task.storage.engine import Engine
from background_task.storage.transient import HURRIED, TRANSIENT, disconnect, persevere
from background_task.tasks import autodiscover, tasks, unless_unreachable
from background_task.utils import (
    STOPPING,
    TTW_FAST,
    ForcedStop,
    SignalManager,
    exit_code,
    hold_off_signals,
    leave,
    say,
)
from background_task.worker import taking
from background_task.worker.coroutines import Coroutines
from background_task.worker.duties import Duties
from background_task.worker.functions import Functions
from background_task.worker.taking import Names

logger = logging.getLogger(__name__)

# How long a forced stop waits for what runs to give way, and again for the database, in seconds.
GRACE = 2.0


class _LogWriter:
    """Stands in for a standard stream, and writes lines to the log."""

    def __init__(self, level: int, stream: Any) -> None:
        self._level = level
        self._stream = stream
        self._thread = threading.local()

    def write(self, text: str) -> int:
        if getattr(self._thread, "is_logging", False):
            # A handler writes to this very stream, as logging does where nothing is configured.
            return int(self._stream.write(text)) if self._stream else len(text)
        self._thread.is_logging = True
        try:
            if text.strip():
                logger.log(self._level, text.rstrip("\n"))
        finally:
            self._thread.is_logging = False
        return len(text)

    def flush(self) -> None:
        if self._stream:
            self._stream.flush()

    def isatty(self) -> bool:
        return False


def _configure_log_std() -> None:
    """Send what is printed to the log: standard output as INFO, standard error as ERROR."""
    sys.stdout = _LogWriter(logging.INFO, sys.stdout)
    sys.stderr = _LogWriter(logging.ERROR, sys.stderr)


class Command(BaseCommand):
    """Takes and runs due tasks until it is told to stop.

    Exit codes: 0 after SIGTERM, SIGINT, SIGTSTP or ``--duration``; 128 + the signal when a second
    one stopped a running task; 1 when it could not start.
    """

    help = "Run tasks that are scheduled to run on the queue"

    OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (
            ("--duration",),
            {
                "action": "store",
                "dest": "duration",
                "type": int,
                "default": 0,
                "help": "Run for this many seconds, then finish the task that runs and stop "
                "(0 or less: for ever, the default)",
            },
        ),
        (
            ("--sleep",),
            {
                "action": "store",
                "dest": "sleep",
                "type": float,
                "default": 5.0,
                "help": "Seconds to wait before looking again when there was no task (default: 5)",
            },
        ),
        (
            ("--queue",),
            {
                "action": "store",
                "dest": "queue",
                "help": "Only run tasks of this queue (default: of every queue, and of none)",
            },
        ),
        (
            ("--database",),
            {
                "action": "store",
                "dest": "database",
                "help": "Take tasks of this database, an alias of DATABASES (default: the one that "
                "the database routers name)",
            },
        ),
        (
            ("--concurrency",),
            {
                "action": "store",
                "dest": "concurrency",
                "type": int,
                "default": None,
                "help": "How many async tasks may be in flight at a time, on one event loop "
                "(default: the setting BACKGROUND_TASK_CONCURRENCY, which is 100)",
            },
        ),
        (
            ("--log-std",),
            {
                "action": "store_true",
                "dest": "log_std",
                "help": "Redirect standard output and standard error to the logging system",
            },
        ),
        (
            ("--dev",),
            {
                "action": "store_true",
                "dest": "dev",
                "help": "Start anew whenever the code changes; for development only",
            },
        ),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sig_manager: Any = None
        self._tasks = tasks

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        for names, options in self.OPTIONS:
            parser.add_argument(*names, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        """Take the signals, run, and give the signals back."""
        if options.get("dev"):
            self._handle_in_reloader(*args, **options)
            return
        owns_process = getattr(self, "_called_from_command_line", False)
        self.sig_manager = SignalManager(self._leave_soon if owns_process else None)
        try:
            self.run(*args, **options)
        finally:
            if owns_process:
                # A signal that comes a moment too late must not turn a graceful stop into a kill.
                # Until then the handlers stay: threads of the project may keep the process alive.
                atexit.register(self.sig_manager.ignore)
            else:
                self.sig_manager.restore()

    def _handle_in_reloader(self, *args: Any, **options: Any) -> None:
        if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
            # This process only starts the worker anew. Ctrl-C reaches the worker too, which
            # finishes its task; an interrupted parent would kill it.
            signal.signal(signal.SIGINT, lambda signum, frame: None)
        else:
            self.sig_manager = SignalManager()
            # The reloader ends the process while the worker's thread is in a task.
            atexit.register(runs.hand_back)
        autoreload.run_with_reloader(self._run_then_exit, *args, **options)

    def _run_then_exit(self, *args: Any, **options: Any) -> None:
        self.run(*args, **options)
        _thread.interrupt_main(signal.SIGTERM)  # which the reloader takes for "exit 0"

    def run(self, *args: Any, **options: Any) -> None:
        """Work until the duration is over or a signal asks to stop."""
        duration = options.get("duration") or 0
        sleep = options.get("sleep", 5.0)
        if options.get("dev"):
            autoreload.raise_last_exception()
        if self._tasks._pool_runner.is_current_thread:
            raise CommandError("process_tasks was called by a task: the worker would wait for it.")
        if not 0 <= sleep < float("inf"):
            raise CommandError(f"--sleep is {sleep}; it must be a number of seconds, 0 or more.")
        concurrency = options.get("concurrency")
        if concurrency is None:
            concurrency = app_settings.BACKGROUND_TASK_CONCURRENCY
        if concurrency < 1:
            raise CommandError(
                f"--concurrency is {concurrency}; it must be a whole number, 1 at least."
            )
        database = options.get("database")
        if database is not None and database not in settings.DATABASES:
            raise CommandError(
                f"--database is {database!r}; the databases are {', '.join(settings.DATABASES)}."
            )
        streams = sys.stdout, sys.stderr
        if options.get("log_std"):
            _configure_log_std()
        outer = self._tasks.database
        try:
            self._tasks.database = database
            named_databases.update(filter(None, [database]))
            self._work(duration, sleep, options.get("queue"), concurrency)
        finally:
            self._tasks.database = outer
            sys.stdout, sys.stderr = streams

    def _work(self, duration: float, sleep: float, queue: str | None, concurrency: int) -> None:
        try:
            autodiscover()
        except TaskModuleError as error:
            raise CommandError(str(error)) from error
        using = self._tasks.queue_database()
        _require_tables(using)
        self._tasks._pool_runner.on_free = getattr(self.sig_manager, "wake", _nothing)
        duties = Duties(self._tasks)
        deadline = time.monotonic() + duration if duration > 0 else None
        logger.info("Taking tasks of %s", f"the queue {queue!r}" if queue else "every queue")
        elsewhere = self._tasks.elsewhere
        coroutines = Coroutines(self._tasks, queue, concurrency, sleep)
        functions = Functions(self._tasks, queue)
        by_batches = self._may_batch()
        self._tasks.elsewhere = Names(self._tasks).coroutines if by_batches else None
        try:
            while not self.sig_manager.kill_now and not _past(deadline):
                duties.run_if_due()
                if by_batches:
                    coroutines.start()
                if self._run_some(functions if by_batches else None, queue):
                    self._pause()
                    continue
                close_old()
                duties.run_when_idle()
                pause = self._look(using, queue, sleep)
                if pause > 0:
                    logger.debug("waiting for tasks")
                    self._wait(_at_most(pause, deadline))
            self._drain(coroutines)
            logger.info("Stopped; no task was left running")
        except ForcedStop:
            runs.hand_back()
            coroutines.close()  # which lets what was cancelled tidy up
            self._exit(exit_code(self.sig_manager.signum))
        except BaseException:
            runs.hand_back()
            raise
        finally:
            coroutines.close()
            functions.close()
            self._tasks.elsewhere = elsewhere
            self._tasks._pool_runner.on_free = _nothing
            self._tasks._pool_runner.close()
            _settle_doubts(using)

    def _exit(self, code: int) -> NoReturn:
        """Stop at once; what a task has left running in threads would hold the process up."""
        others = set(threading.enumerate()) - {threading.main_thread()}
        if getattr(self, "_called_from_command_line", False) and any(
            not thread.daemon for thread in others
        ):
            leave(code)
        sys.exit(code)

    def _leave_soon(self) -> None:
        """End the process soon after a second signal, whether or not the main thread gets to it."""
        hold_off_signals()
        time.sleep(GRACE)
        with suppress(RuntimeError):  # the interpreter is ending already
            handing_back = threading.Thread(target=runs.hand_back, daemon=True)
            handing_back.start()
            handing_back.join(GRACE)
        leave(exit_code(self.sig_manager.signum))

    def _pause(self) -> None:
        """Rest between two tasks, when SIGUSR2 asked for it; at the fast pace there is no rest."""
        if self.sig_manager.time_to_wait is not TTW_FAST:
            self._wait(random.uniform(*self.sig_manager.time_to_wait))  # noqa: S311

    def _wait(self, seconds: float) -> None:
        """Sleep, and wake for a signal where the project's own signal manager can."""
        getattr(self.sig_manager, "wait", time.sleep)(seconds)

    def _look(self, using: str, queue: str | None, sleep: float) -> float:
        """Return how long there is nothing to do, in seconds."""
        engine = Engine.on(using)

        def look() -> float:
            if taking.settle(engine):
                return 0
            upcoming = readiness.look(engine, Wanted(self._tasks._tasks, queue)).upcoming
            return sleep if upcoming is None else min(sleep, max(upcoming, 0))

        return unless_unreachable(engine.connection, look, otherwise=sleep)

    def _may_batch(self) -> bool:
        reason = taking.reason_against(self._tasks)
        if reason:
            logger.debug("Tasks are taken one by one: %s", reason)
        return reason is None

    def _run_some(self, functions: Functions | None, queue: str | None) -> bool:
        """Take and run functions; in threads, and where a step is the project's own, one by one."""
        if functions is None or app_settings.BACKGROUND_TASK_RUN_ASYNC:
            return bool(self._tasks.run_next_task(queue))
        return functions.run_some(only_one=self.sig_manager.time_to_wait is not TTW_FAST)

    def _drain(self, coroutines: Coroutines) -> None:
        """Wait for what runs in threads; a second request to stop hands it back instead."""
        said = False
        coroutines.stop()
        while not (coroutines.drain(0.1) and self._tasks._pool_runner.drain(timeout=0.1)):
            if getattr(self.sig_manager, "kill_now", False) and not said:
                said = True
                say(STOPPING)
            if getattr(self.sig_manager, "force_now", False):
                raise ForcedStop


def _settle_doubts(using: str) -> None:
    engine = Engine.on(using)
    try:
        persevere(engine.connection, "unlock rows", lambda: runs.settle_doubts(engine), HURRIED)
    except Exception as error:
        logger.warning("A row may stay locked until MAX_RUN_TIME is over: %s", error)


def _nothing() -> None:
    pass


def _past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _at_most(seconds: float, deadline: float | None) -> float:
    return seconds if deadline is None else max(0.0, min(seconds, deadline - time.monotonic()))


def _require_tables(using: str) -> None:
    """Refuse to start without tables, rather than fail at every look; an outage is waited for."""
    try:
        # The last column that a migration added, so that one which was not run is noticed too.
        Task.objects.using(using).values("return_value").first()
    except Exception as error:
        if vendors.is_missing_table(error):
            raise CommandError(
                f"The database {using!r} lacks the table {Task._meta.db_table}, or columns of it: "
                "run manage.py migrate."
            ) from error
        if not isinstance(error, TRANSIENT):
            raise
        logger.warning("The database %r is unreachable (%s); trying again.", using, error)
        disconnect(connections[using])
