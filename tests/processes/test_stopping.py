"""How a worker ends: by signals, by its duration, and whatever its tasks have left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from notes import enqueue, noted
from project.models import Note
from support import Child, app_in, wait_until

from background_task.models import CompletedTask, Task
from background_task.worker.shutdown import LONGEST_EXIT

pytestmark = pytest.mark.django_db(transaction=True)

STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGTSTP]


def stop_at_once(child: Child) -> None:
    """Ask for an end twice; the worker ends as forced."""
    assert child.stop_twice(signal.SIGINT) == 128 + signal.SIGINT, child.text()


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_lets_the_running_task_finish_and_takes_no_other(
    worker: Callable[..., Child], number: signal.Signals
) -> None:
    enqueue("slow", "first", 1)
    enqueue("slow", "second", 1)
    child = worker()
    wait_until(noted("first begins"))
    child.send(number)
    assert child.wait() == 0, child.text()
    assert noted("first ends")()
    assert CompletedTask.objects.get().attempts == 1
    assert (Task.objects.get().locked_by, Task.objects.get().attempts) == (None, 0)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_ends_an_idle_worker_at_once(
    worker: Callable[..., Child], number: signal.Signals
) -> None:
    enqueue("note", "awake")
    child = worker("--sleep", "600")
    wait_until(noted("awake"))
    child.send(number)
    assert child.wait() == 0, child.text()


@pytest.mark.parametrize("threads", [False, True])
def test_a_second_signal_hands_the_running_task_back_without_counting_the_attempt(
    worker: Callable[..., Child], threads: bool
) -> None:
    enqueue("slow", "long", 600)
    child = worker(**({"TEST_RUN_ASYNC": "1"} if threads else {}))
    wait_until(noted("long begins"))
    stop_at_once(child)
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.last_error) == (None, 0, "")


@pytest.mark.parametrize("threads", [False, True])
def test_a_second_signal_cancels_an_async_task_and_hands_it_back(
    worker: Callable[..., Child], threads: bool
) -> None:
    enqueue("slow_async", "long", 600)
    child = worker(**({"TEST_RUN_ASYNC": "1"} if threads else {}))
    wait_until(noted("long begins"))
    stop_at_once(child)
    assert noted("long is cancelled")() or threads
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.last_error) == (None, 0, "")


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=" ".join)
@pytest.mark.parametrize("how", ["ignores", "blocks", "asyncio"])
def test_signals_that_a_task_has_taken_are_taken_back(
    worker: Callable[..., Child], how: str, options: list[str]
) -> None:
    for _ in range(6):
        enqueue("take_signals", how)
    child = worker(*options)
    wait_until(lambda: CompletedTask.objects.count() == 6)
    enqueue("slow", "last", 1.0)
    wait_until(noted("last begins"))
    child.send(signal.SIGTERM)
    assert child.wait() == 0
    assert noted("last ends")()


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(
    "name", ["blocking_async", "thread_of_async", "stubborn_async", "threads_of_its_own"]
)
def test_a_second_signal_ends_the_process_whatever_the_task_waits_for(
    worker: Callable[..., Child], name: str, threads: bool
) -> None:
    enqueue(name, "long", 600)
    child = worker(**({"TEST_RUN_ASYNC": "1"} if threads else {}))
    wait_until(noted("long begins"))
    stop_at_once(child)
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.last_error) == (None, 0, "")
    assert "Traceback" not in child.text()


def test_a_second_signal_ends_the_process_although_the_database_is_locked(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor != "sqlite":
        pytest.skip("only SQLite locks the whole database")
    for number in range(2):
        enqueue("slow", f"task {number}", 600)
    child = worker(TEST_RUN_ASYNC="1")
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 2)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        stop_at_once(child)
        cursor.execute("ROLLBACK")
    assert "Traceback" not in child.text()


def test_it_is_no_success_if_what_was_given_up_has_ended_and_its_row_is_still_held(
    worker: Callable[..., Child], tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    enqueue("journal_async", "long", 1.5)
    child = worker(TEST_JOURNAL=str(journal))
    wait_until(lambda: journal.exists() and "long" in journal.read_text())
    with transaction.atomic():
        Task.objects.update(priority=1)
        stop_at_once(child)
    assert not CompletedTask.objects.exists()


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_that_comes_while_the_process_ends_does_not_kill_it(
    worker: Callable[..., Child], number: signal.Signals
) -> None:
    enqueue("note", "awake")
    child = worker()
    wait_until(noted("awake"))
    child.send(number)
    while child.process.poll() is None:
        child.send(number)
        time.sleep(0.002)
    assert child.wait() == 0, child.text()


@pytest.mark.parametrize("end", ["--burst", "--duration 3", "--max-tasks 3", "SIGTERM"])
def test_a_worker_that_is_done_does_not_wait_for_ever_for_threads_that_tasks_have_left_behind(
    worker: Callable[..., Child], end: str
) -> None:
    enqueue("leave_a_thread_behind", "too late", 600)
    enqueue("leave_a_pool_behind", 600)
    enqueue("leave_a_query_behind", 600)
    child = worker() if end == "SIGTERM" else worker(*end.split())
    wait_until(lambda: CompletedTask.objects.count() == 3)
    if end == "SIGTERM":
        child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()
    assert child.text().count("keep this process") == 1
    assert "left behind, pool_0" in child.text()


def test_a_second_signal_ends_a_worker_that_waits_for_a_thread(
    worker: Callable[..., Child],
) -> None:
    enqueue("leave_a_thread_behind", "too late", 600)
    child = worker("--burst")
    wait_until(lambda: "keep this process" in child.text())
    while child.process.poll() is None:  # one that comes at the wrong moment is not heard at once
        child.send(signal.SIGTERM)
        time.sleep(0.1)
    assert child.wait() == 0, "nothing that ran was cut off"


def test_a_thread_that_a_task_has_left_behind_may_finish_soon(worker: Callable[..., Child]) -> None:
    enqueue("leave_a_thread_behind", "finished", 2)
    assert worker("--burst").wait() == 0
    assert noted("finished")()


def test_who_calls_the_command_may_go_on_and_be_kept_by_threads_as_long_as_he_likes(
    command: Callable[..., Child],
) -> None:
    enqueue("leave_a_thread_behind", "finished", LONGEST_EXIT + 1)
    call = "from django.core.management import call_command as c; c('process_tasks', burst=True)"
    assert command("shell", "-v0", "-c", f"{call}; raise SystemExit(3)").wait() == 3
    assert noted("finished")()


def test_threads_finish_what_they_run_before_the_worker_ends(worker: Callable[..., Child]) -> None:
    for number in range(2):
        enqueue("slow", f"task {number}", 1)
    child = worker(TEST_RUN_ASYNC="1")
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 2)
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()
    assert CompletedTask.objects.count() == 2
    assert not Task.objects.exists()


def test_the_duration_ends_after_the_running_task(worker: Callable[..., Child]) -> None:
    enqueue("slow", "first", 2)
    child = worker("--duration", "1")
    assert child.wait() == 0
    assert noted("first ends")()
    assert CompletedTask.objects.exists()


def test_an_idle_worker_ends_with_its_duration_however_long_it_sleeps(
    worker: Callable[..., Child],
) -> None:
    assert worker("--duration", "1", "--sleep", "600").wait() == 0


def test_the_command_gives_the_signals_back() -> None:
    before = [signal.getsignal(number) for number in (*STOPS, signal.SIGUSR1, signal.SIGUSR2)]
    call_command("process_tasks", duration=1, sleep=0.01)
    after = [signal.getsignal(number) for number in (*STOPS, signal.SIGUSR1, signal.SIGUSR2)]
    assert after == before


def test_the_command_works_outside_the_main_thread() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call_command("process_tasks", duration=1, sleep=0.01)
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert errors == []


@pytest.mark.parametrize("options", [[], ["--threads", "2"]])
def test_after_the_duration_what_runs_has_as_long_as_after_a_signal(
    worker: Callable[..., Child], options: list[str]
) -> None:
    enqueue("slow", "long", 600)
    child = worker("--duration", "2", "--shutdown-timeout", "0.5", *options)
    wait_until(noted("long begins"))
    assert child.wait() == 128 + signal.SIGTERM
    assert Task.objects.get().locked_by is None


@pytest.mark.parametrize("name", ["stay_once", "stay_once_async"])
@pytest.mark.parametrize("options", [[], ["--threads", "2"], ["--shutdown-timeout", "1"]])
def test_what_must_not_begin_twice_has_failed_when_it_is_cut_off(
    worker: Callable[..., Child], name: str, options: list[str]
) -> None:
    enqueue(name, "long")
    child = worker(*options)
    wait_until(noted("long begins"))
    child.send(signal.SIGTERM)
    if "--shutdown-timeout" not in options:
        wait_until(lambda: "Stopping" in child.text())
        child.send(signal.SIGTERM)
    child.wait()
    assert Task.objects.get().losses == 1
    worker()
    failed = wait_until(CompletedTask.objects.first)
    assert "WorkerLostError" in failed.last_error
    assert Note.objects.count() == 1


@pytest.fixture
def handing_back_when(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """What lets a worker wait for something before it hands back what runs."""

    def write(condition: str, module: str, name: str) -> dict[str, str]:
        models = (
            "import time\n"
            f"from {module} import {name}\n"
            f"hand_back = {name}.hand_back\n"
            "def hand_back_late(*args):\n"
            "    from background_task.models import CompletedTask, Task\n"
            f"    while not {condition}:\n"
            "        time.sleep(0.02)\n"
            "    return hand_back(*args)\n"
            f"{name}.hand_back = hand_back_late\n"
        )
        return app_in(tmp_path, "late", models)

    return write


HOW = pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slow", ["--threads", "2"]),
        ("slow", ["--threads", "2", "--processes", "1"]),
        ("slow_async", []),
        ("slow_async", ["--processes", "1"]),
    ],
)


@HOW
def test_it_is_a_success_if_what_ran_has_ended_before_it_is_handed_back(
    worker: Callable[..., Child],
    handing_back_when: Callable[..., dict[str, str]],
    name: str,
    options: list[str],
) -> None:
    has_ended = "CompletedTask.objects.exists()"
    late = handing_back_when(has_ended, "background_task.execution.runs", "runs")
    enqueue(name, "long", 2)
    child = worker(*options, **late)
    wait_until(noted("long begins"))
    assert child.stop_twice() == 0, child.text()
    assert noted("long ends")()
    assert not Task.objects.exists()


@HOW
def test_it_is_no_success_whoever_hands_back_what_ran(
    worker: Callable[..., Child],
    handing_back_when: Callable[..., dict[str, str]],
    name: str,
    options: list[str],
) -> None:
    was_handed_back = "Task.objects.filter(locked_by=None).exists()"
    late = handing_back_when(was_handed_back, "background_task.storage", "leases")
    enqueue(name, "long", 600)
    child = worker(*options, **late)
    wait_until(noted("long begins"))
    assert child.stop_twice() == 128 + signal.SIGTERM, child.text()
    assert Task.objects.get().locked_by is None
