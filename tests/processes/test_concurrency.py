"""Many async tasks on one event loop: in a real worker process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from django.db import connection
from django.utils import timezone
from notes import noted
from project import jobs
from project.models import Note
from support import Child, break_other_connections, wait_until

from background_task.models import CompletedTask, Task

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)

pytestmark = pytest.mark.django_db(transaction=True)


def enqueue(name: str, *args: object, count: int = 1, **columns: object) -> None:
    rows = []
    for _ in range(count):
        row = Task.objects.new_task(f"project.tasks.{name}", args)
        for column, value in columns.items():
            setattr(row, column, value)
        rows.append(row)
    for row in rows:
        row.prepare()
    Task.objects.bulk_create(rows)


def connections_of_the_worker() -> int:
    """Return how many connections there are to the test's database, but for this one."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        else:
            cursor.execute(
                "SELECT count(*) FROM information_schema.processlist "
                "WHERE db = DATABASE() AND id <> CONNECTION_ID()"
            )
        return int(cursor.fetchone()[0])


def test_a_thousand_async_tasks_are_in_flight_at_the_same_time(
    worker: Callable[..., Child], vendor: str
) -> None:
    enqueue("meet", "here", 1000, count=1000)
    worker("--concurrency", "1000")
    wait_until(lambda: CompletedTask.objects.count() == 1000)
    assert not Task.objects.exists()
    assert set(CompletedTask.objects.values_list("attempts", "failed_at")) == {(1, None)}
    if vendor != "sqlite":
        assert connections_of_the_worker() < 20


def test_their_queries_share_a_few_connections(worker: Callable[..., Child], vendor: str) -> None:
    enqueue("query_async", "a note", count=200)
    enqueue("slow_async", "long", 600)
    child = worker("--concurrency", "200")
    wait_until(lambda: Note.objects.filter(text="a note").count() == 200)
    wait_until(noted("long begins"))
    if vendor != "sqlite":
        assert connections_of_the_worker() < 20
    assert child.process.poll() is None


def test_no_more_are_in_flight_than_was_said(worker: Callable[..., Child]) -> None:
    enqueue("crowd", count=20)
    worker("--concurrency", "3")
    wait_until(lambda: CompletedTask.objects.count() == 20)
    most = {int(text.split()[1]) for text in Note.objects.values_list("text", flat=True)}
    assert max(most) == 3


def test_one_at_a_time_they_run_in_the_order_of_their_priority(
    worker: Callable[..., Child],
) -> None:
    for priority in (1, 3, 2):
        enqueue("query_async", str(priority), priority=priority)
    worker("--concurrency", "1")
    wait_until(lambda: CompletedTask.objects.count() == 3)
    assert list(Note.objects.order_by("id").values_list("text", flat=True)) == ["3", "2", "1"]


def test_a_function_that_takes_long_does_not_hold_them_up(worker: Callable[..., Child]) -> None:
    enqueue("slow", "function", 600)
    worker()
    wait_until(noted("function begins"))
    enqueue("meet", "meanwhile", 2, count=2)
    wait_until(lambda: CompletedTask.objects.count() == 2)
    assert not noted("function ends")()


def test_they_do_not_hold_functions_up(worker: Callable[..., Child]) -> None:
    enqueue("slow_async", "coroutine", 600)
    worker()
    wait_until(noted("coroutine begins"))
    enqueue("note", "function")
    wait_until(noted("function"))
    assert not noted("coroutine ends")()


def test_a_worker_of_one_queue_leaves_the_async_tasks_of_others(
    worker: Callable[..., Child],
) -> None:
    enqueue("query_async", "other")
    enqueue("query_async", "mine", queue="mine")
    worker("--queue", "mine")
    wait_until(CompletedTask.objects.exists)
    assert Task.objects.get().locked_by is None
    assert not noted("other")()


@pytest.mark.parametrize("how", ["exit", "interrupt", "cancel", "raise"])
def test_one_that_leaves_fails_and_the_others_go_on(worker: Callable[..., Child], how: str) -> None:
    enqueue("slow_async", "long", 2)
    child = worker()
    wait_until(noted("long begins"))
    enqueue("leave_async", how)
    wait_until(noted(f"leaving by {how}"))
    wait_until(noted("long ends"))
    row = wait_until(lambda: Task.objects.filter(attempts=1).first())
    wait_until(CompletedTask.objects.exists)
    enqueue("query_async", "still here")
    wait_until(noted("still here"))
    names = {"exit": "SystemExit", "interrupt": "KeyboardInterrupt", "cancel": "CancelledError"}
    assert names.get(how, "LookupError: on purpose") in row.last_error
    assert "event_loop.py" in row.last_error
    assert "in _fail" not in row.last_error
    assert child.process.poll() is None


