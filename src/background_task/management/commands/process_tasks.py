"""``manage.py process_tasks``: the worker."""

from __future__ import annotations

import _thread
import atexit
import signal
import sys
import time
from argparse import Action, ArgumentParser, Namespace
from dataclasses import replace
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import autoreload

from background_task import discovery, vendors
from background_task.exceptions import BackgroundTaskError
from background_task.execution.runs import runs
from background_task.storage.transient import (
    BETWEEN_COMPLAINTS,
    BETWEEN_PROBES,
    TRANSIENT,
    reason,
)
from background_task.tasks import autodiscover, tasks
from background_task.utils import ForcedStop, SignalManager, exit_code, leave
from background_task.worker import reloading, taking
from background_task.worker.options import Options, Unsaid, UnsaidInt
from background_task.worker.output import log_what_is_printed as _configure_log_std
from background_task.worker.output import logger
from background_task.worker.process import Process
from background_task.worker.shutdown import (
    LONGEST_EXIT,
    leave_now,
    leave_soon,
    limit_exit,
    start_anew,
)
from background_task.worker.supervisor import Supervisor
from background_task.worker.systemd import ServiceManager

__all__ = ["Command", "_configure_log_std", "autodiscover", "logger"]


def _options(given: dict[str, Any]) -> Options:
    options = Options.of(given)
    return replace(options, processes=1) if given.get("dev") else options


