"""One process that takes and runs tasks, from start to end: register, loop, drain, leave."""

from __future__ import annotations

import math
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections

from background_task import logs, vendors
from background_task.discovery import autodiscover
from background_task.exceptions import ArgumentValueError, BackgroundTaskError
from background_task.execution.connections import go_back_to_pools, keep_out_of_pools
from background_task.execution.interruptions import here, limits
from background_task.execution.runs import runs
from background_task.models import Task, Worker
from background_task.models.shared import named_databases
from background_task.records import Wanted
from background_task.settings import app_settings
from background_task.signals import close_old
from background_task.storage import readiness
from background_task.storage.engine import Engine
from background_task.storage.notifications import told_here
from background_task.storage.overrides import replaced
from background_task.storage.transient import HURRIED, TRANSIENT, disconnect, persevere, reason
from background_task.tasks import unless_unreachable
from background_task.utils import (
    STOPPING,
    TTW_FAST,
    ForcedStop,
    SignalManager,
    hold_off_signals,
    leave,
    say,
)
from background_task.worker import requests, taking
from background_task.worker.budget import Budget
from background_task.worker.coroutines import Coroutines
from background_task.worker.duties import Duties
from background_task.worker.functions import Functions
from background_task.worker.lookout import LEAST_SLEEP, Lookout
from background_task.worker.options import EVERY, SETTING, Options
from background_task.worker.shutdown import hand_back, let_go, stop_code
from background_task.worker.systemd import ServiceManager
from background_task.worker.threads import Threads

if TYPE_CHECKING:
    from background_task.tasks import Tasks

logger = logs.named("background_task.tasks")

# The intervals are in seconds: how long nobody need tell the main thread to look, how often an end
# is looked for, and how long the first beat may take.
LONGEST_PAUSE = 60.0
BETWEEN_LOOKS = 0.1
FIRST_BEAT = 1.0


