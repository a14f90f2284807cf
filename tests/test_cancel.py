"""A task can be cancelled while it waits, and what waits for it learns of that."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models.signals import pre_save
from django.utils import timezone
from project import jobs
from project.models import Note
from project.tasks import note

from background_task import background
from background_task._compat import HAS_TASKS, tasks_base, tasks_signals
from background_task.exceptions import TaskCancelledError
from background_task.models import CompletedTask, Task, Worker
from background_task.policies import cancellation
from background_task.policies.repetition import chain_key
from background_task.signals import task_cancelled, task_failed
from background_task.states import State
from background_task.storage import oddities, readiness, workers
from background_task.storage.engine import Engine
from background_task.tasks import tasks

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_task_that_waits_is_moved_to_the_history_and_does_not_run() -> None:
    row = note("never", schedule=60)
    assert row.cancel()
    assert not Task.objects.exists()
    done = CompletedTask.objects.get()
    assert (done.state, done.attempts, done.locked_by) == (State.CANCELLED, 0, None)
    assert "cancelled while it waited" in done.last_error
    assert done.result_id == row.result_id
    assert list(CompletedTask.objects.failed()) == [done]
    assert not CompletedTask.objects.succeeded().exists()
    assert not tasks.run_next_task()
    assert not Note.objects.exists()


def test_what_has_finished_cannot_be_cancelled() -> None:
    row = note("done")
    assert tasks.run_next_task()
    assert not row.cancel()
    assert CompletedTask.objects.get().state == State.SUCCESSFUL


def test_what_the_predecessors_worker_runs_cannot_be_cancelled() -> None:
    row = note("locked")
    Task.objects.filter(pk=row.pk).update(locked_by="123", locked_at=timezone.now())
    assert not row.cancel()
    assert Task.objects.get().locked_by == "123"


def test_what_a_lost_worker_ran_waits_and_can_be_cancelled() -> None:
    row = note("locked")
    long_ago = timezone.now() - timedelta(days=1)
    Task.objects.filter(pk=row.pk).update(locked_by="123", locked_at=long_ago)
    assert row.cancel()
    assert CompletedTask.objects.get().state == State.CANCELLED


def test_a_chain_ends_with_the_row_that_is_cancelled() -> None:
    row = note("again", repeat=60)
    assert row.cancel()
    assert not Task.objects.exists()


def test_a_declared_chain_goes_on() -> None:
    proxy: Any = background("declared", every=60)(lambda: None)
    row = proxy.declared_task()
    row.identify(unique_key=chain_key(row.task_hash))
    row.save()
    assert row.cancel()
    following = Task.objects.get()
    assert following.pk != row.pk
    assert following.unique_key == chain_key(row.task_hash)


def test_it_is_announced_as_cancelled_and_not_as_failed() -> None:
    heard: list[tuple[str, int, Any]] = []

    def hear(signal: Any, task_id: int, completed_task: Any, **kwargs: Any) -> None:
        name = "cancelled" if signal is task_cancelled else "failed"
        heard.append((name, task_id, completed_task))

    row = note("never", schedule=60)
    for signal in (task_cancelled, task_failed):
        signal.connect(hear)
    try:
        row.cancel()
    finally:
        for signal in (task_cancelled, task_failed):
            signal.disconnect(hear)
    assert heard == [("cancelled", row.pk, CompletedTask.objects.get())]


WORKER = "host:1:a"


def run_elsewhere(row: Task) -> None:
    """Let a worker run the row of which only that is to be seen."""
    now = timezone.now()
    Worker.objects.get_or_create(
        worker_id=WORKER, defaults={"name": "host", "started_at": now, "seen_at": now}
    )
    locked = {"locked_by": "1", "worker_id": WORKER, "locked_at": now}
    Task.objects.filter(pk=row.pk).update(**locked)


@pytest.fixture
def row_locks(vendor: str) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite locks the whole database, not a row")


@pytest.fixture
def engine(engine: Engine, vendor: str) -> Engine:
    """One that does not wait for the locks of this connection."""
    if vendor == "postgresql":
        engine.run("SET lock_timeout = '1s'")
    elif vendor == "mysql":
        engine.run("SET innodb_lock_wait_timeout = 1")
    return engine


@pytest.mark.usefixtures("row_locks")
def test_who_cancels_in_a_transaction_keeps_no_worker_from_showing_that_it_lives(
    engine: Engine,
) -> None:
    row = note("runs")
    run_elsewhere(row)
    with transaction.atomic():
        assert row.cancel()
        assert workers.beat(engine, WORKER).requests == ""
    assert workers.beat(engine, WORKER).requests == f" cancel:{row.pk}"


@pytest.mark.usefixtures("row_locks")
def test_what_has_begun_since_the_transaction_did_is_not_taken_for_waiting(
    engine: Engine,
) -> None:
    row, other = note("runs"), note("waits")
    run_elsewhere(other)
    with transaction.atomic():
        assert Task.objects.get(pk=row.pk).locked_by is None
        sql = "UPDATE background_task SET locked_by = '1', worker_id = %s, locked_at = "
        engine.run(f"{sql}{engine.now} WHERE id = %s", [WORKER, row.pk])
        assert row.cancel()
    assert cancellation.is_marked(Task.objects.get(pk=row.pk).options)


@pytest.mark.usefixtures("row_locks")
def test_who_keeps_a_row_locked_that_is_to_be_cancelled_keeps_no_worker_waiting(
    engine: Engine,
) -> None:
    row = note("runs")
    Task.objects.update(options=cancellation.marked(None), state=None)
    done: list[int] = []
    with transaction.atomic():
        assert Task.objects.select_for_update().get() == row
        looking = threading.Thread(target=lambda: done.append(readiness.settle(engine)))
        looking.start()
        looking.join(10)
        assert done == [0]
    assert readiness.settle(engine) == 1
    assert CompletedTask.objects.get().state == State.CANCELLED


def refuse(**kwargs: Any) -> None:
    raise ValueError("on purpose")


def test_one_whose_cancellation_cannot_be_recorded_is_passed_over_and_stops_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end() -> None:
        Task.objects.update(options=cancellation.marked(None))
        raise TaskCancelledError

    background("ends")(end)()
    pre_save.connect(refuse, sender=CompletedTask)
    try:
        assert tasks.run_next_task()
        assert Task.objects.get().locked_by is None
        call_command("process_tasks", "--burst")
    finally:
        pre_save.disconnect(refuse, sender=CompletedTask)
    assert Task.objects.get().attempts == 1
    monkeypatch.setattr(oddities, "_passed_over", {})
    readiness.settle(Engine.on("default"))
    assert CompletedTask.objects.get().state == State.CANCELLED


def test_a_row_that_is_to_be_cancelled_does_not_run_when_code_unlocks_it() -> None:
    row = note("never")
    assert row.lock("1")
    locked = Task.objects.get()
    locked.options = cancellation.marked(None)
    locked.locked_by = None
    locked.save()
    tasks.run_next_task()
    readiness.settle(Engine.on("default"))
    assert CompletedTask.objects.get().state == State.CANCELLED
    assert not Note.objects.exists()


def test_a_worker_that_runs_it_is_asked_once_for_each_call() -> None:
    row = note("runs")
    run_elsewhere(row)
    assert row.cancel()
    assert Worker.objects.get().requests.split() == [f"cancel:{row.pk}"]
    assert Task.objects.filter(pk=row.pk).exists()


@pytest.mark.skipif(not HAS_TASKS, reason="there is no django.tasks")
def test_a_result_says_that_its_task_was_cancelled() -> None:
    result = jobs.add.enqueue(1)
    assert result.cancel()
    assert result.status == tasks_base.TaskResultStatus.FAILED
    assert (result.attempts, result.worker_ids) == (0, [])
    (error,) = result.errors
    assert error.exception_class_path == "background_task.exceptions.TaskCancelledError"
    assert "cancelled while it waited" in error.traceback
    assert not result.cancel()
    with pytest.raises(ValueError, match="Task failed"):
        result.wait(timeout=5)


@pytest.mark.skipif(not HAS_TASKS, reason="there is no django.tasks")
def test_djangos_signal_tells_of_it_after_the_commit_and_only_once() -> None:
    heard: list[Any] = []

    def finished(task_result: Any, **kwargs: Any) -> None:
        heard.append((task_result.id, task_result.status, connection.in_atomic_block))

    result = jobs.add.enqueue(1)
    note("through the other door").cancel()
    tasks_signals.task_finished.connect(finished)
    try:
        with transaction.atomic():
            assert result.cancel()
            assert not heard
        assert not result.cancel()
    finally:
        tasks_signals.task_finished.disconnect(finished)
    assert heard == [(result.id, tasks_base.TaskResultStatus.FAILED, False)]


@pytest.mark.skipif(not HAS_TASKS, reason="there is no django.tasks")
def test_a_result_can_be_cancelled_from_async_code() -> None:
    from asgiref.sync import async_to_sync

    result = note.enqueue("never")
    assert async_to_sync(result.acancel)()
    assert not Task.objects.exists()


@pytest.mark.parametrize("repeat", [0, 3600])
def test_one_that_fails_by_itself_after_it_was_cancelled_is_not_tried_again(repeat: int) -> None:
    def fail() -> None:
        Task.objects.update(options=cancellation.marked(None))
        raise LookupError("by itself")

    background("fails")(fail)(repeat=repeat)
    assert tasks.run_next_task()
    done = CompletedTask.objects.get()
    assert (done.state, done.attempts) == (State.CANCELLED, 1)
    assert "by itself" in done.last_error
    assert not Task.objects.exists()


def test_one_that_is_edited_while_it_runs_on_is_still_known_to_run() -> None:
    row = note("runs")
    assert row.lock("1")
    Task.objects.filter(pk=row.pk).update(options=cancellation.marked(None), state=None)
    readiness.settle(Engine.on("default"))
    assert Task.objects.get().state == State.RUNNING
    Task.objects.filter(pk=row.pk).update(locked_by=None)
    readiness.settle(Engine.on("default"))
    assert CompletedTask.objects.get().state == State.CANCELLED


def test_one_that_succeeds_by_itself_is_the_last_of_its_chain() -> None:
    background("ends")(lambda: Task.objects.update(options=cancellation.marked(None)))(repeat=3600)
    assert tasks.run_next_task()
    assert CompletedTask.objects.get().state == State.SUCCESSFUL
    assert not Task.objects.exists()


@pytest.mark.parametrize("options", [None, '{"declared_in": "api"}', "no JSON", "[1]"])
def test_the_mark_is_found_and_taken_off_whatever_else_there_is(options: str | None) -> None:
    marked = cancellation.marked(options)
    assert cancellation.is_marked(marked)
    assert not cancellation.is_marked(options)
    kept = options if options and options.startswith("{") else None
    assert cancellation.unmarked(marked) == kept
    assert cancellation.unmarked(options) == options


@pytest.mark.skipif(not HAS_TASKS, reason="there is no django.tasks")
def test_the_errors_of_one_that_was_cancelled_between_two_attempts_end_with_that() -> None:
    result = jobs.raises.using(backend="retrying").enqueue("x")
    assert tasks.run_next_task()
    assert result.cancel()
    names = [error.exception_class_path for error in result.errors]
    assert names == ["builtins.LookupError", "background_task.exceptions.TaskCancelledError"]
