"""``DatabaseBackend``: Django's tasks in the tables of this package."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.apps import apps
from django.core.checks import CheckMessage, Error

from background_task import signals
from background_task._compat import (
    BaseTaskBackend,
    normalize_json,
    tasks_base,
    tasks_exceptions,
    tasks_signals,
    uuid7,
)
from background_task.api import definitions, registry
from background_task.backends.options import Options
from background_task.exceptions import ArgumentTypeError
from background_task.policies import arguments
from background_task.policies.priorities import mirrored
from background_task.settings import app_settings

if TYPE_CHECKING:
    from background_task.models import Task as Row

# What the column ``backend`` of the rows holds.
LONGEST_ALIAS = 64

Call = tuple[Any, Sequence[Any], dict[str, Any]]


class DatabaseBackend(BaseTaskBackend):
    """Stores tasks in ``background_task``; ``process_tasks`` runs them beside those of @background.

    A task is stored in the caller's transaction, and rolled back with it. ``QUEUES`` is Django's;
    the ``OPTIONS`` are in ``docs/django-tasks.md``.
    """

    task_class = definitions.Task
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True
    is_of_background_task = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._options = Options(alias, params.get("OPTIONS", {}))

    @property
    def policy(self) -> Any:
        """The retry policy of tasks that say nothing themselves."""
        return self._options.policy

    @property
    def database(self) -> str:
        """The alias of the database that the tasks are in: the option's, or the router's.

        Raises:
            ImproperlyConfigured: an option is wrong.
        """
        from django.db import router

        from background_task.models import Task as Row
        from background_task.models.tasks import named_databases

        if self._options.database is None:
            return router.db_for_write(Row)
        named_databases.add(self._options.database)
        return self._options.database

    def validate_task(self, task: Any) -> None:
        """Check a task by Django's rules, and remember it, so that a worker can run it."""
        super().validate_task(task)
        if getattr(task, "stored_name", None) is None:
            registry.declare(task)

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Store one call and return its result.

        Raises:
            InvalidTask: the task is not for this backend.
            TypeError: the arguments are no JSON, or the function does not take them.
        """
        return self._store([(task, args, kwargs)])[0]

    def enqueue_many(self, calls: Iterable[Call]) -> list[Any]:
        """Store many calls in one transaction; return their results in the same order.

        Args:
            calls: a task, its positional arguments and its keyword arguments, for each call.
        """
        return self._store([self._checked(call) for call in calls])

    def _checked(self, call: Any) -> Call:
        if not isinstance(call, tuple | list) or len(call) != 3:
            raise ArgumentTypeError(
                "enqueue_many of a backend takes a task, a tuple of positional arguments and a "
                f"dict of keyword arguments for each call, not {call!r:.80}."
            )
        task, args, kwargs = call
        task = getattr(task, "definition", task)
        if not isinstance(task, tasks_base.Task):
            raise ArgumentTypeError(
                f"{task!r:.80} is no task: mark the function with @task or @background."
            )
        return task, args, kwargs

    async def aenqueue_many(self, calls: Iterable[Call]) -> list[Any]:
        """See :meth:`enqueue_many`."""
        return await sync_to_async(self.enqueue_many, thread_sensitive=True)(calls)

    def _store(self, calls: list[Call]) -> list[Any]:
        from django.db import DEFAULT_DB_ALIAS, connections, transaction

        from background_task.storage import enqueue

        database = self.database

        for task in {id(task): task for task, _, _ in calls}.values():
            self.validate_task(task)
        # Whoever asks the task for its result has to find the backend that has stored it.
        calls = [(_of_alias(task, self.alias), args, kwargs) for task, args, kwargs in calls]
        _ = self._options.policy  # wrong options are refused before anything is stored
        rows = [self._row(*call) for call in calls]
        results = [
            _waiting(row, task, self.alias) for row, (task, _, _) in zip(rows, calls, strict=True)
        ]
        now: list[tuple[Row, Any]] = []
        later: list[tuple[Row, Any]] = []
        for pair, (task, _, _) in zip(zip(rows, results, strict=True), calls, strict=True):
            wanted = getattr(task, "on_commit", None)
            on_commit = self._options.on_commit if wanted is None else wanted
            (later if on_commit else now).append(pair)

        def store(pairs: list[tuple[Row, Any]]) -> None:
            enqueue.insert(database, [row for row, _ in pairs])
            for row, result in pairs:
                object.__setattr__(result, "enqueued_at", row.enqueued_at)
                signals.announce(tasks_signals.task_enqueued, type(self), task_result=result)
            if not app_settings.BACKGROUND_TASK_EAGER:
                for row, _ in pairs:
                    signals.announce(signals.task_created, type(self), task=row)
                return
            try:
                for row, _ in pairs:  # what an eager task raises is raised here
                    signals.task_created.send(sender=type(self), task=row)
            finally:
                for _, result in pairs:
                    result.refresh()

        if now:
            store(now)
        if later:
            # The transaction that matters to the caller is that of his own tables.
            own = connections[DEFAULT_DB_ALIAS].in_atomic_block
            using = DEFAULT_DB_ALIAS if own else database
            transaction.on_commit(partial(store, later), using=using)
        return results

    def _row(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Row:
        from background_task.models import Task as Row

        given: tuple[Any, ...] = (None, *args) if task.takes_context else tuple(args)
        name = registry.name_of(task)
        arguments.check_signature(name, task.func, given, kwargs, ())
        if task.run_after is not None:  # named as the caller knows it
            arguments.moment("run_after", task.run_after, strict=False)
        row = Row.objects.new_task(
            arguments.task_name(name),
            normalize_json(list(args)),
            normalize_json(kwargs),
            run_at=task.run_after,
            priority=mirrored(int(task.priority), ascending=app_settings.is_ascending()),
            queue=task.queue_name,
        )
        row.backend = self.alias
        row.result_id = uuid7()
        row.identify(result_id=row.result_id)
        return row

    def get_result(self, result_id: str) -> Any:
        """Return the result of a task by its id, whoever asks.

        Raises:
            TaskResultDoesNotExist: there is no such task, or nothing declares it any more.
        """
        from background_task.api import results
        from background_task.storage import lookup

        try:
            found = lookup.by_result_id(self.database, uuid.UUID(str(result_id)))
        except ValueError:
            found = None
        task = registry.definition(found.task_name) if found is not None else None
        if found is None or task is None:
            raise tasks_exceptions.TaskResultDoesNotExist(result_id)
        return results.of(found, task)

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Check the options, and that the tables are there for them."""
        messages = self._options.check()
        if len(self.alias) > LONGEST_ALIAS:
            messages.append(
                Error(
                    f'The alias "{self.alias}" in TASKS has {len(self.alias)} characters; '
                    f"{LONGEST_ALIAS} can be stored with a task.",
                    hint="Shorten it.",
                    id="background_task.E006",
                )
            )
        if not apps.is_installed("background_task"):
            messages.append(
                Error(
                    f'TASKS["{self.alias}"] uses a backend whose app is not installed.',
                    hint="Add 'background_task' to INSTALLED_APPS and run migrate.",
                    id="background_task.E007",
                )
            )
        return messages


def _of_alias(task: Any, alias: str) -> Any:
    return task if task.backend == alias else definitions.unchecked(task, backend=alias)


def _waiting(row: Row, task: Any, alias: str) -> Any:
    from background_task.api import results

    args, kwargs = row.params()
    return results.TaskResult(
        task=task,
        id=str(row.result_id),
        status=tasks_base.TaskResultStatus.READY,
        enqueued_at=None,
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=[],
        worker_ids=[],
    )