class Process:
    """A worker in the calling process.

    Args:
        tasks: the registry.
        options: what it is to do.
        signals: what tells it to stop: a ``SignalManager``, or a project's own.
        supervisor: the ``worker_id`` of the process that has started this one.
        service: who is told how it is.
        on_ready: called when tasks are about to be taken.
        replace: ends this process, and sees to it that another takes its place; None where it is
            not ours to end.
    """

    def __init__(
        self,
        tasks: Tasks,
        options: Options,
        signals: Any,
        supervisor: str | None = None,
        service: ServiceManager | None = None,
        on_ready: Callable[[], None] = lambda: None,
        replace: Callable[[], None] | None = None,
    ) -> None:
        self._tasks = tasks
        self._options = options
        self._signals = signals
        self._supervisor = supervisor
        self._service = service or ServiceManager()
        self._on_ready = on_ready
        self._replace = replace
        self._deadline = time.monotonic() + options.duration if options.duration > 0 else None
        self._budget = Budget(options.max_tasks, options.max_memory)
        self._duties = Duties(tasks)
        self._next_claim = 0.0
        self._using = ""
        self._functions: Functions | None = None
        self._threads: Threads | None = None
        self._coroutines: Coroutines | None = None
        self._heart: Lookout | None = None
        self._gives_way = False
        # Whether it has ended since it has run enough tasks, or uses too much memory.
        self.is_used_up = False
        # Whether the main thread waits for a function to run, and hears by itself of new rows.
        self.is_hungry = self.hears = False

    def run(self) -> None:
        """Work until the options or a signal say that it is enough.

        Raises:
            BackgroundTaskError: it cannot start: a ``tasks.py`` is broken, the database lacks a
                table, or an option cannot be had in this project.
            ForcedStop: a second request to stop has come; what ran was handed back.
        """
        outer, self._tasks.database = self._tasks.database, self._options.database
        named_databases.update(filter(None, [self._options.database]))
        pooled = keep_out_of_pools()
        try:
            autodiscover()
            self._using = self._tasks.queue_database()
            require_tables(self._using)
            with ExitStack() as stack:
                self._keep_to_the_deadline(stack)
                self._open(stack)
                try:
                    self._work()
                    is_through = self._has_drained_in_time()
                except BaseException:
                    runs.hand_back()
                    raise
                if is_through:
                    logger.info("Stopped; no task was left running")
                else:
                    self._hand_back()
        finally:
            self._tasks.database = outer
            go_back_to_pools(pooled)

    def _keep_to_the_deadline(self, stack: ExitStack) -> None:
        """Let the end of the duration be like a first signal, where what runs has only so long."""
        signals, deadline = self._signals, self._deadline
        if deadline is None or self._options.shutdown_timeout is None:
            return
        has_ended = threading.Event()
        stack.callback(has_ended.set)

        def wait() -> None:
            hold_off_signals()
            is_over = has_ended.wait(max(deadline - time.monotonic(), 0))
            if not is_over and not signals.kill_now:
                signals.exit_gracefully(None, None)

        threading.Thread(target=wait, name="duration", daemon=True).start()

    def _open(self, stack: ExitStack) -> None:
        """Get everything ready that takes, runs and records, and have it closed in the end."""
        tasks, options = self._tasks, self._options
        reason = taking.reason_against(tasks)
        elsewhere = tasks.elsewhere
        stack.callback(_settle_doubts, self._using)
        stack.callback(tasks._pool_runner.close)
        stack.callback(setattr, tasks._pool_runner, "on_free", tasks._pool_runner.on_free)
        stack.callback(setattr, tasks, "elsewhere", elsewhere)
        tasks._pool_runner.on_free = self.wake
        if reason is None:
            self._open_batches(stack)
        else:
            self._require_no_batches(reason)
        is_alone = taking.is_alone(tasks)
        if not is_alone and elsewhere is None:
            drivers = [each for each in (self._threads, self._coroutines) if each is not None]
            self._heart = Lookout(
                self._using,
                name=options.worker_name or socket.gethostname(),
                queues=str(options.queues),
                drivers=drivers if self._threads is not None else [self, *drivers],
                sleep=options.sleep,
                known=self._duties.known,
                on_unknown=self._expect_unknown,
                supervisor=self._supervisor,
                on_request=partial(requests.heed, self._using),
            )
            stack.callback(self._heart.stop)
            stack.enter_context(told_here(self._using, self._heart.poke))
            self._heart.start()
        if self._replace is not None:
            stack.callback(setattr, limits, "replace_process", limits.replace_process)
            limits.replace_process = self._give_way
        tasks.elsewhere = None if reason else taking.Names(tasks).coroutines
        logger.info("Taking tasks of the queues %s", options.queues)

    def _give_way(self) -> None:
        """Hand back what runs here, and let another process take this one's place."""
        self._gives_way = True
        taking.close()
        let_go()
        hand_back()
        if self._heart is not None:
            self._heart.stop()
        if self._signals.kill_now or (self._supervisor is None and self._is_through):
            # Nobody is to take its place.
            leave(stop_code(getattr(self._signals, "signum", None)))
        if self._replace is not None:
            self._replace()

    def rest(self) -> list[str]:
        """Return the options by which a process does what is left of this one's work."""
        options = []
        if self._deadline is not None:
            options += ["--duration", str(max(1, math.ceil(self._deadline - time.monotonic())))]
        if self._budget.left is not None:
            options += ["--max-tasks", str(max(1, self._budget.left))]
        return options

    def _open_batches(self, stack: ExitStack) -> None:
        tasks, options = self._tasks, self._options
        engine = Engine(self._using)
        if options.threads > 1:
            self._threads = Threads(
                options.threads, self._make_functions, engine, on_hunger=self._expect_hunger
            )
            stack.callback(self._threads.stop)
        else:
            stack.callback(engine.close)
            self._functions = self._make_functions(engine)
            stack.callback(self._functions.close)
        self._coroutines = Coroutines(
            tasks,
            options.queues,
            options.backend,
            options.concurrency,
            self._budget,
            on_hunger=self._expect_hunger,
        )
        stack.callback(self._coroutines.close)

    def _make_functions(self, engine: Engine) -> Functions:
        options = self._options
        is_shared = options.threads > 1
        return Functions(
            self._tasks,
            engine,
            options.queues,
            options.backend,
            self._budget,
            None if is_shared else self._note_held,
        )

    def _expect_hunger(self) -> None:
        if self._heart is not None:
            self._heart.expect_hunger()

    def _note_held(self, keys: Any) -> bool:
        return self._heart is None or self._heart.note_held(keys)

    def _require_no_batches(self, reason: str) -> None:
        """Refuse what the predecessor's steps know nothing of, rather than ignore it."""
        options = self._options
        asked = {
            "--exclude-queue": options.queues.excluded,
            "--backend": options.backend,
            "--threads": options.threads > 1 and not app_settings.BACKGROUND_TASK_RUN_ASYNC,
        }
        for name, value in asked.items():
            if value:
                key = name.removeprefix("--").replace("-", "_")
                where = f"the setting {SETTING}" if key in options.from_setting else "the call"
                raise ArgumentValueError(
                    f"{name} cannot be had here: tasks are taken one by one, since {reason}. Leave "
                    f"it out of {where}."
                )
        logger.debug("Tasks are taken one by one: %s", reason)

    def wanted(self) -> Wanted:
        """Return which rows the main thread waits for."""
        if self._functions is not None:
            return self._functions.wanted()
        return self._options.queues.all(frozenset(self._tasks.names_here()), self._options.backend)

    @property
    def is_busy(self) -> bool:
        """Whether the main thread has something to do."""
        return not self.is_hungry

    def wake(self) -> None:
        """Let the main thread look for tasks; safe in any thread."""
        getattr(self._signals, "wake", _nothing)()

    def _work(self) -> None:
        is_ready = False
        while not self._is_enough():
            self._keep_signals()
            if self._heart is not None and not self._heart.wait_until_registered(FIRST_BEAT):
                continue  # what it takes could not be rescued
            if not is_ready:
                is_ready = True
                self._say_ready()
            self._duties.run_if_due()
            self._start_others()
            if self._run_some():
                self._rest()
                continue
            close_old()
            if self._duties.run_when_idle(is_told=self._is_told()):
                self._wake_all()
            if self._options.burst and self._is_done():
                break
            self._wait_for_work()
        # Before the others are stopped, who may then give back something.
        self.is_used_up = self._budget.is_spent or self._budget.was_too_heavy
        self._service.is_stopping()

    def _wake_all(self) -> None:
        for each in (self, self._threads, self._coroutines):
            if each is not None:
                each.wake()

    def _expect_unknown(self) -> None:
        self._duties.expect_unknown()
        self.wake()  # a module may be imported in the main thread only, if it takes signals

    def _keep_signals(self) -> None:
        """Take signals back that a task has taken; asyncio leaves them at their defaults."""
        getattr(self._signals, "keep", _nothing)()

    def _say_ready(self) -> None:
        self._on_ready()
        self._service.is_ready(f"Taking tasks of the queues {self._options.queues}")
        self._service.watch(lambda: self._heart is None or self._heart.is_alive)

    def _is_enough(self) -> bool:
        while self._gives_way:
            time.sleep(LONGEST_PAUSE)  # another thread ends this process
        return bool(self._signals.kill_now or self._is_through or self._budget.weigh())

    @property
    def _is_through(self) -> bool:
        """Whether its time is over, or it has run as many tasks as it was to."""
        is_late = self._deadline is not None and time.monotonic() >= self._deadline
        return is_late or self._budget.is_spent

    def _start_others(self) -> None:
        if self._coroutines is not None:
            self._coroutines.start()
        if self._threads is not None:
            self._threads.start()

    def _run_some(self) -> bool:
        """Take and run functions in this thread; tells whether there were some."""
        if self._threads is not None:
            return False
        if self._functions is not None:
            if self._is_told() and time.monotonic() < self._next_claim:
                return False
            self._next_claim = 0.0
            return self._functions.run_some(only_one=self._signals.time_to_wait is not TTW_FAST)
        queues = self._options.queues.order or (EVERY,)
        return any(self._run_one(None if queue == EVERY else queue) for queue in queues)

    def _run_one(self, queue: str | None) -> bool:
        """Take and run one as the predecessor does; tells whether there was one."""
        place = here()
        is_busy = place.is_busy  # with the task that has called this worker
        with self._budget.grant(1) as grant:
            # One that does not come back, since this process ends with it, has begun, too.
            grant.begun = lambda: grant.taken or int(place.is_busy and not is_busy)
            if grant.most and self._tasks.run_next_task(queue):
                grant.taken = 1
        return grant.taken > 0

    def _is_told(self) -> bool:
        """Tell whether somebody sees to it that this thread is woken when there is work."""
        return self._heart is not None and self._heart.is_alive

    def _rest(self) -> None:
        """Rest between two tasks, when SIGUSR2 asked for it; at the fast pace there is no rest."""
        if self._signals.time_to_wait is not TTW_FAST:
            self._wait(random.uniform(*self._signals.time_to_wait))  # noqa: S311

    def _wait(self, seconds: float, *files: int) -> bool:
        """Sleep; tells whether somebody woke us, or one of these can be read, or may be so."""
        if self._deadline is not None:
            seconds = max(0.0, min(seconds, self._deadline - time.monotonic()))
        wait = getattr(self._signals, "wait", time.sleep)
        return wait(seconds, *files) is not False

    def _listen(self) -> list[int]:
        """Hear by ourselves what the lookout hears: to be woken by it takes as long again."""
        signals = self._signals
        if self._functions is None or not isinstance(signals, SignalManager):
            return []
        if replaced(signals, "wait"):  # what stands in for it may know of no files
            return []
        file = self._functions.listen()
        return [] if file is None else [file]

    def _wait_for_work(self) -> None:
        # Where nobody tells, what is due sooner shortens it.
        pause = max(self._options.sleep, LEAST_SLEEP)
        if self._options.burst or self._options.max_memory or self._budget.left is not None:
            pause = min(pause, BETWEEN_LOOKS)
        if not self._is_told():
            pause = min(pause, self._look())
        if pause <= 0:
            return
        logger.debug("waiting for tasks")
        files = self._listen()
        self.hears = bool(files)
        self.is_hungry = True
        self._expect_hunger()
        is_woken = self._wait(pause, *files)
        self.is_hungry = False
        if not is_woken and self._next_claim == 0:
            self._next_claim = time.monotonic() + LONGEST_PAUSE
        elif is_woken:
            self._next_claim = 0.0

    def _look(self) -> float:
        """Return how long there is nothing to do, in seconds, where no heart tells."""
        engine = Engine.on(self._using)

        def look() -> float:
            if readiness.settle(engine):
                return 0
            upcoming = readiness.look(engine, self.wanted()).upcoming
            return math.inf if upcoming is None else max(upcoming, 0)

        return unless_unreachable(engine.connection, look, otherwise=math.inf)

    def _is_done(self) -> bool:
        """Tell whether nothing runs and nothing is due."""

        def is_busy() -> bool:
            others = (self._threads, self._coroutines)
            return any(each is not None and each.is_busy for each in others)

        if is_busy():
            return False
        engine = Engine.on(self._using)
        names = frozenset(self._tasks._tasks)
        wanted = self._options.queues.all(names, self._options.backend)

        def look() -> bool:
            readiness.settle(engine)
            found = readiness.look(engine, wanted)
            return not (found.is_ready or found.is_rescued or found.is_unsettled)

        if unless_unreachable(engine.connection, look, otherwise=False):
            # What one of them has taken meanwhile it may give back, when it is to stop.
            return not is_busy()
        self._wake_all()
        return False

    def _has_drained_in_time(self) -> bool:
        """Wait for what runs in threads; False when it is not to be waited for any longer."""
        began, has_said = time.monotonic(), False
        patience = self._options.shutdown_timeout
        for each in (self._threads, self._coroutines):
            if each is not None:
                each.stop()
        while not self._has_drained():
            if getattr(self._signals, "kill_now", False) and not has_said:
                has_said = True
                say(STOPPING)
            is_late = patience is not None and time.monotonic() - began > patience
            if getattr(self._signals, "force_now", False) or is_late:
                return False
        return True

    def _has_drained(self) -> bool:
        drains = [each.drain for each in (self._threads, self._coroutines) if each is not None]
        return all(drain(0.1) for drain in drains) and self._tasks._pool_runner.drain(timeout=0.1)

    def _hand_back(self) -> None:
        runs.hand_back()
        # What runs may have ended meanwhile, and is then no reason to complain.
        if runs.were_cut_off or not self._has_drained():
            raise ForcedStop


def _settle_doubts(using: str) -> None:
    engine = Engine.on(using)

    def settle() -> None:
        runs.settle_doubts(engine)

    try:
        persevere(engine.connection, "unlock rows", settle, HURRIED)
    except Exception as error:
        logger.warning("A row may stay locked until another worker frees it: %s", reason(error))


def _nothing() -> None:
    pass


def require_tables(using: str) -> None:
    """Refuse to start without tables, rather than fail at every look; an outage is waited for."""
    try:
        # What the last migration added, so that one which was not run is noticed too.
        Worker.objects.using(using).values("requests").first()
        Task.objects.using(using).values("return_value").first()
    except Exception as error:
        if vendors.is_missing_table(error):
            raise BackgroundTaskError(
                f"The database {using!r} lacks the table {Task._meta.db_table}, or columns of it: "
                "run manage.py migrate."
            ) from error
        if not isinstance(error, TRANSIENT):
            raise
        logger.warning("The database %r is unreachable (%s); trying again.", using, reason(error))
        disconnect(connections[using])
