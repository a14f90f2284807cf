"""What ``Task.objects`` is: which rows of ``background_task`` there are, and how one is made."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from django.db import connections, models, router, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from background_task import vendors
from background_task.identity import this_worker
from background_task.models.creators import CreatedByQuerySet
from background_task.policies import arguments
from background_task.settings import app_settings
from background_task.states import State

if TYPE_CHECKING:
    from background_task.models.tasks import Task

# How many rows a statement may name: drivers have a limit.
MOST_KEYS = 1_000
# PostgreSQL counts the parameters of a statement in 16 bits.
MOST_PARAMETERS = 65_535
# Beyond this a date could not be moved by it.
LONGEST_LEASE = 10**9


def lease() -> timedelta:
    """Return how long a lock holds that is not renewed."""
    return timedelta(seconds=min(app_settings.BACKGROUND_TASK_MAX_RUN_TIME, LONGEST_LEASE))


class TaskQuerySet(CreatedByQuerySet["Task"]):
    """Rows of ``background_task``."""

    def unlocked(self, now: datetime) -> Self:
        """Rows that nobody runs: not locked, or locked longer ago than ``MAX_RUN_TIME``."""
        return self.filter(Q(locked_by=None) | Q(locked_at=None) | Q(locked_at__lt=now - lease()))

    def locked(self, now: datetime) -> Self:
        """Rows that somebody runs: locked, and no longer ago than ``MAX_RUN_TIME``."""
        return self.filter(locked_by__isnull=False, locked_at__gte=now - lease())

    def due(self, now: datetime, queue: str | None = None) -> Self:
        """Rows that may run at ``now``, the most urgent first; equals in the order they came."""
        due = self.unlocked(now).filter(run_at__lte=now, failed_at=None)
        if queue:
            due = due.filter(queue=queue)
        order = f"{app_settings.BACKGROUND_TASK_PRIORITY_ORDERING}priority"
        return due.order_by(order, "run_at", "id")

    def update(self, **values: Any) -> int:
        """Change the rows; what says whether they may run is worked out anew by the workers.

        Whoever empties ``locked_by`` says that the worker is gone: that counts as a loss, and a run
        that goes on all the same can record nothing.
        """
        if {"run_at", "locked_by"} & values.keys():
            values.setdefault("state", None)
        if "locked_by" in values and not values["locked_by"]:
            # First: MySQL evaluates in this order, and sees what was set before.
            values = {**LOSS, **values, "locked_by": None}
        return super().update(**values)

    update.alters_data = True  # type: ignore[attr-defined]

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the rows, in the order of their keys: see :meth:`in_order`."""
        if self.query.is_sliced or self.query.combinator or self.query.distinct_fields:
            return super().delete()  # it is refused there
        rows = self.using(self.select_for_update().db)
        with transaction.atomic(using=rows.db):
            # Django may read the rows first, which are then those that it deletes.
            vendors.begin_write(rows.db)
            deleted = super(TaskQuerySet, rows.in_order()).delete()
        self._result_cache = None
        return deleted

    # As Django's own: no method of managers, since it would delete everything.
    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]

    def in_order(self) -> Self:
        """Inside a transaction: keep the rows from everybody else, in the order of their keys.

        Whoever deletes or changes many rows locks them in the order in which the plan of his
        statement comes to them. Two of those may each have what the other waits for.

        Returns:
            the rows, by their keys, to be asked once more whether they are what was wanted:
            somebody may have changed them before they were kept.
        """
        if not connections[self.db].features.has_select_for_update:
            return self
        wanted = self.order_by()
        wanted.query.select_for_update = False
        rows = TaskQuerySet(self.model, using=self.db)
        keys = sorted(wanted.values_list("pk", flat=True))
        for start in range(0, len(keys), MOST_KEYS):
            some = rows.filter(pk__in=keys[start : start + MOST_KEYS]).order_by("pk")
            list(some.select_for_update().values_list("pk"))
        if not keys:
            return self.none()
        # Not by batches: some may be wanted for the sake of others, which would be gone.
        _, parameters = wanted.filter(pk__in=keys).query.get_compiler(self.db).as_sql()
        return self.filter(pk__in=keys) if len(parameters) <= MOST_PARAMETERS else self

    def bulk_create(self, objs: Iterable[Task], *args: Any, **kwargs: Any) -> list[Task]:
        """Store the rows, and remember that they were stored so, as ``save()`` does."""
        rows = super().bulk_create(objs, *args, **kwargs)
        if not any((*args[1:3], kwargs.get("ignore_conflicts"), kwargs.get("update_conflicts"))):
            for row in rows or ():
                if row.pk is not None:
                    row.remember()
        return rows

    def release(self) -> int:
        """Unlock the rows, whose workers are gone; return how many there were."""
        return self.update(locked_by=None, locked_at=None)