class _Joined(Action):
    """Joins what is said several times: ``--queue a --queue b`` is ``--queue a,b``."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


class Command(BaseCommand):
    """Takes and runs due tasks until it is told to stop.

    Exit codes: 0 after SIGTERM, SIGINT, SIGTSTP, or when an option says that it is enough; 128 +
    the signal when a second one, or the end of patience, stopped a running task; 1 when it could
    not start. See ``docs/deployment.md``.
    """

    help = "Run tasks that are scheduled to run on the queue"

    OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
        (
            ("--duration",),
            {
                "action": "store",
                "dest": "duration",
                "type": int,
                "default": UnsaidInt(0),
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
                "default": Unsaid(5.0),
                "help": "Seconds at most before it looks again when there was no task and nothing "
                "has told of one (default: 5)",
            },
        ),
        (
            ("--queue",),
            {
                "action": _Joined,
                "dest": "queue",
                "metavar": "NAME[,NAME...]",
                "help": "Only run tasks of these queues, the first named first; * are all others "
                "(default: every queue, and tasks of none)",
            },
        ),
        (
            ("--exclude-queue",),
            {
                "action": _Joined,
                "dest": "exclude_queue",
                "metavar": "NAME[,NAME...]",
                "help": "Run no tasks of these queues",
            },
        ),
        (
            ("--database",),
            {
                "action": "store",
                "dest": "database",
                "metavar": "ALIAS",
                "help": "Take tasks of this database, an alias of DATABASES (default: the one that "
                "the database routers name)",
            },
        ),
        (
            ("--backend",),
            {
                "action": "store",
                "dest": "backend",
                "metavar": "ALIAS",
                "help": "Only run tasks that were enqueued by this backend, an alias of TASKS",
            },
        ),
        (
            ("--processes",),
            {
                "action": "store",
                "dest": "processes",
                "type": int,
                "default": None,
                "metavar": "N",
                "help": "Run in so many processes, which are watched and replaced; 0 are as many "
                "as there are cores (default: 1, this one)",
            },
        ),
        (
            ("--threads",),
            {
                "action": "store",
                "dest": "threads",
                "type": int,
                "default": None,
                "metavar": "N",
                "help": "How many functions run at a time in each process (default: 1; with "
                "BACKGROUND_TASK_RUN_ASYNC, BACKGROUND_TASK_ASYNC_THREADS)",
            },
        ),
        (
            ("--concurrency",),
            {
                "action": "store",
                "dest": "concurrency",
                "type": int,
                "default": None,
                "metavar": "N",
                "help": "How many async tasks may be in flight in each process at a time, on one "
                "event loop (default: 100)",
            },
        ),
        (
            ("--burst",),
            {
                "action": "store_true",
                "dest": "burst",
                "help": "Run what is due, and what that enqueues, then stop",
            },
        ),
        (
            ("--max-tasks",),
            {
                "action": "store",
                "dest": "max_tasks",
                "type": int,
                "default": None,
                "metavar": "N",
                "help": "Stop after so many tasks; with --processes, each process is replaced then",
            },
        ),
        (
            ("--max-memory",),
            {
                "action": "store",
                "dest": "max_memory",
                "type": float,
                "default": None,
                "metavar": "MIB",
                "help": "Stop when the process uses more memory than that after a task, or after "
                "some short ones, in MiB; with --processes, it is replaced then",
            },
        ),
        (
            ("--shutdown-timeout",),
            {
                "action": "store",
                "dest": "shutdown_timeout",
                "type": float,
                "default": None,
                "metavar": "SECONDS",
                "help": "How long running tasks may take to finish after the first signal, before "
                "they are handed back as after a second one (default: as long as they take)",
            },
        ),
        (
            ("--worker-name",),
            {
                "action": "store",
                "dest": "worker_name",
                "metavar": "NAME",
                "help": "What operators are to call this worker (default: the name of the host)",
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
        self._worker: Process | Supervisor | None = None
        self._tasks = tasks

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        for names, options in self.OPTIONS:
            parser.add_argument(*names, **options)

    def check(self, *args: Any, **kwargs: Any) -> None:
        """Run the system checks; on MySQL they ask the server, which may not be there yet."""
        next_complaint = 0.0
        while True:
            try:
                return super().check(*args, **kwargs)
            except TRANSIENT as error:
                if vendors.is_missing_table(error):
                    raise
                if time.monotonic() >= next_complaint:
                    next_complaint = time.monotonic() + BETWEEN_COMPLAINTS
                    logger.warning("The database is unreachable (%s); waiting.", reason(error))
                time.sleep(BETWEEN_PROBES)

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        """Check nothing yet with ``--dev``: an error would end what waits for it to be mended."""
        return {"tags": set()} if options.get("dev") else super().get_check_kwargs(options)

    def handle(self, *args: Any, **options: Any) -> None:
        """Take the signals, run, and give the signals back."""
        if options.get("dev") and options.get("processes") not in (None, 1):
            raise CommandError(
                "--dev starts one process anew whenever the code changes, and --processes asks for "
                "more: leave one of them out."
            )
        if options.get("dev"):
            self._handle_in_reloader(*args, **options)
            return
        self.sig_manager = SignalManager(self._on_force if self._owns_process else None)
        code = 1
        try:
            self.run(*args, **options)
            code = 0
        finally:
            if self._owns_process:
                # A signal that comes a moment too late must not turn a graceful stop into a kill.
                # Until then the handlers stay: threads of the project may keep the process alive.
                atexit.register(self.sig_manager.ignore)
                limit_exit(code, LONGEST_EXIT)
            else:
                self.sig_manager.restore()

    def _on_force(self) -> None:
        if isinstance(self._worker, Supervisor):
            self._worker.leave_soon()
        else:
            leave_soon(self.sig_manager)

    def _handle_in_reloader(self, *args: Any, **options: Any) -> None:
        if not reloading.is_restarted():
            reloading.hand_on("SIGTERM", "SIGINT", "SIGTSTP")
        else:
            orders = reloading.orders()
            if orders is None:
                self.sig_manager = SignalManager(self._on_force)
            else:
                self.sig_manager = reloading.RestartedSignals(orders)
            # The reloader ends the process while the worker's thread is in a task.
            atexit.register(runs.hand_back)
            atexit.register(self.sig_manager.ignore)
        autoreload.run_with_reloader(self._run_then_exit, *args, **options)

    def _run_then_exit(self, *args: Any, **options: Any) -> None:
        for config, error in discovery.broken_modules():
            if discovery.stops_worker(config):
                # The reloader watches the file that it names, which may be imported by a tasks.py.
                raise error.__cause__ or error
        if not options.get("skip_checks"):
            self.check()
        self.sig_manager.is_working = True
        try:
            self.run(*args, **options)
        finally:
            self.sig_manager.is_working = False
        _thread.interrupt_main(signal.SIGTERM)  # which ends the process by "exit 0"

    def run(self, *args: Any, **options: Any) -> None:
        """Work until the options or a signal say that it is enough."""
        if options.get("dev"):
            autoreload.raise_last_exception()
        if self._tasks._pool_runner.is_current_thread:
            raise CommandError("process_tasks was called by a task: the worker would wait for it.")
        streams = sys.stdout, sys.stderr
        log_std = bool(options.get("log_std"))
        if log_std:
            _configure_log_std()
        try:
            self._run(_options(options), log_std=log_std)
        except BackgroundTaskError as error:
            raise CommandError(str(error)) from error
        finally:
            sys.stdout, sys.stderr = streams

    def _run(self, options: Options, *, log_std: bool) -> None:
        if taking.is_alone(self._tasks, options.database):
            options = options.by_one_thread()
        service = ServiceManager.of_this_process() if self._owns_process else ServiceManager()
        if self._owns_process:
            self.sig_manager.patience = options.shutdown_timeout
        worker: Process | Supervisor
        if options.processes > 1:
            worker = Supervisor(self._tasks, options, self.sig_manager, service, log_std=log_std)
        elif self._owns_process:
            worker = Process(
                self._tasks,
                options,
                self.sig_manager,
                service=service,
                replace=lambda: self._start_anew(worker, service),
            )
        else:
            worker = Process(self._tasks, options, self.sig_manager)
        self._worker = worker
        try:
            worker.run()
        except ForcedStop:
            code = exit_code(self.sig_manager.signum)
            if self._owns_process:
                leave_now(code)
            sys.exit(code)

    def _start_anew(self, worker: Any, service: ServiceManager) -> NoReturn:
        service.give_back()
        if isinstance(self.sig_manager, reloading.RestartedSignals):
            leave(reloading.RESTART)  # a program in its place would not know where it is told
        start_anew(worker.rest())

    @property
    def _owns_process(self) -> bool:
        """Whether the process is there for nothing else."""
        return bool(getattr(self, "_called_from_command_line", False))
