"""Functions that are taken and recorded by the batch: in a real worker process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from notes import noted
from project.models import Note
from support import Child, open_transactions, wait_until

from background_task import background, signals
from background_task.models import Attempt, CompletedTask, Task, Worker
from background_task.states import State

pytestmark = pytest.mark.django_db(transaction=True)


def enqueue(*calls: tuple[object, ...], **columns: object) -> None:
    """Store calls of the tests' tasks at once: each a name and arguments."""
    rows = []
    for name, *arguments in calls:
        row = Task.objects.new_task(f"project.tasks.{name}", arguments)
        for column, value in columns.items():
            setattr(row, column, value)
        row.prepare()
        rows.append(row)
    Task.objects.bulk_create(rows)


def notes(count: int, text: str = "quick") -> list[tuple[object, ...]]:
    return [("note", f"{text} {number}") for number in range(count)]


def test_all_of_many_run_once_and_in_order(worker: Callable[..., Child]) -> None:
    enqueue(*notes(300))
    worker()
    wait_until(lambda: CompletedTask.objects.count() == 300)
    texts = list(Note.objects.order_by("id").values_list("text", flat=True))
    assert texts == [text for _, text in notes(300)]
    done = CompletedTask.objects.values_list("attempts", "failed_at", "locked_by").distinct()
    assert [(attempts, failed) for attempts, failed, _ in done] == [(1, None)]
    assert not Task.objects.exists()


def test_what_waits_behind_a_long_function_is_given_back_and_what_ended_is_recorded(
    worker: Callable[..., Child],
) -> None:
    enqueue(*notes(300, "before"))
    child = worker()
    wait_until(lambda: CompletedTask.objects.count() == 300)
    enqueue(*notes(3), ("slow", "long", 600), *notes(50, "behind"))
    wait_until(noted("long begins"))
    wait_until(lambda: Task.objects.filter(locked_by__isnull=False).count() == 1)
    wait_until(lambda: CompletedTask.objects.count() == 303)
    assert set(Task.objects.values_list("attempts", "losses")) == {(0, None)}
    worker()
    wait_until(noted("behind 49"))
    assert not noted("long ends")()
    assert child.process.poll() is None


def test_a_long_function_in_the_middle_of_a_batch_keeps_no_transaction_open(
    worker: Callable[..., Child],
) -> None:
    # So short that they are taken by ever larger batches, however slow the machine is.
    enqueue(*[("nothing",)] * 200, ("slow", "long", 600), *notes(50, "behind"))
    worker()
    wait_until(noted("long begins"))
    wait_until(lambda: CompletedTask.objects.count() == 200)
    wait_until(lambda: Worker.objects.get().held == "")  # what was held is given back
    wait_until(lambda: open_transactions() == 0)
    worker()
    wait_until(noted("behind 49"))
    assert not noted("long ends")()


def test_functions_in_the_middle_of_a_batch_may_write_to_their_own_rows(
    worker: Callable[..., Child],
) -> None:
    enqueue(
        *notes(200, "before"),
        ("saving_its_row", 0),
        *notes(100, "between"),
        ("deleting_its_row", "is deleted"),
        *notes(100, "behind"),
    )
    child = worker()
    wait_until(lambda: not Task.objects.exists())
    assert CompletedTask.objects.count() == 401
    assert CompletedTask.objects.get(verbose_name="half way").attempts == 1
    assert Note.objects.values("text").distinct().count() == Note.objects.count() == 401
    assert "trying again" not in child.text()


