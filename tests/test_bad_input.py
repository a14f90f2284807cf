"""Bad input is refused at the call: the argument and the remedy are named, nothing is lost."""

from __future__ import annotations

import datetime as dt
import functools
import math
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import override_settings
from django.utils import timezone
from project.models import Account

from background_task import background
from background_task.api import registry
from background_task.checks import one_function_by_name
from background_task.exceptions import (
    ArgumentTypeError,
    ArgumentValueError,
    BackgroundTaskError,
)
from background_task.models import Task
from background_task.policies.arguments import did_you_mean

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def task() -> Callable[..., Any]:
    @background("greet")
    def greet(name: Any = None, *, times: int = 1) -> None: ...

    return greet


CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)
DEEP: Any = None
for _ in range(200_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "named"),
    [
        # what JSON cannot hold
        ((dt.datetime(2026, 1, 1),), {}, TypeError, "Positional argument 1 of type datetime"),
        ((uuid.UUID(int=1),), {}, TypeError, "Positional argument 1 of type UUID"),
        ((), {"name": {1, 2}}, TypeError, "Argument 'name' of type set"),
        (([b"bytes"],), {}, TypeError, "Positional argument 1 of type list"),
        (({(1, 2): 1, "a": 2},), {}, TypeError, "Positional argument 1 of type dict"),
        ((CIRCULAR,), {}, TypeError, "Positional argument 1 of type list"),
        ((Account,), {}, TypeError, "primary key"),
        # what the function does not take
        ((1, 2), {}, TypeError, "greet(name=None, *, times=1)"),
        ((), {"nmae": 1}, TypeError, "Did you mean 'name' instead of 'nmae'?"),
        ((), {"schedul": 60}, TypeError, "Did you mean 'schedule' instead of 'schedul'?"),
        ((), {"remove_existing_task": 1}, TypeError, "Did you mean 'remove_existing_tasks'"),
        # options of the wrong type
        ((), {"repeat": "daily"}, TypeError, "repeat must be a number of seconds"),
        ((), {"repeat": "60"}, TypeError, "repeat"),
        ((), {"repeat": 0.5}, ValueError, "repeat is 0.5"),
        ((), {"repeat": math.nan}, ValueError, "repeat is nan"),
        ((), {"repeat": math.inf}, ValueError, "repeat is inf"),
        ((), {"repeat": 10**20}, ValueError, "repeat"),
        ((), {"priority": "high"}, TypeError, "priority must be a whole number"),
        ((), {"priority": 1.5}, TypeError, "priority"),
        ((), {"priority": 2**31}, ValueError, "priority is 2147483648"),
        ((), {"priority": -(2**31) - 1}, ValueError, "priority"),
        ((), {"repeat_until": "tomorrow"}, TypeError, "repeat_until must be a datetime"),
        ((), {"repeat_until": dt.date(2026, 1, 1)}, TypeError, "repeat_until"),
        ((), {"queue": 5}, TypeError, "queue must be text"),
        ((), {"queue": "q" * 191}, ValueError, "queue has 191 characters"),
        ((), {"queue": "a\x00b"}, ValueError, "queue contains a character"),
        ((), {"verbose_name": "\ud800"}, ValueError, "verbose_name contains a character"),
        ((), {"remove_existing_tasks": "no"}, TypeError, "remove_existing_tasks must be True"),
        ((), {"verbose_name": 5}, TypeError, "verbose_name must be text"),
        ((), {"verbose_name": "v" * 256}, ValueError, "verbose_name has 256 characters"),
        # schedules
        ((), {"schedule": "tomorrow"}, TypeError, "schedule must be None, seconds"),
        ((), {"schedule": ""}, TypeError, "schedule must be"),
        ((), {"schedule": [60]}, TypeError, "schedule must be"),
        ((), {"schedule": dt.date(2026, 1, 1)}, TypeError, "schedule must be"),
        ((), {"schedule": {"run_att": 60}}, ValueError, "Did you mean 'run_at'"),
        ((), {"schedule": {"run_at": "x"}}, TypeError, "schedule run_at"),
        ((), {"schedule": {"priority": "x"}}, TypeError, "priority"),
        ((), {"schedule": {"action": 7}}, ValueError, "RESCHEDULE_EXISTING"),
        ((), {"schedule": math.nan}, ValueError, "schedule"),
        ((), {"schedule": 10**15}, ValueError, "no point in time"),
        ((), {"schedule": dt.timedelta.max}, ValueError, "no point in time"),
        # creators
        ((), {"creator": "ana"}, TypeError, "creator must be a model instance"),
        ((), {"creator": User}, TypeError, "creator must be a model instance"),
        ((), {"creator": User(username="ana")}, ValueError, "not saved: call its save()"),
        ((), {"creator": Account()}, ValueError, "Account that is not saved"),
    ],
)
def test_a_call_is_refused_with_the_name_of_the_argument_and_removes_nothing(
    task: Any, arguments: Any, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    waiting = task()
    with pytest.raises(error) as caught:
        task(*arguments, **{"remove_existing_tasks": True, **options})
    assert isinstance(caught.value, BackgroundTaskError)
    assert named in str(caught.value)
    assert list(Task.objects.all()) == [waiting]


def test_a_value_nested_too_deeply_is_refused(task: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="Positional argument 1"):
        task(DEEP)
    assert not Task.objects.exists()


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, {None: 1}, 1.0, float("1e300"), "ñ\x00\ud800"])
def test_what_json_changes_without_complaint_is_accepted(task: Any, value: Any) -> None:
    assert task(value).pk


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": "n" * 191}, ArgumentValueError),
        ({"name": 5}, ArgumentTypeError),
        ({"queue": 5}, ArgumentTypeError),
        ({"schedule": "x"}, ArgumentTypeError),
        ({"every": 0}, ArgumentValueError),
        ({"every": -5}, ArgumentValueError),
        ({"every": 0.5}, ArgumentValueError),
        ({"every": "10"}, ArgumentTypeError),
        ({"every": dt.timedelta(microseconds=1)}, ArgumentValueError),
    ],
)
def test_a_declaration_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments)).replace("name", "name|function")):

        @background(**arguments)
        def declared() -> None: ...


