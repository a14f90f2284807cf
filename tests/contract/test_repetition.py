"""When a repeating task runs next, and when its chain ends."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import override_settings
from django.utils import timezone

from background_task import background
from background_task.exceptions import InvalidTaskError
from background_task.models import CompletedTask, Task
from background_task.tasks import tasks

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def run(function: Any = lambda *args, **kwargs: None, late: timedelta = HOUR / 60, **options: Any):
    """Store a task that should have run ``late`` ago, run it, and return the row it had."""
    row = background("repeated")(function)(
        "argument", key="value", schedule=timezone.now() - late, **options
    )
    assert tasks.run_next_task()
    return row


def test_the_next_run_is_one_period_after_the_last_was_due() -> None:
    row = run(repeat=3600)
    assert Task.objects.get().run_at == row.run_at + HOUR


@pytest.mark.parametrize(
    ("late", "periods"),
    [
        (timedelta(minutes=1), 1),
        (timedelta(minutes=59), 1),
        (timedelta(minutes=61), 2),
        (timedelta(hours=9, minutes=59), 10),
        (timedelta(days=700, minutes=1), 700 * 24 + 1),
    ],
)
def test_missed_runs_are_skipped_and_the_phase_is_kept(late: timedelta, periods: int) -> None:
    row = run(late=late, repeat=3600)
    assert Task.objects.get().run_at == row.run_at + periods * HOUR
    assert Task.objects.get().run_at >= timezone.now() - timedelta(seconds=1)


def test_the_next_row_is_a_new_one_for_the_same_task(owner: User) -> None:
    until = timezone.now() + 100 * HOUR
    row = run(
        repeat=7,
        repeat_until=until,
        priority=-4,
        queue="a queue",
        verbose_name="A title",
        creator=owner,
    )
    following = Task.objects.get()
    assert following.pk != row.pk
    for name in (
        "task_name",
        "task_params",
        "task_hash",
        "priority",
        "queue",
        "verbose_name",
        "creator",
        "repeat",
        "repeat_until",
    ):
        assert getattr(following, name) == getattr(row, name), name
    assert (following.attempts, following.last_error) == (0, "")
    for name in ("failed_at", "locked_by", "locked_at"):
        assert getattr(following, name) is None, name


@pytest.mark.parametrize("repeat", [0, -1, None])
def test_without_a_period_there_is_no_next_run(repeat: int | None) -> None:
    run(repeat=repeat)
    assert not Task.objects.exists()


def test_the_chain_ends_when_its_end_has_passed() -> None:
    run(repeat=60, repeat_until=timezone.now() - timedelta(seconds=1))
    assert not Task.objects.exists()


def test_only_the_present_is_compared_with_the_end_not_the_next_run() -> None:
    until = timezone.now() + timedelta(minutes=5)
    run(repeat=3600, repeat_until=until)
    assert Task.objects.get().run_at > until


@pytest.mark.parametrize(
    ("error", "attempts"), [(ValueError, 1), (InvalidTaskError, 25)], ids=["spent", "invalid"]
)
def test_the_chain_ends_with_a_final_failure(error: type[Exception], attempts: int) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error("final")

    with override_settings(MAX_ATTEMPTS=attempts):
        run(fail, repeat=60)
    assert not Task.objects.exists()
    assert CompletedTask.objects.get().repeat == 60


def test_a_retry_makes_no_next_row_and_its_time_becomes_the_phase() -> None:
    runs = []

    def fail_once(*args: Any, **kwargs: Any) -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError

    row = run(fail_once, repeat=3600)
    assert Task.objects.get().pk == row.pk
    retried = timezone.now() - timedelta(seconds=30)
    Task.objects.update(run_at=retried)
    assert tasks.run_next_task()
    assert Task.objects.get().run_at == retried + HOUR


def test_the_period_can_be_changed_between_two_runs() -> None:
    run(repeat=3600)
    row = Task.objects.get()
    row.run_at, row.repeat = timezone.now() - timedelta(minutes=1), 7200
    row.save()
    assert tasks.run_next_task()
    following = Task.objects.get()
    assert (following.repeat, following.run_at) == (7200, row.run_at + 2 * HOUR)