def test_a_thousand_tasks_more_take_a_few_statements_more() -> None:
    @background("nothing")
    def nothing() -> None:
        pass

    def statements_for(count: int) -> int:
        rows = [Task.objects.new_task("nothing") for _ in range(count)]
        for row in rows:
            row.prepare()
        Task.objects.bulk_create(rows)
        statements: list[str] = []

        def count_it(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
            statements.append(sql)
            return execute(sql, *args)

        def watch(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
            connection.execute_wrappers.append(count_it)

        connection_created.connect(watch)
        try:
            with connection.execute_wrapper(count_it):
                call_command("process_tasks", burst=True)
        finally:
            connection_created.disconnect(watch)
        return len(statements)

    few, many = statements_for(1000), statements_for(4000)
    assert CompletedTask.objects.count() == 5000
    # How large a batch is depends on how fast the machine is; one by one it would be six thousand.
    assert many - few < 1000, (few, many)


def test_a_stop_gives_back_what_has_not_begun(worker: Callable[..., Child]) -> None:
    enqueue(*notes(300, "before"))
    child = worker()
    wait_until(lambda: CompletedTask.objects.count() == 300)
    enqueue(("slow", "long", 1), *notes(50, "behind"))
    wait_until(noted("long begins"))
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()
    assert noted("long ends")()
    rows = set(Task.objects.values_list("locked_by", "attempts", "losses"))
    assert rows == {(None, 0, None)}
    assert CompletedTask.objects.count() + Task.objects.count() == 351


def test_a_second_signal_hands_back_what_runs_and_records_what_has_ended(
    worker: Callable[..., Child],
) -> None:
    enqueue(*notes(300, "before"))
    child = worker()
    wait_until(lambda: CompletedTask.objects.count() == 300)
    enqueue(*notes(5), ("slow", "long", 600), *notes(50, "behind"))
    wait_until(noted("long begins"))
    assert child.stop_twice() == 128 + signal.SIGTERM, child.text()
    assert CompletedTask.objects.count() == 305
    assert set(Task.objects.values_list("locked_by", "attempts", "losses")) == {(None, 0, None)}
    assert Task.objects.count() == 51


def test_a_failure_in_the_middle_is_recorded_and_the_others_succeed(
    worker: Callable[..., Child],
) -> None:
    enqueue(*notes(100, "before"), ("leave", "exit"), *notes(100, "after"))
    worker()
    wait_until(lambda: CompletedTask.objects.count() == 200)
    row = Task.objects.get()
    assert (row.attempts, row.locked_by) == (1, None)
    assert "SystemExit" in row.last_error


def test_a_function_that_ends_the_process_takes_no_others_with_it(
    worker: Callable[..., Child],
) -> None:
    enqueue(*notes(200, "before"), ("leave", "kill"), *notes(100, "after"))
    for _ in range(4):
        assert worker().wait() == 9
    worker()
    failed = wait_until(lambda: CompletedTask.objects.filter(failed_at__isnull=False).first())
    assert "was lost 4 times" in failed.last_error
    wait_until(lambda: CompletedTask.objects.filter(failed_at=None).count() == 300)
    assert not Task.objects.exists()


def test_a_task_may_ask_not_to_be_run_again_after_a_loss(worker: Callable[..., Child]) -> None:
    enqueue(*notes(100, "before"), ("leave_for_good",), *notes(100, "after"))
    assert worker().wait() == 9
    worker()
    wait_until(lambda: CompletedTask.objects.count() == 201)
    failed = CompletedTask.objects.get(failed_at__isnull=False)
    assert (failed.task_name, failed.losses) == ("project.tasks.leave_for_good", 1)
    log = Attempt.objects.filter(result_id=failed.result_id)
    assert "WorkerLostError" in log[0].exception_class_path


@pytest.mark.parametrize("before", [0, 100])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_one_that_must_not_run_again_has_not_failed_when_it_has_not_begun(
    worker: Callable[..., Child], threads: str, before: int
) -> None:
    enqueue(*notes(before), ("leave", "kill"), *[("note_once", str(n)) for n in range(100)])
    Task.objects.filter(task_params__contains="kill").update(losses=3, state=State.READY)
    assert worker("--threads", threads).wait() == 9
    worker("--threads", threads)
    wait_until(lambda: not Task.objects.exists())
    failed = CompletedTask.objects.filter(failed_at__isnull=False)
    # With threads, what another one ran at that moment has begun.
    assert failed.count() <= int(threads)
    assert "project.tasks.leave" in failed.values_list("task_name", flat=True)
    assert Note.objects.filter(text__regex="^[0-9]+$").count() >= 101 - failed.count()


def test_where_a_receiver_wants_each_task_the_order_is_the_predecessors() -> None:
    events: list[str] = []

    @background("told")
    def told(number: int) -> None:
        events.append(f"runs {number}")

    def successful(**kwargs: object) -> None:
        events.append("successful")

    def finished(**kwargs: object) -> None:
        events.append("finished")

    for number in range(3):
        told(number)
    signals.task_successful.connect(successful)
    signals.task_finished.connect(finished)
    try:
        call_command("process_tasks", burst=True)
    finally:
        signals.task_successful.disconnect(successful)
        signals.task_finished.disconnect(finished)
    assert events == [event for n in range(3) for event in (f"runs {n}", "successful", "finished")]


def test_a_function_that_edits_or_deletes_its_own_row_is_no_trouble() -> None:
    @background("own")
    def own(how: str) -> None:
        row = Task.objects.get(task_params=f'[["{how}"], {{}}]')
        if how == "delete":
            row.delete()
        else:
            row.verbose_name = "edited"
            row.save()

    own("delete")
    own("edit")
    call_command("process_tasks", burst=True)
    assert CompletedTask.objects.get().verbose_name == "edited"
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    ("innocent", "options"), [("slow", ["--threads", "4"]), ("slow_async", [])]
)
def test_what_runs_beside_a_task_that_ends_its_process_is_never_blamed_for_all_losses(
    worker: Callable[..., Child], innocent: str, options: list[str]
) -> None:
    enqueue(("leave_after", 0.5), *[(innocent, str(number), 1.0) for number in range(3)])
    while Task.objects.exists():
        ended = worker(*options).process.poll
        wait_until(lambda ended=ended: not Task.objects.exists() or ended() is not None)
    failed = CompletedTask.objects.filter(failed_at__isnull=False)
    assert list(failed.values_list("task_name", flat=True)) == ["project.tasks.leave_after"]
    assert CompletedTask.objects.count() == 4
