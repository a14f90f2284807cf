"""``DatabaseBackend``: Django's tasks in the tables of this package."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning
from django.utils import timezone

from background_task import signals
from background_task._compat import (
    BaseTaskBackend,
    InvalidTask,
    normalize_json,
    tasks_base,
    tasks_exceptions,
    tasks_signals,
    uuid7,
)
from background_task.api import definitions, registry
from background_task.api.options import did_you_mean
from background_task.backends.options import Options
from background_task.exceptions import ArgumentTypeError, ArgumentValueError
from background_task.policies import arguments
from background_task.policies.priorities import mirrored
from background_task.policies.runs import RunPolicy, check_atomic
from background_task.records import Kind, NewTask
from background_task.settings import app_settings
from background_task.states import State
from background_task.storage.commits import open_transactions, when_all_are_committed
from background_task.utils import would_log

if TYPE_CHECKING:
    from background_task.models import Task as Row

# What an entry of TASKS may have.
KEYS = ("BACKEND", "QUEUES", "OPTIONS")
# What the column ``backend`` of the rows holds.
LONGEST_ALIAS = 64
# How many tasks are remembered with what their calls have in common.
MOST_DOORS = 500

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
        is_list = isinstance(params.get("QUEUES", []), Iterable)
        # Django's would fail before the checks can say what is wrong.
        super().__init__(alias, params if is_list else {**params, "QUEUES": []})
        self._params = params
        self._options = Options(alias, params.get("OPTIONS", {}))
        self._doors: dict[int, _Door] = {}

    @property
    def policy(self) -> Any:
        """The retry policy of tasks that say nothing themselves."""
        return self._options.policy

    @property
    def commits_first(self) -> bool:
        """Whether a row is stored only when the transaction of the caller is committed."""
        return self._options.on_commit

    @property
    def database(self) -> str:
        """The alias of the database that the tasks are in: the option's, or the router's.

        Raises:
            ImproperlyConfigured: an option is wrong.
        """
        from django.db import router

        from background_task.models import Task as Row
        from background_task.models.shared import named_databases

        if self._options.database is None:
            return router.db_for_write(Row)
        named_databases.add(self._options.database)
        return self._options.database

    def validate_task(self, task: Any) -> None:
        """Check a task by Django's rules, and remember it, so that a worker can run it."""
        super().validate_task(task)
        if getattr(task, "atomic", None) is None and self._options.is_atomic:
            try:
                check_atomic(task.name, task.func, RunPolicy(atomic=True))
            except ArgumentValueError as error:
                raise InvalidTask(str(error)) from None
        if getattr(task, "stored_name", None) is None:
            registry.declare(task)

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Store one call and return its result.

        Raises:
            InvalidTask: the task is not for this backend.
            TypeError: the arguments are no JSON, or the function does not take them.
        """
        return self._store([(getattr(task, "definition", task), args, kwargs)])[0]

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
        if not isinstance(args, tuple | list):
            raise ArgumentTypeError(
                "The positional arguments of each call must be a tuple or a list, not "
                f"{type(args).__name__} ({args!r:.80})."
            )
        if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
            raise ArgumentTypeError(
                "The keyword arguments of each call must be a dict whose keys are text, not "
                f"{type(kwargs).__name__} ({kwargs!r:.80})."
            )
        task = getattr(task, "definition", task)
        if not isinstance(task, tasks_base.Task):
            raise ArgumentTypeError(
                f"{task!r:.80} is no task: mark the function with @task or @background."
            )
        return task, args, dict(kwargs)

    async def aenqueue_many(self, calls: Iterable[Call]) -> list[Any]:
        """See :meth:`enqueue_many`."""
        return await sync_to_async(self.enqueue_many, thread_sensitive=True)(calls)

    def _store(self, calls: Sequence[Call]) -> list[Any]:
        database = self.database
        _ = self._options.policy  # wrong options are refused before anything is stored
        moment = timezone.now()
        kinds: dict[_Door, Kind] = {}
        waits: list[bool] = []
        now, later = _Batch(), _Batch()
        for task, args, kwargs in calls:
            door = self._door(task)
            kind = kinds.get(door) or kinds.setdefault(door, door.kind(moment))
            (later if door.on_commit else now).calls.append((door, kind, args, kwargs))
            waits.append(door.on_commit)
        if now.calls:
            self._store_now(database, now)
        if later.calls:
            later.new = list(later)
            for result in later.results:
                object.__setattr__(result, "enqueued_at", None)
            when_all_are_committed(partial(self._store_later, database, later), database)
        if not later.calls:
            return now.results
        both = iter(now.results), iter(later.results)
        return [next(both[is_later]) for is_later in waits]

    def _door(self, task: Any) -> _Door:
        door = self._doors.get(id(task))
        if door is None or not door.is_current():
            if len(self._doors) >= MOST_DOORS:
                self._doors.clear()
            # It keeps the task, so that no other gets its id.
            door = self._doors[id(task)] = _Door(self, task)
        return door

    def _store_later(self, database: str, batch: _Batch) -> None:
        moment = timezone.now()
        for number, (new, result) in enumerate(zip(batch.new, batch.results, strict=True)):
            object.__setattr__(result, "enqueued_at", moment)
            kind = _dated(new.kind, moment, is_deferred=result.task.run_after is not None)
            batch.new[number] = new._replace(kind=kind)
        self._store_now(database, batch)

    def _store_now(self, database: str, batch: _Batch) -> None:
        from background_task.storage import enqueue

        is_eager = app_settings.BACKGROUND_TASK_EAGER
        rows: list[Row] = []
        if is_eager or enqueue.is_watched() or _is_told_of_rows(type(self)):
            rows = [enqueue.as_row(new) for new in batch]
            enqueue.insert(database, rows)
        else:
            enqueue.store(database, batch, len(batch.calls))
        told = batch.results if _is_told_of_results(type(self)) else []
        # No receiver is to harm a transaction of the caller.
        using = [each.alias for each in open_transactions()] if told or rows else []
        for result in told:
            signals.announce(
                tasks_signals.task_enqueued, type(self), using=using, task_result=result
            )
        if not is_eager:
            for row in rows:
                signals.announce(signals.task_created, type(self), using=using, task=row)
            return
        errors = []
        try:
            for row in rows:
                try:
                    signals.task_created.send(sender=type(self), task=row)
                except Exception as error:  # the others run, too
                    errors.append(error)
        finally:
            for result in batch.results:
                result.refresh()
        if errors:  # what an eager task raises is raised here
            raise errors[0]

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
        messages = [*self._check_entry(), *self._options.check()]
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

    def _check_entry(self) -> Iterator[CheckMessage]:
        for key in self._params:
            if key not in KEYS:
                yield Error(
                    f'TASKS["{self.alias}"] has the unknown key {key!r}.',
                    hint=did_you_mean(str(key).upper(), KEYS).strip()
                    or f"The keys are {', '.join(KEYS)}.",
                    id="background_task.E005",
                )
        queues = self._params.get("QUEUES", [])
        is_list = isinstance(queues, list | tuple | set | frozenset)
        if not is_list or not all(isinstance(each, str) for each in queues):
            yield Error(
                f'TASKS["{self.alias}"]["QUEUES"] is {queues!r:.80}.',
                hint="Give a list of the names of queues; an empty one allows every name.",
                id="background_task.E006",
            )
        elif too_long := [each for each in queues if len(each) > arguments.LONGEST_NAME]:
            yield Error(
                f'TASKS["{self.alias}"]["QUEUES"] has a name of {len(too_long[0])} characters; '
                f"{arguments.LONGEST_NAME} can be stored with a task.",
                hint="Shorten it.",
                id="background_task.E006",
            )
        elif unsayable := sorted(each for each in queues if not each or each == "*" or "," in each):
            yield Warning(
                f'TASKS["{self.alias}"]["QUEUES"] has the name {unsayable[0]!r}, which the option '
                "--queue of the worker cannot name.",
                hint="Rename it: --queue takes names with commas between them, and * for all.",
                id="background_task.W003",
            )


class _Batch:
    """Calls that are stored together: they are made ready for it while the first ones are sent."""

    def __init__(self) -> None:
        self.calls: list[tuple[_Door, Kind, Any, Any]] = []
        self.new: list[NewTask] = []
        # Of those that have been made ready, in order.
        self.results: list[Any] = []

    def __iter__(self) -> Iterator[NewTask]:
        if self.new:
            yield from self.new
            return
        for door, kind, args, kwargs in self.calls:
            new, result = door.called(kind, args, kwargs)
            self.results.append(result)
            yield new


class _Door:
    """What the calls of one task have in common.

    Args:
        backend: that of this enqueue.
        task: the task.

    Raises:
        InvalidTask: the task is not for this backend.
    """

    def __init__(self, backend: DatabaseBackend, task: Any) -> None:
        from background_task.api import results

        backend.validate_task(task)
        self._waiting = results.waiting
        self._given = task
        # Whoever asks the task for its result has to find the backend that has stored it.
        self._task = task
        if task.backend != backend.alias:
            self._task = definitions.unchecked(task, backend=backend.alias)
        wanted = getattr(task, "on_commit", None)
        self.on_commit = backend.commits_first if wanted is None else wanted
        self._name = arguments.task_name(registry.name_of(task))
        self._ascending = app_settings.is_ascending()
        self._priority = arguments.priority(mirrored(int(task.priority), ascending=self._ascending))
        self._queue = arguments.text("queue_name", task.queue_name, arguments.LONGEST_NAME)
        self._run_at = task.run_after
        if task.run_after is not None:
            self._run_at = arguments.moment(
                "run_after", task.run_after, is_strict=app_settings.is_strict
            )

    def is_current(self) -> bool:
        """Tell whether it is as the settings want it now."""
        return not self._priority or self._ascending == app_settings.is_ascending()

    def kind(self, now: datetime) -> Kind:
        """Return what is stored of all calls that are made at this moment."""
        run_at = self._run_at or now
        return Kind(
            task_name=self._name,
            priority=self._priority,
            run_at=run_at,
            queue=self._queue,
            backend=self._task.backend,
            enqueued_at=now,
            state=_state(run_at, now),
        )

    def called(self, kind: Kind, args: Any, kwargs: Any) -> tuple[NewTask, Any]:
        """Return one call as it is to be stored, and its result.

        Raises:
            TypeError: the arguments are no JSON, or the function does not take them.
        """
        task = self._task
        given = (None, *args) if task.takes_context else args
        arguments.check_signature(self._name, task.func, given, kwargs, ())
        try:
            if not arguments.are_plain(args):
                args = arguments.with_text_keys(normalize_json(list(args)))
            args = list(args)
            kwargs = arguments.with_text_keys(normalize_json(kwargs)) if kwargs else {}
        except RecursionError:
            arguments.serialize(args, kwargs)  # which says of what
            raise
        params = arguments.serialize(args, kwargs)
        public_id = str(uuid7())
        new = NewTask(kind, params, public_id)
        return new, self._waiting(task, public_id, kind.enqueued_at, args, kwargs)


def _dated(kind: Kind, moment: datetime, *, is_deferred: bool) -> Kind:
    """Return the same, enqueued at another moment."""
    run_at = kind.run_at if is_deferred else moment
    return kind._replace(run_at=run_at, enqueued_at=moment, state=_state(run_at, moment))


def _state(run_at: datetime, moment: datetime) -> State:
    return State.READY if run_at <= moment else State.SCHEDULED


def _is_told_of_rows(sender: type) -> bool:
    """Tell whether somebody listens to ``task_created``, beside what runs a task eagerly."""
    return signals.is_heard(signals.task_created, sender, but_for=(signals.EAGER,))


def _is_told_of_results(sender: type) -> bool:
    """Tell whether somebody listens to Django's ``task_enqueued``, or reads its log."""
    own = (tasks_signals.log_task_enqueued,)
    return signals.is_heard(tasks_signals.task_enqueued, sender, but_for=own) or would_log(
        tasks_signals.logger, logging.DEBUG
    )