def test_the_results_of_both_doors_are_recorded(worker: Callable[..., Child]) -> None:
    results = [jobs.add_async.enqueue(number, 1) for number in range(20)]
    worker()
    assert [result.wait(20) for result in results] == list(range(1, 21))
    assert {result.attempts for result in results} == {1}
    assert all(result.worker_ids[0] for result in results)
    assert all(result.started_at <= result.finished_at for result in results)


def test_a_stop_lets_them_finish_and_takes_no_others(worker: Callable[..., Child]) -> None:
    for number in range(3):
        enqueue("slow_async", f"task {number}", 1)
    child = worker("--concurrency", "2")
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 2)
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()
    assert Note.objects.filter(text__endswith="ends").count() == 2
    assert CompletedTask.objects.count() == 2
    assert (Task.objects.get().locked_by, Task.objects.get().attempts) == (None, 0)


def test_a_second_signal_hands_all_of_them_back_at_once(worker: Callable[..., Child]) -> None:
    enqueue("meet", "in vain", 301, count=300)
    child = worker("--concurrency", "500")
    wait_until(lambda: Task.objects.filter(locked_by__isnull=False).count() == 300)
    enqueue("slow_async", "last", 600)
    wait_until(noted("last begins"))
    assert child.stop_twice() == 128 + signal.SIGTERM, child.text()
    rows = Task.objects.values_list("locked_by", "attempts", "last_error", "losses")
    assert set(rows) == {(None, 0, "", None)}
    assert "Traceback" not in child.text()


def test_their_leases_are_renewed(worker: Callable[..., Child]) -> None:
    enqueue("slow_async", "long", 5)
    for _ in range(3):
        worker(TEST_MAX_RUN_TIME="1.5")
    wait_until(noted("long ends"))
    done = wait_until(CompletedTask.objects.first)
    assert Note.objects.filter(text="long begins").count() == 1
    assert (done.run_at - done.locked_at).total_seconds() >= 5, "it tells when the run began"


def test_one_that_ends_the_process_does_not_take_innocent_ones_with_it(
    worker: Callable[..., Child],
) -> None:
    enqueue("slow_async", "innocent", 0.2, count=5)
    enqueue("leave_async", "kill", priority=-1)

    def expire() -> None:
        Task.objects.filter(locked_by__isnull=False).update(locked_at=LONG_AGO)

    for _ in range(4):
        assert worker().wait() == 9
        expire()
    worker()
    failed = wait_until(lambda: CompletedTask.objects.filter(failed_at__isnull=False).first())
    assert failed.task_name == "project.tasks.leave_async"
    assert "was lost 4 times" in failed.last_error
    wait_until(lambda: CompletedTask.objects.filter(failed_at=None).count() == 5)


def test_a_transaction_that_one_leaves_open_is_rolled_back(worker: Callable[..., Child]) -> None:
    enqueue("open_transaction_async")
    worker("--concurrency", "1")
    failed = wait_until(Task.objects.exclude(last_error="").first)
    assert "has left a transaction open on the database 'default'" in failed.last_error
    for number in range(20):
        enqueue("query_async", f"after {number}")
    wait_until(lambda: CompletedTask.objects.count() == 20)
    assert Note.objects.count() == 20
    assert not noted("never committed")()


def test_connections_that_break_are_made_anew(worker: Callable[..., Child], vendor: str) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite has no connections to break")
    enqueue("query_async", "before", count=20)
    child = worker()
    wait_until(lambda: CompletedTask.objects.count() == 20)
    break_other_connections()
    for number in range(40):
        enqueue("query_async", f"after {number}")

    def all_have_run() -> bool:
        Task.objects.filter(locked_by=None).update(run_at=timezone.now())
        return Note.objects.filter(text__startswith="after").count() == 40

    wait_until(lambda: not Task.objects.exists() or all_have_run())
    assert Note.objects.filter(text__startswith="after").count() == 40
    assert child.process.poll() is None


def test_two_workers_run_each_of_many_once(worker: Callable[..., Child]) -> None:
    for number in range(400):
        enqueue("query_async", f"task {number}")
    for _ in range(2):
        worker("--concurrency", "50")
    wait_until(lambda: CompletedTask.objects.count() == 400)
    texts = list(Note.objects.values_list("text", flat=True))
    assert len(texts) == len(set(texts)) == 400