# How many workers were lost over a row, when another takes it or its lock is taken off.
LOSSES = Case(
    When(locked_by__isnull=False, then=Coalesce(F("losses"), 0) + 1),
    default=F("losses"),
    output_field=models.SmallIntegerField(),
)
NEXT_EPOCH = Coalesce(F("epoch"), 0) + 1
# What is stored with a lock that is taken off: that the worker is gone, and can record nothing.
LOSS = {"losses": LOSSES, "epoch": NEXT_EPOCH}


def lock_values(locked_by: str, now: datetime) -> dict[str, Any]:
    """Return what an UPDATE sets to take a row that is not locked and has a public id."""
    return {
        "locked_by": locked_by,
        "locked_at": now,
        "state": State.RUNNING,
        "epoch": NEXT_EPOCH,
        "worker_id": this_worker(),
        "started_at": Coalesce(F("started_at"), Value(now, models.DateTimeField())),
    }


# The name is what the plugin of mypy needs to know its methods.
_TaskManager = models.Manager.from_queryset(TaskQuerySet)


class TaskManager(_TaskManager["Task"]):
    """``Task.objects``."""

    def get_queryset(self) -> TaskQuerySet:
        return TaskQuerySet(self.model, using=self._db)

    def on_primary(self) -> TaskQuerySet:
        """Return every row, of the database that is written to: replicas lag behind."""
        return self.get_queryset().using(router.db_for_write(self.model))

    def find_available(self, queue: str | None = None) -> TaskQuerySet:
        """Return the rows that may run now, of ``queue``, or of every queue when it is falsy.

        With ``BACKGROUND_TASK_RUN_ASYNC`` it is cut to as many as this process has free threads.
        """
        now = vendors.now(self.get_queryset().db)
        ready = self.get_queryset().due(now, queue)
        if not app_settings.BACKGROUND_TASK_RUN_ASYNC:
            return ready
        mine = self.get_queryset().locked(now).filter(worker_id=this_worker())
        free = app_settings.BACKGROUND_TASK_ASYNC_THREADS - mine.count()
        return ready[:free] if free > 0 else self.get_queryset().none()

    def failed(self) -> TaskQuerySet:
        """Return the rows that very old versions left here after their final failure."""
        return self.get_queryset().filter(failed_at__isnull=False)

    def new_task(
        self,
        task_name: str,
        args: Any = None,
        kwargs: Any = None,
        run_at: datetime | None = None,
        priority: int | None = 0,
        queue: str | None = None,
        verbose_name: str | None = None,
        creator: models.Model | None = None,
        repeat: float | timedelta | None = None,
        repeat_until: datetime | None = None,
        remove_existing_tasks: bool = False,
    ) -> Task:
        """Return an unsaved task.

        Args:
            task_name: the registered name, at most 190 characters.
            args, kwargs: what the function is called with; must be JSON.
            run_at: the earliest start; now when None.
            priority: see ``BACKGROUND_TASK_PRIORITY_ORDERING``.
            queue: at most 190 characters; None is no queue.
            verbose_name: shown in place of the name, at most 255 characters.
            creator: any saved model instance.
            repeat: seconds between runs, or a timedelta; not positive or None: once.
            repeat_until: no repetition is made after this.
            remove_existing_tasks: delete, at once, the unlocked rows with the same name and
                arguments.

        Raises:
            ArgumentTypeError, ArgumentValueError: and then nothing was deleted either.
        """
        is_strict = app_settings.is_strict
        params = arguments.serialize(args or (), kwargs or {})
        run_at = arguments.optional_moment(
            "schedule run_at", run_at, is_strict=is_strict, stacklevel=3
        )
        task = self.model(
            task_name=arguments.task_name(task_name),
            task_params=params,
            task_hash=arguments.fingerprint(task_name, params),
            priority=arguments.priority(priority),
            run_at=run_at or timezone.now(),
            queue=arguments.text("queue", queue, arguments.LONGEST_NAME),
            verbose_name=arguments.text(
                "verbose_name", verbose_name, arguments.LONGEST_VERBOSE_NAME
            ),
            repeat=arguments.period("repeat", repeat),
            repeat_until=arguments.optional_moment(
                "repeat_until", repeat_until, is_strict=is_strict, stacklevel=3
            ),
        )
        if (checked := arguments.creator(creator)) is not None:
            task.creator = checked
        if remove_existing_tasks:
            self.get_queryset().filter(task_hash=task.task_hash, locked_at__isnull=True).delete()
        return task

    def get_task(self, task_name: str, args: Any = None, kwargs: Any = None) -> TaskQuerySet:
        """Return the rows with this name and these arguments."""
        params = arguments.serialize(args or (), kwargs or {})
        return self.get_queryset().filter(task_hash=arguments.fingerprint(task_name, params))

    def drop_task(
        self, task_name: str, args: Any = None, kwargs: Any = None
    ) -> tuple[int, dict[str, int]]:
        """Delete the rows with this name and these arguments; returns what ``delete()`` does."""
        return self.get_task(task_name, args, kwargs).delete()
