"""The registry of tasks, and the runner that takes and runs them one by one.

This is the predecessor's module: its names, its hooks and its order of events are a contract.
``process_tasks`` calls ``tasks.run_next_task(queue)``, which goes through
``tasks._runner.run_next_task`` → ``get_task_to_run`` → ``run_task`` → ``tasks.run_task`` →
``tasks._bg_runner``; a project may replace any of them.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Collection
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, TypeVar

from django.db import connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from background_task import logs, signals, vendors
from background_task.api import registry
from background_task.api.options import require_function, run_policy
from background_task.api.proxy import DeclaredTask, TaskProxy, check_every
from background_task.discovery import autodiscover
from background_task.exceptions import ArgumentTypeError, BackgroundTaskError
from background_task.execution.attempt import Attempt
from background_task.execution.connections import undisturbed
from background_task.execution.pool import PoolRunner
from background_task.execution.runs import runs
from background_task.models import Task
from background_task.policies import arguments
from background_task.policies.runs import check_atomic
from background_task.policies.schedules import TaskSchedule
from background_task.settings import app_settings
from background_task.states import State
from background_task.storage import claim, enqueue
from background_task.storage.engine import Engine
from background_task.storage.transient import TRANSIENT, afresh, disconnect, reason
from background_task.utils import ForcedStop, SignalManager

__all__ = [
    "BackgroundTaskError",
    "DBTaskRunner",
    "PoolRunner",
    "Task",
    "TaskProxy",
    "TaskSchedule",
    "Tasks",
    "app_settings",
    "autodiscover",
    "bg_runner",
    "logger",
    "signals",
    "tasks",
]

logger = logging.getLogger("background_task.tasks")

_is_inline: ContextVar[bool] = ContextVar("background_task_inline", default=False)
Taken = TypeVar("Taken")

_KEYWORDS = ("name", "schedule", "queue", "remove_existing_tasks", "every")


def bg_runner(proxy_task: Any, task: Task | None = None, *args: Any, **kwargs: Any) -> None:
    """Run the function of ``proxy_task`` and record how it ended. Never raises what a task raised.

    With a ``Task`` the arguments are those of the row. Otherwise they are ``args`` and ``kwargs``,
    and a stored row with the same name and arguments, if there is one, counts as what was run.
    Whatever the function raises, ``SystemExit`` and ``KeyboardInterrupt`` included, is its failure.
    """
    attempt = Attempt(proxy_task, task, logger)
    try:
        args, kwargs = attempt.begin(args, kwargs)
        with attempt.as_current(), undisturbed() as left:
            value = attempt.run_body(args, kwargs)
        attempt.refuse_left_open(left)
        attempt.succeed(value)
    except ForcedStop:
        attempt.run.hand_back()
        raise
    except BaseException as error:
        attempt.fail(error)
    finally:
        attempt.end()


def unless_unreachable(
    connection: BaseDatabaseWrapper, take: Callable[[], Taken], otherwise: Taken
) -> Taken:
    """Return ``take()``, which claims; when the database is away, say so and return otherwise."""
    try:
        return afresh(connection, take)
    except TRANSIENT as error:
        logs.safe(logger).warning(
            "Failed to retrieve tasks. Database unreachable. (%s)", reason(error)
        )
        if not connection.in_atomic_block:
            disconnect(connection)
        return otherwise


class DBTaskRunner:
    """Stores tasks in, and takes them from, the database. Made to be subclassed."""

    def __init__(self) -> None:
        self.worker_name = str(os.getpid())

    def schedule(
        self,
        task_name: str,
        args: Any,
        kwargs: Any,
        run_at: datetime | None = None,
        priority: int = 0,
        action: int = TaskSchedule.SCHEDULE,
        queue: str | None = None,
        verbose_name: str | None = None,
        creator: models.Model | None = None,
        repeat: float | timedelta | None = None,
        repeat_until: datetime | None = None,
        remove_existing_tasks: bool = False,
    ) -> Task | None:
        """Store a task and return it; None when ``action`` found one that is queued already.

        It joins the caller's transaction. What ``remove_existing_tasks`` deletes comes back when
        the new row cannot be stored. For the arguments see :meth:`TaskManager.new_task`.
        """
        create = functools.partial(
            Task.objects.new_task,
            task_name,
            args,
            kwargs,
            run_at,
            priority,
            queue,
            verbose_name,
            creator,
            repeat,
            repeat_until,
        )
        if action != TaskSchedule.SCHEDULE:
            task = create(remove_existing_tasks)
            if self._is_queued(task, action):
                return None
            enqueue.insert(task.database, [task])
        elif remove_existing_tasks:
            using = router.db_for_write(Task)
            with transaction.atomic(using=using):
                vendors.begin_write(using)
                task = create(remove_existing_tasks)
                enqueue.insert(using, [task])
        else:
            task = create()
            enqueue.insert(task.database, [task])
        signals.task_created.send(sender=self.__class__, task=task)
        return task

    @staticmethod
    def _is_queued(task: Task, action: int) -> bool:
        existing = Task.objects.on_primary().filter(task_hash=task.task_hash)
        existing = existing.unlocked(timezone.now())
        if task.queue:
            existing = existing.filter(queue=task.queue)
        if action == TaskSchedule.RESCHEDULE_EXISTING:
            state = State.READY if task.run_at <= timezone.now() else State.SCHEDULED
            with transaction.atomic(using=existing.db):
                rows = existing.in_order()
                return bool(rows.update(run_at=task.run_at, priority=task.priority, state=state))
        return existing.exists()

    def get_task_to_run(self, tasks: Tasks, queue: str | None = None) -> Task | None:
        """Lock the next task and return it; None when there is none, or no database."""
        if app_settings.BACKGROUND_TASK_RUN_ASYNC and tasks._pool_runner.free <= 0:
            return None
        using = tasks.queue_database()

        def take() -> Task | None:
            runs.settle_doubts(Engine.on(using))
            try:
                return claim.claim_next(using, tasks.names_here(), queue, self.worker_name)
            except TRANSIENT:
                runs.doubt(using)
                raise

        return unless_unreachable(connections[using], take, otherwise=None)

    def run_task(self, tasks: Tasks, task: Task) -> None:
        """Run a task that is locked."""
        logs.safe(logger).info("Running %s", task)
        tasks.run_task(task)

    def run_next_task(self, tasks: Tasks, queue: str | None = None) -> bool:
        """Take and run one task; False when there was none."""
        task = self.get_task_to_run(tasks, queue)
        if task and SignalManager.is_stopping():  # it was asked to stop during the claim
            runs.begin(task).hand_back()
            runs.end(task)
            return False
        if task:
            self.run_task(tasks, task)
            return True
        return False


class Tasks:
    """The registry: every function that was marked as a task, by name."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskProxy[..., Any]] = {}
        self._runner: Any = DBTaskRunner()
        self._task_proxy_class: type[TaskProxy[..., Any]] = TaskProxy
        self._bg_runner: Callable[..., None] = bg_runner
        self._pool_runner = PoolRunner(bg_runner, app_settings.BACKGROUND_TASK_ASYNC_THREADS)
        # While the worker runs some tasks in another way than one by one: which ones those are.
        self.elsewhere: Callable[[], Collection[str]] | None = None
        # While the worker takes tasks of a database that the routers do not name: its alias.
        self.database: str | None = None

    def background(
        self,
        name: str | Callable[..., Any] | None = None,
        schedule: Any = None,
        queue: str | None = None,
        remove_existing_tasks: bool = False,
        every: float | timedelta | None = None,
        **options: Any,
    ) -> Any:
        """Mark a function as a task; works bare, with parentheses, and with arguments.

        Args:
            name: the name stored in the rows; ``module.function`` by default.
            schedule: the default of the calls, see :class:`TaskSchedule`.
            queue: the default of the calls; None is no queue.
            remove_existing_tasks: the default of the calls.
            every: seconds, or a timedelta. The worker then keeps exactly one chain of runs with
                this period, without a call; it follows the code, and ends with the declaration.
            options: what the task says about its runs, see :class:`RunPolicy`.

        Raises:
            ArgumentTypeError, ArgumentValueError: an argument is not as described.
        """
        if name is not None and not isinstance(name, str):
            require_function("@background", name)
        function = name if callable(name) else None
        given = None if callable(name) else name
        policy = run_policy(options, _KEYWORDS)

        def decorate(function: Callable[..., Any]) -> TaskProxy[..., Any]:
            require_function("@background", function)
            if given is None and not hasattr(function, "__name__"):
                raise ArgumentTypeError(
                    f"{function!r:.80} has no name of its own: give one, @background('my.name')."
                )
            registered = arguments.task_name(given or f"{function.__module__}.{function.__name__}")
            period = check_every(registered, function, every)
            check_atomic(registered, function, policy)
            proxy = self._task_proxy_class(
                registered,
                function,
                schedule,
                arguments.text("queue", queue, arguments.LONGEST_NAME),
                arguments.flag("remove_existing_tasks", remove_existing_tasks),
                self._runner,
            )
            proxy.every = period
            proxy.policy = policy
            self._tasks[registered] = proxy
            registry.declare_proxy(proxy)
            return proxy

        return decorate(function) if function else decorate

    def run_task(
        self, task_name: str | Task, args: Any = None, kwargs: dict[str, Any] | None = None
    ) -> None:
        """Run a task now: a row, or a function by its registered name.

        Raises:
            KeyError: nothing is registered under this name.
        """
        task = task_name if isinstance(task_name, Task) else None
        self.adopt_declared()
        proxy = self._tasks[task.task_name if task else str(task_name)]
        in_pool = app_settings.BACKGROUND_TASK_RUN_ASYNC and not _is_inline.get()
        run = self._pool_runner if in_pool else self._bg_runner
        if task:
            run(proxy, task)
        else:
            run(proxy, None, *(args or ()), **(kwargs or {}))

    def queue_database(self) -> str:
        """Return the alias of the database that tasks are taken from."""
        return self.database or router.db_for_write(Task)

    def names_here(self) -> Collection[str]:
        """Return the names of the tasks that may be taken one by one."""
        names = self._tasks.keys()
        return names if self.elsewhere is None else names - set(self.elsewhere())

    def run_next_task(self, queue: str | None = None) -> bool:
        """Take and run one task of ``queue``, or of any queue; False when there was none."""
        self.adopt_declared()
        return bool(self._runner.run_next_task(self, queue))

    def run_here(self, task: Task) -> BaseException | None:
        """Run a row that is locked in this thread; return what it raised, if it did."""
        raised: list[BaseException | None] = []

        def note(task: Task, **kwargs: Any) -> None:
            if task.pk == key:
                raised.append(sys.exception())

        key, token = task.pk, _is_inline.set(True)
        signals.task_error.connect(note)
        try:
            self._runner.run_task(self, task)
        finally:
            signals.task_error.disconnect(note)
            _is_inline.reset(token)
        return raised[0] if raised else None

    def adopt_declared(self) -> None:
        """Add the tasks that Django's ``@task`` has declared, under the names of their rows."""
        for name, task in registry.declared().items():
            known = self._tasks.get(name)
            if known is None or (isinstance(known, DeclaredTask) and known.task is not task):
                self._tasks[name] = DeclaredTask(task, self._runner)


tasks = Tasks()


def _run_eagerly(task: Task, **kwargs: Any) -> None:
    """Run a task as soon as it is stored, where a test or a debugging session asks for that."""
    if not app_settings.BACKGROUND_TASK_EAGER:
        return
    tasks.adopt_declared()
    locked = task.lock(tasks._runner.worker_name)
    error = None if locked is None else tasks.run_here(locked)
    if error is not None:
        raise error


signals.task_created.connect(_run_eagerly, dispatch_uid=signals.EAGER)