@pytest.mark.parametrize("how", ["exit", "stop", "cancel"])
def test_no_task_can_end_the_event_loop(worker: Callable[..., Child], how: str) -> None:
    enqueue("end_the_loop", how)
    child = worker()
    wait_until(lambda: not Task.objects.filter(attempts=0).exists())
    for number in range(20):
        enqueue("query_async", f"after {number}")
    wait_until(lambda: Note.objects.filter(text__startswith="after").count() == 20)
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()
    assert not Task.objects.filter(locked_by__isnull=False).exists()


def test_a_process_that_one_starts_can_be_terminated(worker: Callable[..., Child]) -> None:
    enqueue("terminate_a_child")
    worker()
    wait_until(noted(f"child ended by {-signal.SIGTERM}"))


def test_what_one_enqueues_is_taken_without_waiting_for_the_poll(
    worker: Callable[..., Child],
) -> None:
    enqueue("hop", 5)
    worker("--sleep", "3600")
    wait_until(lambda: CompletedTask.objects.count() == 6)


def test_a_query_that_one_leaves_running_holds_nobody_up(worker: Callable[..., Child]) -> None:
    enqueue("leave_a_query_behind", 600)
    worker("--concurrency", "1")
    wait_until(lambda: CompletedTask.objects.count() == 1)
    enqueue("query_async", "next")
    wait_until(noted("next"))


def test_a_transaction_that_one_shares_with_others_is_reported(
    worker: Callable[..., Child],
) -> None:
    enqueue("open_transaction_beside_others", 2, count=8)
    enqueue("crowd", count=8)
    child = worker("--concurrency", "16")
    wait_until(lambda: "a transaction is open" in child.text())


def test_what_is_announced_too_slowly_is_given_back_and_begun_by_others(
    command: Callable[..., Child], vendor: str
) -> None:
    enqueue("query_async", "a note", count=100)
    code = (
        "import time; from background_task.signals import task_started; "
        "from django.core.management import call_command; "
        "slowly = lambda **kwargs: time.sleep(0.1); task_started.connect(slowly); "
        "call_command('process_tasks', sleep=0.1)"
    )
    child = command("shell", "-v0", "-c", code)
    wait_until(lambda: CompletedTask.objects.count() >= 1)
    assert Task.objects.filter(locked_by__isnull=False).count() < 50
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()
    assert not Task.objects.filter(locked_by__isnull=False).exists()
    assert set(Task.objects.values_list("attempts", "losses")) == {(0, None)}


@pytest.mark.parametrize("wrong", ["0", "-1", "many"])
def test_a_wrong_concurrency_is_refused(worker: Callable[..., Child], wrong: str) -> None:
    child = worker("--concurrency", wrong)
    assert child.wait() != 0
    assert "--concurrency" in child.text()
    assert "Traceback" not in child.text()


def test_of_those_that_must_not_run_twice_none_fails_that_could_not_begin(
    worker: Callable[..., Child],
) -> None:
    enqueue("blocking_async", "busy", 600)
    child = worker()
    wait_until(noted("busy begins"))
    for number in range(20):
        enqueue("note_once_async", str(number))
    wait_until(lambda: Task.objects.filter(locked_by__isnull=False).count() == 2)
    child.end()
    Task.objects.filter(task_name="project.tasks.blocking_async").delete()
    worker()
    wait_until(lambda: not Task.objects.exists())
    assert CompletedTask.objects.filter(failed_at__isnull=False).count() == 1
    assert Note.objects.filter(text__regex="^[0-9]+$").count() == 19


@pytest.mark.parametrize("threads", ["1", "2"])
def test_so_many_tasks_are_run_of_functions_and_coroutines_together(
    worker: Callable[..., Child], threads: str
) -> None:
    _enqueue_both(40)
    for rounds in range(1, 6):
        assert worker("--burst", "--max-tasks", "7", "--threads", threads).wait() == 0
        assert CompletedTask.objects.succeeded().count() == 7 * rounds
    assert Task.objects.filter(attempts=0, losses=None, locked_by=None).count() == 45


def test_a_burst_of_processes_that_are_replaced_runs_whatever_is_due(
    worker: Callable[..., Child],
) -> None:
    _enqueue_both(40)
    assert worker("--burst", "--processes", "2", "--max-tasks", "7").wait() == 0
    assert CompletedTask.objects.succeeded().count() == 80


def _enqueue_both(count: int) -> None:
    for number in range(count):
        jobs.urgent.enqueue(f"function {number}")
        jobs.add_async.enqueue(number, number)
