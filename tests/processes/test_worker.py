"""The worker in a real process: how it stops, and what it survives."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone
from notes import enqueue, noted
from project.models import Note
from project.tasks import note
from support import Child, break_other_connections, wait_until

from background_task.models import CompletedTask, Task
from background_task.tasks import tasks
from background_task.utils import SignalManager

pytestmark = pytest.mark.django_db(transaction=True)

# select() takes no file of a higher number.
SELECTABLE = 1024


def stop_at_once(child: Child, timeout: float) -> None:
    """Ask for an end once, and again when that was heard; the worker ends as forced."""
    child.send(signal.SIGTERM)
    wait_until(lambda: "Stopping when what runs has ended" in child.text())
    child.send(signal.SIGINT)
    assert child.wait(timeout) == 128 + signal.SIGINT, child.text()


STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGTSTP]


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
    child = worker("--sleep", "60")
    wait_until(noted("awake"))
    child.send(number)
    assert child.wait(timeout=5) == 0, child.text()


@pytest.mark.parametrize("threads", [False, True])
def test_a_second_signal_hands_the_running_task_back_without_counting_the_attempt(
    worker: Callable[..., Child], threads: bool
) -> None:
    enqueue("slow", "long", 60)
    child = worker(**({"TEST_RUN_ASYNC": "1"} if threads else {}))
    wait_until(noted("long begins"))
    stop_at_once(child, timeout=10)
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.last_error) == (None, 0, "")


@pytest.mark.parametrize("threads", [False, True])
def test_a_second_signal_cancels_an_async_task_and_hands_it_back(
    worker: Callable[..., Child], threads: bool
) -> None:
    enqueue("slow_async", "long", 60)
    child = worker(**({"TEST_RUN_ASYNC": "1"} if threads else {}))
    wait_until(noted("long begins"))
    stop_at_once(child, timeout=15)
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


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Bogota"])
def test_the_zone_of_a_database_moves_nothing(
    command: Callable[..., Child], worker: Callable[..., Child], zone: str
) -> None:
    storing = "from project.tasks import note; note('now'); note('later', schedule=3600)"
    assert command("shell", "-v0", "-c", storing, TEST_ZONE=zone).wait() == 0
    worker(TEST_ZONE=zone)
    wait_until(noted("now"))
    wait_until(CompletedTask.objects.exists)
    assert Task.objects.count() == 1


@pytest.mark.parametrize("threads", [False, True])
def test_a_task_longer_than_the_lease_runs_once_however_many_workers_there_are(
    worker: Callable[..., Child], threads: bool
) -> None:
    enqueue("slow", "long", 5)
    environment = {"TEST_MAX_RUN_TIME": "1.5", **({"TEST_RUN_ASYNC": "1"} if threads else {})}
    for _ in range(3):
        worker(**environment)
    wait_until(noted("long ends"))
    done = wait_until(CompletedTask.objects.first)
    assert Note.objects.filter(text="long begins").count() == 1
    assert done.attempts == 1
    assert (done.run_at - done.locked_at).total_seconds() >= 5, "it tells when the run began"


def test_a_task_that_saves_its_own_row_after_a_renewal_is_recorded(
    worker: Callable[..., Child],
) -> None:
    enqueue("saving_its_row", 2)
    worker(TEST_MAX_RUN_TIME="1.5")
    done = wait_until(CompletedTask.objects.first)
    assert (done.attempts, done.verbose_name) == (1, "half way")
    assert not Task.objects.exists()


@pytest.mark.parametrize("how", [("return", 0), ("raise", 1), ("exit", 7)])
def test_a_child_that_a_task_forks_and_forgets_does_not_become_a_worker(
    worker: Callable[..., Child], how: tuple[str, int]
) -> None:
    enqueue("fork", how[0])
    child = worker()
    wait_until(noted(f"child left with {how[1]}"))
    wait_until(CompletedTask.objects.exists)
    assert CompletedTask.objects.get().attempts == 1
    child.send(signal.SIGTERM)
    assert child.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(child.process.pid, 0)


@pytest.mark.parametrize("how", [("return", 0), ("raise", 1), ("exit", 7)])
def test_a_child_that_an_async_task_forks_does_not_live_on(
    worker: Callable[..., Child], how: tuple[str, int]
) -> None:
    enqueue("fork_async", how[0])
    child = worker()
    wait_until(noted(f"child left with {how[1]}"))
    wait_until(CompletedTask.objects.exists)
    child.send(signal.SIGTERM)
    assert child.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(child.process.pid, 0)


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize(
    "name", ["blocking_async", "thread_of_async", "stubborn_async", "threads_of_its_own"]
)
def test_a_second_signal_ends_the_process_whatever_the_task_waits_for(
    worker: Callable[..., Child], name: str, threads: bool
) -> None:
    enqueue(name, "long", 60)
    child = worker(**({"TEST_RUN_ASYNC": "1"} if threads else {}))
    wait_until(noted("long begins"))
    stop_at_once(child, timeout=20)
    row = Task.objects.get()
    assert (row.locked_by, row.attempts, row.last_error) == (None, 0, "")
    assert "Traceback" not in child.text()


def test_a_second_signal_ends_the_process_although_the_database_is_locked(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor != "sqlite":
        pytest.skip("only SQLite locks the whole database")
    for number in range(2):
        enqueue("slow", f"task {number}", 60)
    child = worker(TEST_RUN_ASYNC="1")
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 2)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        stop_at_once(child, timeout=20)
        cursor.execute("ROLLBACK")
    assert "Traceback" not in child.text()


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


def test_a_task_that_closes_every_file_ends_its_worker_and_no_other_task(
    worker: Callable[..., Child],
) -> None:
    enqueue("closing_files")
    for _ in range(4):
        child = worker()
        assert child.wait() == 70
        assert "closed files that are not its own" in child.text()
    worker()
    enqueue("note", "still here")
    wait_until(noted("still here"))
    failed = wait_until(CompletedTask.objects.failed().first)
    assert "was lost 4 times" in failed.last_error


def test_a_process_that_a_task_starts_can_be_terminated(worker: Callable[..., Child]) -> None:
    enqueue("fork", "process")
    worker()
    wait_until(noted(f"child ended by {-signal.SIGTERM}"))


def test_what_is_printed_goes_to_the_log_where_no_handler_is_configured(
    worker: Callable[..., Child],
) -> None:
    enqueue("leave", "exit")
    child = worker("--log-std")
    wait_until(lambda: Task.objects.filter(attempts=1))
    enqueue("note", "still here")
    wait_until(noted("still here"))
    assert "SystemExit" in child.text()


def test_threads_finish_what_they_run_before_the_worker_ends(worker: Callable[..., Child]) -> None:
    for number in range(2):
        enqueue("slow", f"task {number}", 1)
    child = worker(TEST_RUN_ASYNC="1")
    wait_until(lambda: Note.objects.filter(text__endswith="begins").count() == 2)
    child.send(signal.SIGTERM)
    assert child.wait() == 0, child.text()
    assert CompletedTask.objects.count() == 2
    assert not Task.objects.exists()


def test_a_free_thread_takes_the_next_task_without_waiting_for_the_poll(
    worker: Callable[..., Child],
) -> None:
    for number in range(12):
        enqueue("slow", f"task {number}", 0.1)
    begun = time.monotonic()
    worker("--sleep", "30", TEST_RUN_ASYNC="1")
    wait_until(lambda: CompletedTask.objects.count() == 12)
    assert time.monotonic() - begun < 30


def test_the_duration_ends_after_the_running_task(worker: Callable[..., Child]) -> None:
    enqueue("slow", "first", 2)
    child = worker("--duration", "1")
    assert child.wait() == 0
    assert noted("first ends")()
    assert CompletedTask.objects.exists()


def test_an_idle_worker_ends_with_its_duration_however_long_it_sleeps(
    worker: Callable[..., Child],
) -> None:
    assert worker("--duration", "1", "--sleep", "60").wait(timeout=15) == 0


@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_a_task_that_leaves_fails_and_the_worker_goes_on(
    worker: Callable[..., Child], how: str
) -> None:
    enqueue("leave", how)
    enqueue("note", "still here")
    worker()
    wait_until(CompletedTask.objects.exists)
    row = Task.objects.get()
    assert (row.attempts, row.locked_by) == (1, None)


def test_a_killed_worker_leaves_its_row_locked_until_the_lock_expires(
    worker: Callable[..., Child],
) -> None:
    enqueue("leave", "kill")
    child = worker()
    assert child.wait() == 9
    row = Task.objects.get()
    assert row.locked_by == str(child.process.pid)
    assert row.locked_by_pid_running() is False
    assert not tasks.run_next_task()


def test_what_a_process_ran_that_is_no_worker_runs_again_when_a_worker_starts_on_its_host(
    command: Callable[..., Child], worker: Callable[..., Child]
) -> None:
    row = enqueue("slow", "long", 60)
    code = "from background_task.tasks import tasks, autodiscover; autodiscover(); "
    child = command("shell", "-v0", "-c", code + "tasks.run_next_task()")
    wait_until(noted("long begins"))
    child.end()
    Note.objects.all().delete()
    worker()
    wait_until(noted("long begins"))
    row.refresh_from_db()
    assert (row.losses, row.attempts) == (1, 0)


def test_slow_and_fast_pace_are_chosen_by_signals(worker: Callable[..., Child]) -> None:
    enqueue("note", "awake")
    child = worker()
    wait_until(noted("awake"))
    child.send(signal.SIGUSR2)
    child.send(signal.SIGUSR1)
    enqueue("note", "alive")
    wait_until(noted("alive"))
    assert child.process.poll() is None


def test_four_workers_run_each_of_200_tasks_once(worker: Callable[..., Child]) -> None:
    for number in range(200):
        enqueue("note", f"task {number}")
    for _ in range(4):
        worker()
    wait_until(lambda: CompletedTask.objects.count() == 200, timeout=60)
    texts = list(Note.objects.values_list("text", flat=True))
    assert len(texts) == len(set(texts)) == 200


def test_a_connection_that_breaks_while_a_task_runs_does_not_lose_the_outcome(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite has no connections to break")
    enqueue("slow", "long", 1)
    child = worker()
    wait_until(noted("long begins"))
    break_other_connections()
    wait_until(lambda: Task.objects.filter(attempts__gt=0) or CompletedTask.objects.exists())
    enqueue("note", "recovered")
    wait_until(noted("recovered"))
    assert child.process.poll() is None


def test_a_sqlite_file_that_is_locked_for_long_delays_the_outcome_only(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor != "sqlite":
        pytest.skip("only SQLite locks the whole database")
    enqueue("slow", "long", 0.5)
    child = worker(TEST_SQLITE_TIMEOUT="0.1")
    wait_until(noted("long begins"))
    with connection.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        wait_until(lambda: "Could not record a failure, trying again" in child.text())
        cursor.execute("COMMIT")
    row = wait_until(lambda: Task.objects.filter(attempts=1, locked_by=None).first())
    assert "database is locked" in row.last_error


def test_a_broken_tasks_module_stops_the_worker_and_names_the_file(
    worker: Callable[..., Child], tmp_path: Path
) -> None:
    (tmp_path / "broken_app").mkdir()
    (tmp_path / "broken_app" / "__init__.py").touch()
    (tmp_path / "broken_app" / "tasks.py").write_text("import there_is_no_such_module\n")
    environment = {"TEST_APPS": "broken_app", "TEST_PATH": str(tmp_path)}
    child = worker(**environment)
    assert child.wait() == 1
    assert str(tmp_path / "broken_app" / "tasks.py") in child.text()
    assert "there_is_no_such_module" in child.text()
    assert "Traceback" not in child.text()


def test_a_worker_without_tables_says_what_to_do(
    worker: Callable[..., Child], empty_database: str
) -> None:
    child = worker(TEST_NAME=empty_database)
    assert child.wait() == 1
    assert "manage.py migrate" in child.text()


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


def test_the_autoreloader_starts_the_worker_anew_and_ctrl_c_ends_it(
    worker: Callable[..., Child], tmp_path: Path
) -> None:
    (tmp_path / "reloaded").mkdir()
    (tmp_path / "reloaded" / "__init__.py").touch()
    imported = tmp_path / "imported"
    code = (
        "from pathlib import Path\n"
        "from background_task import background\nfrom project.models import Note\n"
        f"Path({str(imported)!r}).write_text({{text!r}})\n"
        "@background(every=3600)\ndef tick():\n    Note.objects.create(text={text!r})\n"
    )
    module = tmp_path / "reloaded" / "tasks.py"
    module.write_text(code.format(text="before"))
    child = worker("--dev", TEST_APPS="reloaded", TEST_PATH=str(tmp_path))
    wait_until(noted("before"))
    module.write_text(code.format(text="after"))
    touched = time.time()

    def is_imported() -> bool:
        # A change made before the reloader's first look is none, so there may be another.
        nonlocal touched
        if time.time() > touched:
            touched = time.time() + 5
            os.utime(module, (touched, touched))
        return imported.read_text() == "after"

    def reloaded() -> bool:
        Task.objects.filter(run_at__gt=timezone.now()).update(run_at=timezone.now())
        return noted("after")()

    wait_until(is_imported, timeout=60)
    wait_until(reloaded, timeout=60)
    assert child.process.poll() is None
    os.killpg(child.process.pid, signal.SIGINT)
    assert child.wait(timeout=15) == 0, child.text()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("def (", "SyntaxError"),
        ("background(queue=5)(print)", "queue must be text"),
        ("from reloaded import helper", "SyntaxError"),
    ],
)
def test_the_autoreloader_waits_until_what_is_broken_is_mended(
    worker: Callable[..., Child], tmp_path: Path, line: str, told: str
) -> None:
    (tmp_path / "reloaded").mkdir()
    (tmp_path / "reloaded" / "__init__.py").touch()
    module = tmp_path / "reloaded" / "tasks.py"
    module.write_text("from background_task import background\n")
    helper = tmp_path / "reloaded" / "helper.py"
    enqueue("note", "before")
    child = worker("--dev", TEST_APPS="reloaded", TEST_PATH=str(tmp_path))
    wait_until(noted("before"))

    def write(file: Path, text: str, condition: Callable[[], bool]) -> None:
        file.write_text(text)
        touched = time.time()

        def is_noticed() -> bool:
            # A change made before the reloader's first look is none, so there may be another.
            nonlocal touched
            if time.time() > touched:
                touched = time.time() + 5
                os.utime(file, (touched, touched))
            return condition()

        wait_until(is_noticed, timeout=60)

    helper.write_text("def (\n")
    text = f"from background_task import background\n{line}\n"
    write(module, text, lambda: told in child.text())
    assert child.process.poll() is None
    enqueue("note", "after")
    broken = helper if "helper" in line else module
    write(broken, "from background_task import background\n", noted("after"))
    os.killpg(child.process.pid, signal.SIGINT)
    assert child.wait(timeout=15) == 0, child.text()


def test_a_project_without_time_zones_stores_runs_retries_and_repeats(
    command: Callable[..., Child], worker: Callable[..., Child]
) -> None:
    enqueuing = (
        "from datetime import datetime, timedelta, timezone; from project.tasks import *; "
        "now = datetime.now(timezone.utc); "
        "note('aware', schedule=now - timedelta(seconds=5)); "
        "note('naive', schedule=datetime.now() - timedelta(seconds=5), repeat=3600); "
        "note('later', schedule=now + timedelta(minutes=5)); leave('exit')"
    )
    child = command("shell", "-v0", "-c", enqueuing, TEST_USE_TZ="0")
    assert child.wait() == 0, child.text()
    worker("--duration", "2", TEST_USE_TZ="0").wait()
    assert noted("aware")()
    assert noted("naive")()
    assert not noted("later")()
    assert CompletedTask.objects.count() == 2
    counting = (
        "from background_task.models import Task; from django.utils import timezone as t; "
        "[print(r.task_name, r.attempts, r.repeat, round((r.run_at - t.now()).total_seconds())) "
        "for r in Task.objects.order_by('run_at')]"
    )
    child = command("shell", "-v0", "-c", counting, TEST_USE_TZ="0")
    assert child.wait() == 0, child.text()
    names = [line.split() for line in child.text().splitlines()]
    assert [(name, attempts) for name, attempts, _, _ in names] == [
        ("project.tasks.leave", "1"),
        ("project.tasks.note", "0"),
        ("project.tasks.note", "0"),
    ]
    assert int(names[0][3]) < 10
    assert 200 < int(names[1][3]) <= 300
    assert 3500 < int(names[2][3]) <= 3600


@pytest.mark.parametrize("options", [[], ["--threads", "2"]])
def test_after_the_duration_what_runs_has_as_long_as_after_a_signal(
    worker: Callable[..., Child], options: list[str]
) -> None:
    enqueue("slow", "long", 60)
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


def test_on_sqlite_a_short_lock_does_not_keep_an_idle_worker_from_new_tasks(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor != "sqlite":
        pytest.skip("the others have locks for rows")
    enqueue("slow", "long", 5)
    worker("--sleep", "5")
    wait_until(noted("long begins"))
    enqueue("note", "due meanwhile", run_at=timezone.now() + timedelta(seconds=2))
    time.sleep(1.5)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        time.sleep(3.4)  # what is due cannot be marked meanwhile
        cursor.execute("COMMIT")
    wait_until(lambda: not Task.objects.exists())
    time.sleep(0.2)  # until it has nothing to do
    note("after")
    wait_until(noted("after"), timeout=10)


def test_a_task_that_is_told_of_after_an_outage_is_taken_at_once(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite has no connections to break")
    enqueue("note", "before")
    worker("--sleep", "60")
    wait_until(CompletedTask.objects.exists)
    time.sleep(1)  # until it has nothing more to do, of which nothing tells
    for number in range(3):
        break_other_connections()
        note(f"after {number}")
        wait_until(noted(f"after {number}"), timeout=20)


@pytest.mark.parametrize("name", ["note", "query_async"])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_task_that_follows_an_outage_does_not_get_a_connection_that_was_cut(
    worker: Callable[..., Child], vendor: str, name: str, threads: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite has no connections to break")
    worker("--threads", threads, TEST_PERSISTENT="1")
    for number in range(6):
        enqueue(name, str(number))
        wait_until(lambda number=number: CompletedTask.objects.count() == number + 1)
        break_other_connections()
    assert set(CompletedTask.objects.values_list("attempts", flat=True)) == {1}


def test_a_lock_on_the_whole_table_and_a_held_batch_do_not_wait_for_each_other(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("nothing is held there")
    limit, statement = {
        "postgresql": (
            "SET LOCAL lock_timeout = '15s'",
            "LOCK TABLE background_task IN ACCESS EXCLUSIVE MODE",
        ),
        "mysql": (
            "SET lock_wait_timeout = 15",
            "ALTER TABLE background_task COMMENT = 'locked'",
        ),
    }[vendor]
    worker()
    for _ in range(40):
        rows = [Task.objects.new_task("project.tasks.nothing") for _ in range(500)]
        Task.objects.bulk_create(rows)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(limit)
            cursor.execute(statement)
    wait_until(lambda: not Task.objects.exists())


@pytest.mark.parametrize("microseconds", ["²", "99999999999999999999999999", "9" * 5000, "soon"])
def test_a_watchdog_of_no_sensible_patience_is_passed_over(
    worker: Callable[..., Child], microseconds: str
) -> None:
    enqueue("slow", "watched", 0.5)
    child = worker("--burst", NOTIFY_SOCKET="@nobody listens", WATCHDOG_USEC=microseconds)
    assert child.wait() == 0, child.text()
    assert noted("watched ends")()
    assert "Traceback" not in child.text()


@pytest.fixture
def many_files() -> Iterator[None]:
    """So many open files that select() does not know the next one."""
    resource = pytest.importorskip("resource", reason="Windows numbers its files otherwise")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 2 * SELECTABLE:
        pytest.skip(f"no process may open more than {hard} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * SELECTABLE), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(SELECTABLE)]
    yield
    for file in files:
        os.close(file)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_among_many_files_a_worker_still_waits_and_is_woken(many_files: None) -> None:
    signals = SignalManager()
    reading, writing = os.pipe()
    try:
        before = os.listdir("/dev/fd")
        began = time.monotonic()
        assert not signals.wait(0.2)
        assert time.monotonic() - began >= 0.2
        threading.Timer(0.1, signals.wake).start()
        assert signals.wait(30)
        os.write(writing, b"!")
        assert signals.wait(30, reading)
        assert not signals.wait(0)
        assert time.monotonic() - began < 30
        assert len(os.listdir("/dev/fd")) == len(before)
    finally:
        signals.restore()
        os.close(reading)
        os.close(writing)
