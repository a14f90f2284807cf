"""What happens, in which order, when a task raises: tried again, or failed for good."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.signals import post_delete, post_save
from django.test import override_settings
from django.utils import timezone

from background_task import background, signals
from background_task.exceptions import InvalidTaskError
from background_task.models import CompletedTask, Task
from background_task.tasks import tasks

pytestmark = pytest.mark.django_db


class NeverError(InvalidTaskError):
    """A project's own."""


def failing(error: type[Exception] = ValueError, **options: Any) -> Task:
    @background("failing")
    def task() -> None:
        raise error("what went wrong")

    return task(**options)


@pytest.fixture
def rows(listen: Callable[..., None]) -> list[Any]:
    """At each signal: its name, the length of the history, the row's attempts and lock."""
    seen: list[Any] = []

    def look(name: str) -> Any:
        def receive(**kwargs: Any) -> None:
            row = Task.objects.first()
            seen.append(
                (name, CompletedTask.objects.count(), row and (row.attempts, bool(row.locked_by)))
            )

        return receive

    for name in ("started", "successful", "error", "rescheduled", "failed", "finished"):
        listen(getattr(signals, f"task_{name}"), look(name))
    return seen


# the order, and what the database holds at each signal


def test_a_retry_is_announced_before_the_lock_is_cleared(rows: list[Any]) -> None:
    failing()
    assert tasks.run_next_task()
    assert [(name, done, row[1]) for name, done, row in rows] == [
        ("started", 0, True),
        ("error", 0, True),
        ("rescheduled", 0, True),
        ("finished", 0, False),
    ]
    assert rows[1][2] == (0, True), "at task_error the attempt is not counted yet"
    assert rows[3][2] == (1, False)


@pytest.mark.parametrize("error", [ValueError, InvalidTaskError, NeverError])
def test_a_final_failure_is_in_the_history_before_the_row_is_deleted(
    rows: list[Any], error: type[Exception]
) -> None:
    failing(error)
    with override_settings(MAX_ATTEMPTS=1 if error is ValueError else 25):
        assert tasks.run_next_task()
    assert [(name, done, row and row[1]) for name, done, row in rows] == [
        ("started", 0, True),
        ("error", 0, True),
        ("failed", 1, True),
        ("finished", 1, None),
    ]
    assert rows[1][2] == (0, True), "at task_error the attempt is not counted yet"


def test_the_signals_of_a_retry_have_their_senders_and_arguments(sent: list[Any]) -> None:
    row = failing()
    sent.clear()
    tasks.run_next_task()
    assert sent == [
        ("task_started", Task, {}),
        ("task_error", ValueError, {"task": row}),
        ("task_rescheduled", Task, {"task": row}),
        ("task_finished", Task, {}),
    ]


def test_the_signals_of_a_final_failure_have_their_senders_and_arguments(sent: list[Any]) -> None:
    row = failing(NeverError)
    number = row.pk
    sent.clear()
    tasks.run_next_task()
    assert [name for name, *_ in sent] == [
        "task_started",
        "task_error",
        "task_failed",
        "task_finished",
    ]
    assert sent[1][1] is NeverError
    assert sent[2][1:] == (
        Task,
        {"task_id": number, "completed_task": CompletedTask.objects.get()},
    )


def test_a_receiver_of_task_error_finds_the_exception_being_handled(
    listen: Callable[..., None],
) -> None:
    found: list[Any] = []
    listen(signals.task_error, lambda **kwargs: found.append(sys.exc_info()))
    failing()
    tasks.run_next_task()
    kind, error, traceback = found[0]
    assert (kind, str(error)) == (ValueError, "what went wrong")
    assert traceback is not None


def test_at_task_rescheduled_the_instance_tells_of_the_next_attempt(
    listen: Callable[..., None],
) -> None:
    seen: list[Any] = []

    def look(task: Task, **kwargs: Any) -> None:
        seen.append((task.attempts, task.run_at > timezone.now(), "what went" in task.last_error))

    listen(signals.task_rescheduled, look)
    failing()
    tasks.run_next_task()
    assert seen == [(1, True, True)]


def test_at_task_rescheduled_the_row_tells_of_the_attempt_that_failed() -> None:
    found = []

    def receiver(task: Task, **kwargs: Any) -> None:
        row = Task.objects.get(pk=task.pk)
        found.append((row.attempts, "ValueError" in row.last_error, row.locked_by is not None))

    @background
    def task() -> None:
        raise ValueError

    task()
    signals.task_rescheduled.connect(receiver)
    tasks.run_next_task()
    signals.task_rescheduled.disconnect(receiver)
    assert found == [(1, True, True)]


def test_a_receiver_of_task_rescheduled_may_choose_another_time(
    listen: Callable[..., None],
) -> None:
    chosen = timezone.now() + timedelta(days=3)

    def choose(task: Task, **kwargs: Any) -> None:
        task.run_at = chosen

    listen(signals.task_rescheduled, choose)
    failing()
    tasks.run_next_task()
    assert Task.objects.get().run_at == chosen


