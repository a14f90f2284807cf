"""The keywords of a call, and how they are merged with the decorator's."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from background_task import background
from background_task.models import CompletedTask, Task
from background_task.tasks import DBTaskRunner, TaskSchedule, tasks

pytestmark = pytest.mark.django_db

UNTIL = datetime(2099, 1, 1, tzinfo=timezone.get_default_timezone())


def anything(*args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """Stop the clock of this process."""
    stopped = timezone.now()
    monkeypatch.setattr("django.utils.timezone.now", lambda: stopped)
    return stopped


# schedule


@pytest.mark.parametrize(
    ("schedule", "seconds"),
    [
        (None, 0),
        (90, 90),
        (timedelta(minutes=2), 120),
        ({"run_at": 90}, 90),
        ({"run_at": timedelta(minutes=2)}, 120),
        ({"priority": 5}, 0),
        ({}, 0),
        (TaskSchedule(run_at=90), 90),
    ],
)
def test_the_schedule_says_how_long_from_now(schedule: Any, seconds: int, now: datetime) -> None:
    assert background(anything)(schedule=schedule).run_at == now + timedelta(seconds=seconds)


@pytest.mark.parametrize("wrap", [lambda at: at, lambda at: {"run_at": at}, TaskSchedule])
def test_a_datetime_is_stored_exactly(wrap: Any) -> None:
    background(anything)(schedule=wrap(UNTIL))
    assert Task.objects.get().run_at == UNTIL


PARTS = {
    "run_at": (UNTIL, UNTIL + timedelta(days=1)),
    "priority": (3, 4),
    "action": (TaskSchedule.CHECK_EXISTING, TaskSchedule.RESCHEDULE_EXISTING),
}
SUBSETS = [
    set(subset) for size in range(4) for subset in itertools.combinations(sorted(PARTS), size)
]


@pytest.mark.parametrize("by_call", SUBSETS, ids=lambda names: "+".join(sorted(names)) or "none")
@pytest.mark.parametrize("by_default", SUBSETS, ids=lambda names: "+".join(sorted(names)) or "none")
def test_each_part_is_the_calls_else_the_defaults(
    by_call: set[str], by_default: set[str], now: datetime
) -> None:
    call = TaskSchedule.create({name: PARTS[name][0] for name in by_call})
    default = TaskSchedule.create({name: PARTS[name][1] for name in by_default})
    merged = call.merge(default)
    neither = {"run_at": now, "priority": 0, "action": TaskSchedule.SCHEDULE}
    for name, (of_call, of_default) in PARTS.items():
        expected = of_default if name in by_default else neither[name]
        assert getattr(merged, name) == (of_call if name in by_call else expected), name


def test_a_call_is_merged_over_its_decorator(now: datetime) -> None:
    proxy = background(schedule={"run_at": UNTIL, "priority": 3})(anything)
    row = proxy(schedule={"priority": 4})
    assert (row.run_at, row.priority) == (UNTIL, 4)
    row = proxy(schedule=60)
    assert (row.run_at, row.priority) == (now + timedelta(seconds=60), 3)


def test_a_schedule_resolves_its_delay_at_each_read(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = TaskSchedule(run_at=60)
    first = schedule.run_at
    later = timezone.now() + timedelta(hours=1)
    monkeypatch.setattr("django.utils.timezone.now", lambda: later)
    assert schedule.run_at == later + timedelta(seconds=60) > first


def test_the_actions_have_the_numbers_they_had() -> None:
    assert (
        TaskSchedule.SCHEDULE,
        TaskSchedule.RESCHEDULE_EXISTING,
        TaskSchedule.CHECK_EXISTING,
    ) == (0, 1, 2)


def test_schedules_are_equal_when_their_parts_are() -> None:
    assert TaskSchedule(60, 1, 2) == TaskSchedule(run_at=60, priority=1, action=2)
    for other in (TaskSchedule(61, 1, 2), TaskSchedule(60, 2, 2), TaskSchedule(60, 1, 1)):
        assert TaskSchedule(60, 1, 2) != other
    assert TaskSchedule(priority=0) != TaskSchedule()


def test_schedules_are_unhashable() -> None:
    with pytest.raises(TypeError):
        hash(TaskSchedule())


def test_a_schedule_reads_as_its_time_and_priority() -> None:
    assert repr(TaskSchedule(action=1)) == "TaskSchedule(run_at=None, priority=None)"
    assert repr(TaskSchedule(7, -2)) == "TaskSchedule(run_at=7, priority=-2)"


# the other keywords


@pytest.mark.parametrize("priority", [0, 1, -1, 10_000, -(2**31), 2**31 - 1])
def test_any_number_is_a_priority_and_beats_the_schedules(priority: int) -> None:
    background(schedule={"priority": 3})(anything)(schedule={"priority": 4}, priority=priority)
    assert Task.objects.get().priority == priority


@pytest.mark.parametrize(
    ("default", "options", "queue"),
    [
        (None, {}, None),
        ("default", {}, "default"),
        ("default", {"queue": "call"}, "call"),
        ("default", {"queue": None}, None),
        (None, {"queue": "call"}, "call"),
    ],
)
def test_the_queue_is_the_calls_else_the_decorators(
    default: Any, options: dict[str, Any], queue: str | None
) -> None:
    background(queue=default)(anything)(**options)
    assert Task.objects.get().queue == queue


@pytest.mark.parametrize("repeat", [7, Task.HOURLY, Task.EVERY_4_WEEKS, 10**10, 0, -5])
def test_any_number_of_seconds_is_a_period(repeat: int) -> None:
    background(anything)(repeat=repeat)
    row = Task.objects.get()
    assert row.repeat == repeat
    assert row.is_repeating_task() is (repeat > 0)


def test_no_period_is_never() -> None:
    assert background(anything)(repeat=None).repeat == background(anything)().repeat == Task.NEVER


def test_the_descriptive_keywords_are_stored(owner: User) -> None:
    background(anything)(verbose_name="A title", creator=owner, repeat_until=UNTIL)
    row = Task.objects.get()
    assert (row.verbose_name, row.creator, row.repeat_until) == ("A title", owner, UNTIL)
    assert (row.creator_object_id, row.creator_content_type.model) == (owner.pk, "user")
    assert str(row) == "A title"


def test_without_keywords_the_row_has_the_defaults() -> None:
    background("plain")(anything)()
    row = Task.objects.get()
    assert (row.task_name, row.task_params) == ("plain", "[[], {}]")
    assert (row.priority, row.repeat, row.attempts, row.last_error) == (0, 0, 0, "")
    for name in (
        "verbose_name",
        "queue",
        "repeat_until",
        "failed_at",
        "locked_by",
        "locked_at",
        "creator_content_type",
        "creator_object_id",
        "creator",
    ):
        assert getattr(row, name) is None, name


RESERVED = {
    "schedule": 0,
    "priority": 1,
    "queue": "a queue",
    "verbose_name": "A title",
    "creator": None,
    "repeat": 0,
    "repeat_until": None,
    "remove_existing_tasks": False,
}


@pytest.mark.parametrize("keyword", RESERVED)
def test_a_reserved_keyword_never_reaches_the_function(keyword: str) -> None:
    calls = []
    background("reserved")(lambda *args, **kwargs: calls.append((args, kwargs)))(
        1, own=2, **{keyword: RESERVED[keyword]}
    )
    assert Task.objects.get().task_params == '[[1], {"own": 2}]'
    assert tasks.run_next_task()
    assert calls == [((1,), {"own": 2})]


def test_arguments_come_back_as_json_gives_them() -> None:
    calls = []
    proxy = background("arguments")(lambda *args, **kwargs: calls.append((args, kwargs)))
    proxy((1, 2), {"b": None}, c=[True, 0.5, "ñ"])
    assert Task.objects.get().params() == ([[1, 2], {"b": None}], {"c": [True, 0.5, "ñ"]})
    tasks.run_next_task()
    assert calls == [(([1, 2], {"b": None}), {"c": [True, 0.5, "ñ"]})]


# what a call does besides


def test_a_call_returns_the_row_it_saved() -> None:
    row = background(anything)()
    assert type(row) is Task
    assert Task.objects.get() == row


def test_a_call_joins_the_callers_transaction() -> None:
    with transaction.atomic():
        background(anything)()
        assert Task.objects.count() == 1
        transaction.set_rollback(True)
    assert not Task.objects.exists()


def test_a_saved_row_is_announced_by_the_runners_class(sent: list[Any]) -> None:
    row = background(anything)()
    assert sent == [("task_created", DBTaskRunner, {"task": row})]


def test_the_runner_can_be_asked_directly(owner: User, sent: list[Any]) -> None:
    row = DBTaskRunner().schedule(
        "direct",
        [1],
        {"two": 2},
        UNTIL,
        -3,
        TaskSchedule.SCHEDULE,
        "a queue",
        "A title",
        owner,
        60,
        UNTIL,
        False,
    )
    assert row == Task.objects.get()
    assert (row.task_params, row.run_at, row.priority) == ('[[1], {"two": 2}]', UNTIL, -3)
    assert (row.queue, row.verbose_name, row.creator) == ("a queue", "A title", owner)
    assert (row.repeat, row.repeat_until) == (60, UNTIL)
    assert [name for name, *_ in sent] == ["task_created"]
    assert not CompletedTask.objects.exists()