def test_a_function_that_needs_arguments_cannot_run_by_itself() -> None:
    with pytest.raises(ArgumentTypeError, match="give its parameters defaults"):

        @background(every=10)
        def declared(name: str) -> None: ...


def test_only_functions_can_be_tasks() -> None:
    with pytest.raises(ArgumentTypeError, match="marks functions"):
        background("my.name")(5)


def test_a_callable_without_a_name_needs_one() -> None:
    with pytest.raises(ArgumentTypeError, match="give one"):
        background()(functools.partial(print))
    assert background("my.print")(functools.partial(print)).name == "my.print"


def test_a_method_is_refused_with_the_remedy() -> None:
    class Shop:
        @background
        def close(self, hour: int) -> None: ...

    with pytest.raises(ArgumentTypeError, match="Methods cannot be tasks"):
        Shop().close(8)


def test_a_decorator_below_that_supplies_arguments_has_the_last_word() -> None:
    def with_connection(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function("connection", *args, **kwargs)

        return wrapper

    @background
    @with_connection
    def report(connection: Any, day: int) -> None: ...

    assert report(5).pk


@pytest.mark.parametrize("argument", ["schedule", "repeat_until"])
def test_a_naive_datetime_is_read_in_the_projects_zone_with_a_warning(
    task: Any, argument: str
) -> None:
    naive = dt.datetime(2030, 7, 1, 12, 0)
    with pytest.warns(RuntimeWarning, match="Europe/Madrid") as caught:
        row = task(**{argument: naive})
    stored = row.run_at if argument == "schedule" else row.repeat_until
    assert stored == dt.datetime(2030, 7, 1, 10, 0, tzinfo=dt.UTC)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("argument", ["schedule", "repeat_until"])
@override_settings(BACKGROUND_TASK_STRICT_DATETIMES=True)
def test_a_naive_datetime_is_refused_where_the_setting_asks_for_it(
    task: Any, argument: str
) -> None:
    with pytest.raises(ArgumentValueError, match="naive datetime"):
        task(**{argument: dt.datetime(2030, 7, 1, 12, 0)})
    assert not Task.objects.exists()


def test_a_repetition_past_the_end_of_the_calendar_ends_the_chain() -> None:
    from background_task.policies.repetition import next_run

    assert next_run(timezone.now(), 10**11 - 1, None, timezone.now() + dt.timedelta(1)) is not None
    last = dt.datetime(9999, 12, 31, tzinfo=dt.UTC)
    assert next_run(last, 86400 * 2, None, timezone.now()) is None


def test_nothing_is_suggested_for_a_word_that_resembles_none() -> None:
    assert did_you_mean("xyzzy", ["schedule", "queue"]) == ""


def test_two_functions_of_one_name_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_places", {})

    def declared() -> None: ...

    for _ in range(2):  # a module that is imported again
        background("same")(declared)
    background("another")(lambda: None)
    assert one_function_by_name(None) == []
    background("same")(lambda: None)
    (message,) = one_function_by_name(None)
    assert message.id == "background_task.W002"
    assert message.msg.count(__file__) == 2
