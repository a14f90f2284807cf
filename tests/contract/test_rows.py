"""``Task``: its manager, its queryset and its methods."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db.models import F, QuerySet
from django.db.models.functions import Now
from django.test import override_settings
from django.utils import timezone
from rows import FUTURE, NOW, PAST, stored

from background_task.models import CompletedTask, Task
from background_task.settings import app_settings
from background_task.states import State

pytestmark = pytest.mark.django_db


def locked_for(lease: timedelta) -> dict[str, Any]:
    return {"locked_by": "a worker", "locked_at": timezone.now() - lease}


def lease(**more: float) -> timedelta:
    return timedelta(seconds=app_settings.MAX_RUN_TIME) + timedelta(**more)


# find_available


def test_available_is_what_is_due_unlocked_and_not_failed() -> None:
    available = {stored(), stored(**locked_for(lease(seconds=2)))}
    stored(run_at=FUTURE)
    stored(failed_at=NOW)
    stored(**locked_for(timedelta()))
    stored(**locked_for(lease(seconds=-60)))
    assert set(Task.objects.find_available()) == available


@pytest.mark.parametrize("ordering", ["DESC", "ASC", "anything else"])
def test_the_most_urgent_comes_first_then_the_longest_due_then_the_first_stored(
    ordering: str,
) -> None:
    earlier = PAST - timedelta(minutes=1)
    rows = [
        stored(priority=priority, run_at=run_at)
        for run_at, priority in [
            (PAST, 0),
            (earlier, 0),
            (PAST, -5),
            (earlier, 99),
            (PAST, 0),
            (PAST, 99),
        ]
    ]
    order = [2, 1, 0, 4, 3, 5] if ordering == "ASC" else [3, 5, 1, 0, 4, 2]
    with override_settings(BACKGROUND_TASK_PRIORITY_ORDERING=ordering):
        assert list(Task.objects.find_available()) == [rows[number] for number in order]


def test_a_queue_is_matched_exactly_and_no_queue_is_every_queue() -> None:
    of_none, of_a, of_b = stored(), stored(queue="a"), stored(queue="b")
    assert list(Task.objects.find_available("a")) == [of_a]
    assert list(Task.objects.find_available(queue="b")) == [of_b]
    assert list(Task.objects.find_available("c")) == []
    for falsy in (None, ""):
        assert list(Task.objects.find_available(falsy)) == [of_none, of_a, of_b]


def test_what_is_available_is_a_queryset() -> None:
    rows = [stored(), stored()]
    available = Task.objects.find_available()
    assert isinstance(available, QuerySet)
    assert (available.count(), available.first(), available[1]) == (2, *rows)


@override_settings(BACKGROUND_TASK_RUN_ASYNC=True, BACKGROUND_TASK_ASYNC_THREADS=2)
def test_with_threads_no_more_is_available_than_can_run() -> None:
    rows = [stored() for _ in range(4)]
    assert list(Task.objects.find_available()) == rows[:2]
    rows[0].lock("this process")
    assert list(Task.objects.find_available()) == rows[1:2]
    rows[1].lock("this process")
    assert list(Task.objects.find_available()) == []


# unlocked, locked, failed, created_by


def test_a_row_is_either_locked_or_unlocked() -> None:
    free = {stored(), stored(**locked_for(lease(seconds=2)))}
    held = {stored(**locked_for(timedelta())), stored(**locked_for(lease(seconds=-60)))}
    now = timezone.now()
    assert set(Task.objects.unlocked(now)) == free
    assert set(Task.objects.locked(now)) == held
    assert set(Task.objects.all().unlocked(now)) == free
    assert set(Task.objects.all().locked(now)) == held


def test_whether_a_lock_has_expired_depends_on_the_time_asked_for() -> None:
    row = stored(**locked_for(timedelta()))
    assert not Task.objects.unlocked(timezone.now())
    assert Task.objects.unlocked(timezone.now() + lease(seconds=60)).get() == row


def test_failed_is_what_has_the_time_of_a_failure() -> None:
    stored()
    row = stored(failed_at=NOW)
    assert list(Task.objects.failed()) == [row]


def test_created_by_filters_rows_and_chains(owner: User) -> None:
    other = User.objects.create(username="other")
    mine = [Task.objects.new_task("any", creator=owner, queue=queue) for queue in (None, "a")]
    for row in [*mine, Task.objects.new_task("any", creator=other), Task.objects.new_task("any")]:
        row.save()
    assert set(Task.objects.created_by(owner)) == set(mine)
    assert Task.objects.filter(queue="a").created_by(owner).get() == mine[1]
    assert Task.objects.created_by(owner).filter(queue="a").get() == mine[1]


# new_task, get_task, drop_task


def test_new_task_takes_its_arguments_by_position_and_saves_nothing(owner: User) -> None:
    row = Task.objects.new_task(
        "any", [1], {"two": 2}, FUTURE, -3, "a queue", "A title", owner, 60, FUTURE, False
    )
    assert (row.pk, Task.objects.count()) == (None, 0)
    assert (row.task_name, row.params(), row.run_at) == ("any", ([1], {"two": 2}), FUTURE)
    assert (row.priority, row.queue, row.verbose_name) == (-3, "a queue", "A title")
    assert (row.creator, row.repeat, row.repeat_until) == (owner, 60, FUTURE)


def test_get_task_finds_every_row_with_the_name_and_arguments() -> None:
    wanted = [Task.objects.new_task("any", [1], {"two": 2}, queue=queue) for queue in (None, "a")]
    others = [
        Task.objects.new_task("any", [1]),
        Task.objects.new_task("any"),
        Task.objects.new_task("other", [1], {"two": 2}),
    ]
    for row in [*wanted, *others]:
        row.save()
    assert set(Task.objects.get_task("any", [1], {"two": 2})) == set(wanted)
    assert set(Task.objects.get_task("any", (1,))) == {others[0]}
    assert set(Task.objects.get_task("any")) == {others[1]}


def test_drop_task_deletes_them_and_returns_what_delete_does() -> None:
    for _ in range(2):
        Task.objects.new_task("any", [1]).save()
    other = stored()
    assert Task.objects.drop_task("any", [1]) == (2, {"background_task.Task": 2})
    assert Task.objects.drop_task("any", [1])[0] == 0
    assert Task.objects.get() == other


# methods


def test_lock_returns_a_fresh_row_that_is_held_now() -> None:
    row = stored()
    Task.objects.update(priority=5)
    before = timezone.now()
    locked = row.lock("x" * 64)
    assert locked is not row
    assert (locked.pk, locked.priority, locked.locked_by) == (row.pk, 5, "x" * 64)
    assert before - timedelta(seconds=1) <= locked.locked_at <= timezone.now()
    assert (row.locked_by, row.locked_at) == (None, None)
    locked.refresh_from_db()
    assert locked.locked_by == "x" * 64


def test_lock_is_decided_in_the_database_whatever_the_instance_remembers() -> None:
    row = stored()
    assert row.lock("first")
    stale = Task(pk=row.pk, run_at=PAST)
    assert stale.lock("second") is None
    Task.objects.update(locked_by=None, locked_at=None)
    assert row.lock("third").locked_by == "third"


def test_lock_of_a_row_that_is_gone_is_none() -> None:
    row = stored()
    Task.objects.all().delete()
    assert row.lock("too late") is None


def test_only_a_lock_that_is_taken_over_counts_as_a_lost_worker() -> None:
    free = stored().lock("worker")
    taken_over = stored(**locked_for(lease(seconds=2))).lock("worker")
    assert free is not None
    assert taken_over is not None
    assert (free.losses, taken_over.losses) == (None, 1)


@override_settings(MAX_RUN_TIME=60)
def test_a_lock_can_be_taken_over_when_it_is_older_than_max_run_time() -> None:
    assert stored(**locked_for(timedelta(seconds=50))).lock("next") is None
    assert stored(**locked_for(timedelta(seconds=62))).lock("next").locked_by == "next"


@pytest.mark.parametrize(("attempts", "reached"), [(0, False), (2, False), (3, True), (4, True)])
@override_settings(MAX_ATTEMPTS=3)
def test_the_attempts_are_reached_with_the_last(attempts: int, reached: bool) -> None:
    assert stored(attempts=attempts).has_reached_max_attempts() is reached


def test_increment_attempts_counts_and_saves() -> None:
    row = stored(attempts=3)
    row.increment_attempts()
    assert row.attempts == Task.objects.get().attempts == 4


def test_has_error_tells_whether_an_error_is_stored() -> None:
    assert stored().has_error() is False
    assert stored(last_error="Traceback").has_error() is True


def test_params_are_arguments_and_keyword_arguments() -> None:
    row = Task.objects.new_task("any", (1, "ñ"), {"k": [None]})
    args, kwargs = row.params()
    assert (args, kwargs) == ([1, "ñ"], {"k": [None]})
    assert json.loads(row.task_params)[0][0] == 1


def test_a_row_reads_as_its_verbose_name_or_its_name() -> None:
    assert str(stored()) == "any"
    assert str(stored(verbose_name="")) == "any"
    assert str(stored(verbose_name="A title")) == "A title"


def test_saving_turns_an_empty_lock_into_none() -> None:
    row = stored(**locked_for(timedelta()))
    row.locked_by = ""
    row.save()
    assert row.locked_by is None
    assert Task.objects.get().locked_by is None


def test_what_a_project_edits_and_saves_is_what_is_stored() -> None:
    row = stored()
    row.run_at, row.repeat, row.repeat_until = FUTURE, Task.DAILY, FUTURE
    row.verbose_name, row.priority, row.queue = "A title", -1, "a queue"
    row.save()
    row = Task.objects.get()
    assert (row.run_at, row.repeat, row.repeat_until) == (FUTURE, Task.DAILY, FUTURE)
    assert (row.verbose_name, row.priority, row.queue) == ("A title", -1, "a queue")
    assert not Task.objects.find_available()
    row.run_at = PAST
    row.save(update_fields=["run_at"])
    assert Task.objects.find_available().get() == row


def test_a_reschedule_keeps_the_error_and_frees_the_row() -> None:
    row = stored().lock("a worker")
    error = ValueError("what went wrong")
    row.reschedule(ValueError, error, error.__traceback__)
    after = Task.objects.get()
    assert after.pk == row.pk
    assert "ValueError: what went wrong" in after.last_error
    assert (after.attempts, after.locked_by, after.locked_at) == (1, None, None)
    assert after.run_at > timezone.now()


def test_a_repetition_is_saved_and_returned() -> None:
    row = stored(repeat=60, run_at=FUTURE, attempts=3, last_error="Traceback")
    following = row.create_repetition()
    assert set(Task.objects.all()) == {row, following}
    assert following.run_at == FUTURE + timedelta(seconds=60)
    assert (following.attempts, following.last_error) == (0, "")


@pytest.mark.parametrize(
    "values", [{"repeat": 0}, {"repeat": -1}, {"repeat": 60, "repeat_until": PAST}]
)
def test_there_is_no_repetition_when_the_chain_has_ended(values: dict[str, Any]) -> None:
    assert stored(**values).create_repetition() is None
    assert Task.objects.count() == 1


def test_the_copy_for_the_history_is_saved_and_returned_and_the_row_stays(owner: User) -> None:
    row = Task.objects.new_task("any", [1], {"two": 2}, FUTURE, -3, "a queue", "A title", owner)
    row.save()
    row.attempts, row.last_error = 2, "Traceback"
    row.locked_by, row.locked_at = "a worker", PAST
    before: datetime = timezone.now()
    done = row.create_completed_task()
    assert CompletedTask.objects.get() == done
    assert Task.objects.get() == row
    assert before - timedelta(seconds=1) <= done.run_at <= timezone.now()
    done.refresh_from_db()
    for name in (
        "task_name",
        "task_params",
        "task_hash",
        "priority",
        "queue",
        "verbose_name",
        "creator",
        "attempts",
        "last_error",
        "failed_at",
        "locked_by",
        "locked_at",
        "repeat",
        "repeat_until",
    ):
        assert getattr(done, name) == getattr(row, name), name


@pytest.mark.parametrize(
    ("run_at", "state"),
    [
        ("2036-01-01T00:00:00Z", State.SCHEDULED),
        ("2006-01-01 00:00:00+01:00", State.READY),
        (F("run_at") + timedelta(days=1000), None),
        (Now(), None),
    ],
)
def test_a_time_may_be_whatever_django_stores(run_at: Any, state: State | None) -> None:
    row = stored()
    for names in (None, ["run_at"]):
        row.run_at = run_at
        row.save(update_fields=names)
        row = Task.objects.get()
        assert row.state == state
    if not hasattr(run_at, "resolve_expression"):
        Task.objects.create(task_name="created", task_params="[[], {}]", run_at=run_at)
        assert Task.objects.get(task_name="created").state == state


@pytest.mark.parametrize(("year", "state"), [(2036, State.SCHEDULED), (2006, State.READY)])
def test_a_naive_time_is_stored_with_the_warning_of_django(year: int, state: State) -> None:
    row = stored()
    row.run_at = datetime(year, 6, 1)
    with pytest.warns(RuntimeWarning, match="naive datetime"):
        row.save()
    row.refresh_from_db()
    assert (row.run_at.year, row.state) == (year, state)


def test_what_is_no_time_is_refused_and_changes_nothing() -> None:
    row = stored()
    row.run_at = "tomorrow"
    with pytest.raises(ValidationError, match="tomorrow"):
        row.save()
    assert Task.objects.get().run_at == PAST