def test_rows_are_stored_and_deleted_through_the_signals_of_django(
    listen: Callable[..., None],
) -> None:
    told: list[Any] = []
    failing()
    for model in (Task, CompletedTask):
        listen(
            post_save,
            lambda sender, created, **kwargs: told.append((sender, created)),
            sender=model,
            dispatch_uid=f"stored {model}",
        )
        listen(
            post_delete,
            lambda sender, **kwargs: told.append((sender, "deleted")),
            sender=model,
            dispatch_uid=f"deleted {model}",
        )
    with override_settings(MAX_ATTEMPTS=2):
        tasks.run_next_task()
        assert set(told) == {(Task, False)}
        Task.objects.update(run_at=timezone.now())
        tasks.run_next_task()
    assert told[-2:] == [(CompletedTask, True), (Task, "deleted")]


# what is stored


def test_a_retry_keeps_the_row_and_everything_but_its_attempt() -> None:
    before = failing(priority=3, queue="a queue", verbose_name="A title", repeat=60)
    tasks.run_next_task()
    after = Task.objects.get()
    for name in (
        "pk",
        "task_name",
        "task_params",
        "task_hash",
        "priority",
        "queue",
        "verbose_name",
        "repeat",
        "repeat_until",
    ):
        assert getattr(after, name) == getattr(before, name), name
    assert (after.attempts, after.failed_at) == (1, None)
    assert (after.locked_by, after.locked_at) == (None, None)
    assert after.last_error.startswith("Traceback")
    assert after.last_error.rstrip().endswith("ValueError: what went wrong")


@pytest.mark.parametrize("error", [ValueError, NeverError])
def test_a_final_failure_moves_the_row_to_the_history(error: type[Exception]) -> None:
    row = failing(error, priority=3, verbose_name="A title")
    with override_settings(MAX_ATTEMPTS=1 if error is ValueError else 25):
        tasks.run_next_task()
    done = CompletedTask.objects.get()
    assert not Task.objects.exists()
    assert (done.task_hash, done.priority, done.verbose_name) == (row.task_hash, 3, "A title")
    assert (done.attempts, done.locked_by) == (1, tasks._runner.worker_name)
    assert "what went wrong" in done.last_error
    assert row.run_at <= done.locked_at <= done.failed_at <= done.run_at <= timezone.now()


def test_a_task_is_tried_max_attempts_times() -> None:
    failing()
    with override_settings(MAX_ATTEMPTS=3):
        for _ in range(5):
            tasks.run_next_task()
            Task.objects.update(run_at=timezone.now())
    assert CompletedTask.objects.get().attempts == 3


def test_the_error_of_the_last_attempt_is_the_one_that_is_kept() -> None:
    errors = iter([ValueError("first"), KeyError("second")])

    @background("changing")
    def task() -> None:
        raise next(errors)

    task()
    tasks.run_next_task()
    Task.objects.update(run_at=timezone.now())
    tasks.run_next_task()
    assert "second" in Task.objects.get().last_error
    assert "first" not in Task.objects.get().last_error


# the ladder


def attempt(number: int) -> timedelta:
    """Let attempt ``number`` fail, and return how long its row has to wait, in whole seconds."""
    failing()
    Task.objects.update(attempts=number - 1)
    before = timezone.now()
    tasks.run_next_task()
    waits = Task.objects.get().run_at - before
    return timedelta(seconds=waits // timedelta(seconds=1))


@pytest.mark.parametrize(("number", "seconds"), list(enumerate([6, 21, 86, 261, 630, 1301], 1)))
def test_the_nth_retry_waits_for_n_to_the_fourth_and_5_seconds(number: int, seconds: int) -> None:
    assert attempt(number) in [timedelta(seconds=seconds + late) for late in (0, 1, 2)]


@pytest.mark.parametrize(
    ("multiplier", "seconds"), [(1, 8), (2, 14), (3, 32), (0, 6), (1.5, 10), (4, 86)]
)
def test_the_exponent_is_a_setting_named_multiplier(multiplier: float, seconds: int) -> None:
    with override_settings(BACKOFF_MULTIPLIER=multiplier):
        assert attempt(3) in [timedelta(seconds=seconds + late) for late in (0, 1, 2)]


# logs


def test_an_error_is_logged_with_its_traceback_and_the_retry_as_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing(verbose_name="A title")
    tasks.run_next_task()
    error, warning = [record for record in caplog.records if record.levelno > logging.INFO]
    assert (error.name, error.levelname) == ("background_task.tasks", "ERROR")
    assert "A title" in error.getMessage()
    assert error.exc_info is not None
    assert error.exc_info[0] is ValueError
    assert (warning.name, warning.levelname) == ("background_task.models", "WARNING")
    assert warning.getMessage().startswith("Rescheduling task A title")


def test_a_final_failure_is_logged_as_a_warning_too(caplog: pytest.LogCaptureFixture) -> None:
    failing(NeverError, verbose_name="A title")
    tasks.run_next_task()
    error, warning = [record for record in caplog.records if record.levelno > logging.INFO]
    assert (error.name, error.levelname) == ("background_task.tasks", "ERROR")
    assert (warning.name, warning.levelname) == ("background_task.models", "WARNING")
    assert warning.getMessage() == "Marking task A title as failed"
