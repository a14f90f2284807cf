"""What happens, in which order, when a task is run and succeeds; and what the history keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models.signals import post_delete, post_save
from django.utils import timezone

from background_task import background, signals
from background_task.models import CompletedTask, Task
from background_task.tasks import tasks

pytestmark = pytest.mark.django_db


@pytest.fixture
def story(listen: Callable[..., None]) -> list[Any]:
    """What happens to rows and what is announced, in order."""
    told: list[Any] = []

    def stored(sender: Any, instance: Any, created: bool, **kwargs: Any) -> None:
        told.append(f"{sender.__name__} {'stored' if created else 'updated'}")

    def deleted(sender: Any, **kwargs: Any) -> None:
        told.append(f"{sender.__name__} deleted")

    for model in (Task, CompletedTask):
        listen(post_save, stored, sender=model)
        listen(post_delete, deleted, sender=model)
    for name in ("started", "successful", "error", "rescheduled", "failed", "finished"):
        signal = getattr(signals, f"task_{name}")
        listen(signal, lambda name=name, **kwargs: told.append(f"task_{name}"))
    return told


def test_the_order_of_a_success(story: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            story.append(record.getMessage())

    @background("repeated")
    def repeated() -> None:
        story.append("called")

    repeated(repeat=60, verbose_name="A title")
    story.clear()
    handler, logger = Handler(), logging.getLogger("background_task.tasks")
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "background_task.tasks"):
            assert tasks.run_next_task()
    finally:
        logger.removeHandler(handler)
    assert story == [
        "Running A title",
        "task_started",
        "called",
        "Task updated",  # the attempt is counted
        "CompletedTask stored",
        "task_successful",
        "Task stored",  # the repetition
        "Task deleted",
        "Ran task and deleting A title",
        "task_finished",
    ]


def test_when_the_task_starts_its_row_is_locked_and_no_attempt_is_counted(
    listen: Callable[..., None],
) -> None:
    seen = []

    def look(**kwargs: Any) -> None:
        row = Task.objects.get()
        seen.append((row.locked_by, row.locked_at is None, row.attempts))

    background("looked.at")(look)()
    listen(signals.task_started, look)
    tasks.run_next_task()
    assert seen == [(tasks._runner.worker_name, False, 0)] * 2


def test_at_task_successful_the_row_is_there_still_and_the_repetition_not_yet(
    listen: Callable[..., None],
) -> None:
    seen = []

    def look(task_id: int, completed_task: CompletedTask, **kwargs: Any) -> None:
        seen.append((Task.objects.get().pk == task_id, Task.objects.get().attempts))
        assert CompletedTask.objects.get() == completed_task

    row = background("repeated")(lambda: None)(repeat=60)
    listen(signals.task_successful, look)
    tasks.run_next_task()
    assert seen == [(True, 1)]
    assert Task.objects.get() != row


def test_when_the_task_is_finished_its_row_is_gone(listen: Callable[..., None]) -> None:
    seen = []
    background("once")(lambda: None)()
    listen(
        signals.task_finished,
        lambda **kwargs: seen.append((Task.objects.count(), CompletedTask.objects.count())),
    )
    tasks.run_next_task()
    assert seen == [(0, 1)]


def test_the_signals_of_a_success_have_their_senders_and_arguments(sent: list[Any]) -> None:
    row = background("once")(lambda: None)()
    sent.clear()
    tasks.run_next_task()
    assert sent == [
        ("task_started", Task, {}),
        (
            "task_successful",
            Task,
            {"task_id": row.pk, "completed_task": CompletedTask.objects.get()},
        ),
        ("task_finished", Task, {}),
    ]


def test_a_success_logs_nothing_above_info(caplog: pytest.LogCaptureFixture) -> None:
    background("once")(lambda: None)()
    with caplog.at_level(logging.DEBUG):
        tasks.run_next_task()
    assert {(record.name, record.levelname) for record in caplog.records} == {
        ("background_task.tasks", "INFO")
    }


# the history


def test_the_history_row_tells_who_ran_it_when_and_how_often(owner: User) -> None:
    started: list[Any] = []

    @background("told", queue="a queue")
    def told(*args: Any, **kwargs: Any) -> None:
        started.append(Task.objects.get().locked_at)

    row = told(1, two=2, priority=4, verbose_name="A title", creator=owner, repeat=-1)
    tasks.run_next_task()
    done = CompletedTask.objects.get()
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
        assert getattr(done, name) == getattr(row, name), name
    assert (done.attempts, done.failed_at, done.last_error) == (1, None, "")
    assert done.locked_by == tasks._runner.worker_name
    assert [done.locked_at] == started
    assert row.run_at <= done.locked_at <= done.run_at <= timezone.now()


def test_the_error_of_an_attempt_is_kept_after_a_later_success() -> None:
    runs = []

    @background("second.time.lucky")
    def lucky() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError("the first time")

    lucky()
    tasks.run_next_task()
    Task.objects.update(run_at=timezone.now())
    tasks.run_next_task()
    done = CompletedTask.objects.get()
    assert (done.attempts, done.failed_at, done.has_error()) == (2, None, True)
    assert "the first time" in done.last_error


def finished(**values: Any) -> CompletedTask:
    row = Task.objects.new_task("any", verbose_name=values.pop("verbose_name", None))
    done = row.create_completed_task()
    CompletedTask.objects.filter(pk=done.pk).update(**values)
    done.refresh_from_db()
    return done


def test_finished_tasks_are_filtered_by_outcome_and_age() -> None:
    hours = [timezone.now() - timedelta(hours=number) for number in (0, 2)]
    done = [finished(run_at=at) for at in hours]
    failed = [finished(run_at=at, failed_at=at) for at in hours]
    within = timedelta(hours=1)
    rows = CompletedTask.objects
    assert set(rows.succeeded()) == set(done)
    assert set(rows.succeeded(within=within)) == {done[0]}
    assert set(rows.succeeded(timedelta(hours=3))) == set(done)
    assert set(rows.failed()) == set(failed)
    assert set(rows.failed(within=within)) == {failed[0]}
    assert set(rows.failed(timedelta(hours=3))) == set(failed)


def test_failed_counts_from_the_failure_and_succeeded_from_the_end() -> None:
    long_ago, within = timezone.now() - timedelta(hours=2), timedelta(hours=1)
    failed = finished(run_at=long_ago, failed_at=timezone.now())
    assert CompletedTask.objects.failed(within).get() == failed
    assert not CompletedTask.objects.succeeded(within)


def test_the_filters_chain_in_any_order(owner: User) -> None:
    row = Task.objects.new_task("any", creator=owner)
    done, failed = row.create_completed_task(), row.create_completed_task()
    CompletedTask.objects.filter(pk=failed.pk).update(failed_at=timezone.now())
    finished(), finished(failed_at=timezone.now())
    hour, rows = timedelta(hours=1), CompletedTask.objects
    assert rows.created_by(owner).count() == 2
    assert rows.created_by(owner).failed(within=hour).get() == failed
    assert rows.failed().created_by(owner).get() == failed
    assert rows.filter(task_name="any").succeeded(hour).created_by(owner).get() == done


def test_a_history_row_reads_as_its_task_and_its_end() -> None:
    plain, titled = finished(), finished(verbose_name="A title")
    assert str(plain) == f"any - {plain.run_at}"
    assert str(titled) == f"A title - {titled.run_at}"


def test_a_history_row_answers_the_questions_of_the_admin() -> None:
    row = finished(last_error="Traceback", locked_by=None)
    assert (row.has_error(), row.locked_by_pid_running()) == (True, None)
