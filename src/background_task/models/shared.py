"""What ``save()`` may write of a row that workers write too, and the state that follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Self

from django.conf import settings
from django.db import connections, router
from django.db.models import Case, F, Q, Value, When
from django.utils import timezone

from background_task._compat import uuid7
from background_task.models.completed_tasks import CompletedTask
from background_task.models.managers import LOSS
from background_task.models.rows import Row
from background_task.policies import cancellation
from background_task.states import State

# The aliases of databases that an option has named for a queue. There a row is written where it was
# read, whatever a router would say.
named_databases: set[str] = set()

# The columns that whoever takes, frees, retries or cancels a row writes.
_OF_OTHERS = frozenset(
    {
        "locked_by",
        "locked_at",
        "epoch",
        "worker_id",
        "started_at",
        "losses",
        "options",
        "result_id",
        "attempts",
        "run_at",
        "failed_at",
        "last_error",
    }
)

# A field, its model, and what it is to be.
Assigned = tuple[Any, Any, Any]


def named(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Collection[str] | None:
    """Return the columns that these arguments of ``save()`` name; None stands for all."""
    return args[3] if len(args) > 3 else kwargs.get("update_fields")


class SharedRow(Row):
    """A row that is stored by more than one: ``save()`` leaves alone what was not changed here.

    Who has loaded a row before it was taken, and stores it whole, would unlock it, and it would run
    twice at a time.
    """

    # The column itself is declared where it belongs in the order of all columns.
    state: int | None

    # What others write, as it was when it was last read or stored here; empty if nobody knows.
    _known: Mapping[str, Any] = MappingProxyType({})
    # Whether :meth:`save` is to store all columns, and not some that were named.
    _is_stored_whole = True
    # Whether it is to make a row of its own.
    _was_new = False
    # Whether it is the run itself that takes the lock off, which nobody else can without a loss.
    is_given_back = False

    class Meta:
        abstract = True

    @property
    def _is_new(self) -> bool:
        """Whether it is stored as a row of its own, wherever its columns come from."""
        return self._state.adding or self.pk is None

    @property
    def database(self) -> str:
        """The alias of the database that the row is written to, wherever it was read from."""
        if self._state.db in named_databases:
            return self._state.db
        return router.db_for_write(type(self), instance=self)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the row, but for the columns of others that are as they were when it was loaded."""
        self._is_stored_whole, self._was_new = named(args, kwargs) is None, self._is_new
        super().save(*args, **kwargs)

    def _save_table(
        self,
        raw: bool = False,
        cls: Any = None,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Collection[str] | None = None,
    ) -> Any:
        parent: Any = super()  # the stubs lack it
        # Fixtures do not come by save(); and what has parents has a key once they are stored.
        is_new, self._was_new = self._is_new or self._was_new, False
        is_updated = parent._save_table(raw, cls, force_insert, force_update, using, update_fields)
        concrete = self._meta.concrete_model or type(self)
        if cls not in (None, concrete):  # a table of its own is still to be written
            self._was_new = is_new
            return is_updated
        # One is Django's own, of a model with parents.
        blocks = len(connections[using or self.database].atomic_blocks)
        # Before receivers of post_save, who may take their time, and then store the row again.
        if is_new or blocks == bool(concrete._meta.parents):
            self.remember(update_fields)
        else:  # what is stored may be rolled back, so that nobody knows what there is
            self._known = {
                k: v for k, v in self._known.items() if k == "id" or self._is_as_known(k)
            }
        return is_updated

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> Self:
        """Return a row that was read."""
        row = super().from_db(*args, **kwargs)
        row.remember()
        return row

    def refresh_from_db(
        self,
        using: str | None = None,
        fields: Iterable[str] | None = None,
        from_queryset: Any = None,
    ) -> None:
        """Read the row, or some of its columns, anew."""
        names = None if fields is None else list(fields)
        super().refresh_from_db(using, names, from_queryset)
        self.remember(names)

    def remember(self, names: Collection[str] | None = None) -> None:
        """Remember these columns as what the database has; None is all that are loaded."""
        names = _OF_OTHERS if names is None else _OF_OTHERS & set(names)
        loaded = {name: self.__dict__[name] for name in names if name in self.__dict__}
        self._known = {**self._known, **loaded, "id": self.pk}

    def _do_update(
        self, base_qs: Any, using: str | None, pk_val: Any, values: Collection[Any], *rest: Any
    ) -> Any:
        # Here, where Django has asked each column for its value, and not in save(), which would
        # have to name columns: signals tell of those, and a row that is gone would not be made.
        if using in (self._state.db, self.database) and pk_val == self._known.get("id"):
            if self._is_stored_whole:
                values = [each for each in values if not self._is_as_known(each[0].attname)]
                values = self._with_its_state(values)
            if "locked_by" not in _names(values):
                values = [_unless_locked(each) for each in values]
        if "locked_by" in _names(values) and not self.locked_by and not self.is_given_back:
            values = self._with_the_loss(values)
        return super()._do_update(base_qs, using, pk_val, values, *rest)

    def _do_insert(
        self, manager: Any, using: str | None, fields: Any, returning_fields: Any, raw: bool
    ) -> Any:
        parent: Any = super()  # the stubs lack it
        arguments = (manager, using, fields, returning_fields, raw)
        if raw or self._is_new or using != self.database or not self.is_in_history():
            return parent._do_insert(*arguments)
        # Its run has ended, so it gets another. What was deleted may still run.
        before = dict(self.__dict__)
        try:
            self.forget_the_run()
            self.be_another_run()
            self.prepare()
            return parent._do_insert(*arguments)
        except BaseException:
            self.__dict__.update(before)
            raise

    def is_in_history(self) -> bool:
        """Tell whether the history has a row of the same public id."""
        result_id = self.__dict__.get("result_id")  # where it was not loaded, the row may be gone
        done = CompletedTask._base_manager.using(self.database).filter(result_id=result_id)
        return result_id is not None and done.exists()

    def be_another_run(self) -> None:
        """Take another public id, which counts as known."""
        self.result_id = uuid7()
        self._known = {**self._known, "result_id": self.result_id}

    def forget_the_run(self) -> None:
        """Take off a lock, and a wish to cancel, that are those of another row than is inserted.

        They count as known, so that they are not taken off that one, should this be rolled back.
        """
        changed: dict[str, Any] = {}
        if self.locked_by and self._is_as_known("locked_by"):
            changed |= {"locked_by": None, "locked_at": None, "worker_id": None}
        if cancellation.is_marked(self.options) and self._is_as_known("options"):
            changed["options"] = cancellation.unmarked(self.options)
        self.__dict__.update(changed)
        self._known = {**self._known, **changed}

    def prepare(self) -> None:
        """Set what follows from the other columns; ``bulk_create`` does not call ``save()``."""
        if self._is_new and self._known:
            self.forget_the_run()
        now = timezone.now()
        self._begin(enqueued_at=now, started_at=None, unique_key=None, epoch=None, losses=None)
        self.locked_by = self.locked_by or None
        self.state = self._state_at(now)

    def _state_at(self, now: datetime) -> State | None:
        if self.locked_by:
            return State.RUNNING
        run_at = self._stored_run_at()
        if run_at is None or cancellation.is_marked(self.options):
            return None
        if run_at > now:
            return State.SCHEDULED
        return State.RESCUED if self.losses else State.READY

    def _stored_run_at(self) -> datetime | None:
        """Return ``run_at`` as Django stores what it was set to; None if the database has to say.

        Raises:
            ValidationError: it is no time, and no text of one.
        """
        value: Any = self.run_at
        if not isinstance(value, datetime):
            if value is None or hasattr(value, "resolve_expression"):
                return None
            field: Any = self._meta.get_field("run_at")
            value = field.to_python(value)
        run_at: datetime = value
        if timezone.is_aware(run_at) == settings.USE_TZ:
            return run_at
        # Django warns of a naive one, when it does the same.
        zone = timezone.get_default_timezone()
        return timezone.make_aware(run_at, zone) if settings.USE_TZ else None

    @staticmethod
    def _with_its_state(values: Collection[Assigned]) -> Collection[Assigned]:
        """Store the state only where what it follows from is stored, and not what was there."""
        stored = _names(values)
        if "run_at" in stored:
            return values
        if not stored & {"locked_by", "losses", "options"}:
            return [each for each in values if each[0].attname != "state"]
        return [_unknown(each) for each in values]

    def _with_the_loss(self, values: Collection[Assigned]) -> Collection[Assigned]:
        """Count that the worker is gone, as :meth:`TaskQuerySet.update` does."""
        stored = _names(values)
        added = [
            (self._meta.get_field(name), None, value)
            for name, value in LOSS.items()
            if name not in stored
        ]
        # First: MySQL evaluates in this order, and sees what was set before.
        return [*added, *(_unknown(each) for each in values)]

    def _is_as_known(self, name: str) -> bool:
        return name in self._known and self.__dict__.get(name) == self._known[name]


def _names(values: Collection[Assigned]) -> set[str]:
    return {field.attname for field, *_ in values}


def _unknown(assigned: Assigned) -> Assigned:
    """Let the workers find out the state."""
    field, model, value = assigned
    return field, model, None if field.attname == "state" and value != State.RUNNING else value


def _unless_locked(assigned: Assigned) -> Assigned:
    """Let a state be set only where it follows from what is stored, and from what is there."""
    field, model, value = assigned
    if field.attname == "state":
        free = Q(locked_by=None, state__isnull=False)
        if value == State.RUNNING:  # it did when the instance was loaded
            value = None
        cases = [When(free, then=Value(value, field))]
        if value == State.READY:
            cases.insert(0, When(free, losses__gt=0, then=Value(State.RESCUED, field)))
        value = Case(*cases, default=F("state"))
    return field, model, value
