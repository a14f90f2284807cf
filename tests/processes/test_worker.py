"""The worker in a real process: what it runs, and what it survives."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection, transaction
from django.utils import timezone
from notes import enqueue, noted
from project.models import Note
from project.tasks import note
from support import Child, break_other_connections, wait_until

from background_task.models import CompletedTask, Task, Worker
from background_task.states import State
from background_task.tasks import tasks
from background_task.utils import SignalManager

pytestmark = pytest.mark.django_db(transaction=True)

# select() takes no file of a higher number.
SELECTABLE = 1024


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


def test_a_free_thread_takes_the_next_task_without_waiting_for_the_poll(
    worker: Callable[..., Child],
) -> None:
    for number in range(12):
        enqueue("slow", f"task {number}", 0.1)
    begun = time.monotonic()
    worker("--sleep", "30", TEST_RUN_ASYNC="1")
    wait_until(lambda: CompletedTask.objects.count() == 12)
    assert time.monotonic() - begun < 30


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
    row = enqueue("slow", "long", 600)
    code = "from background_task.tasks import tasks, autodiscover; autodiscover(); "
    child = command("shell", "-v0", "-c", code + "tasks.run_next_task()")
    wait_until(noted("long begins"))
    child.end()
    Note.objects.all().delete()
    worker()
    wait_until(noted("long begins"))
    row.refresh_from_db()
    assert (row.losses, row.attempts) == (1, 0)


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_worker_that_has_ended_is_warned_of_only_if_it_ran_something(
    worker: Callable[..., Child], is_busy: bool
) -> None:
    first = worker()
    wait_until(Worker.objects.exists)
    if is_busy:
        enqueue("slow", "long", 600)
        wait_until(noted("long begins"))
    first.end()
    second = worker("--threads", "2")
    enqueue("note", "after")
    wait_until(noted("after"))  # it takes nothing before it has looked for those that are dead
    assert ("is dead; 1 task(s)" in second.text()) is is_busy
    assert is_busy or "is dead" not in second.text()


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
    wait_until(lambda: CompletedTask.objects.count() == 200)
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


def test_an_idle_worker_says_that_a_sqlite_file_is_locked_and_does_not_stumble(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor != "sqlite":
        pytest.skip("only SQLite locks the whole database")
    child = worker(TEST_SQLITE_TIMEOUT="0.1")
    enqueue("note", "at work")
    wait_until(noted("at work"))
    with connection.cursor() as cursor:
        cursor.execute("BEGIN EXCLUSIVE")
        wait_until(lambda: "The heart of this worker misses the database" in child.text())
        cursor.execute("COMMIT")
    wait_until(lambda: "The database answers again" in child.text())
    assert "stumbled" not in child.text()


def test_while_a_sqlite_file_is_locked_what_must_not_begin_twice_is_not_freed(
    worker: Callable[..., Child], vendor: str, tmp_path: Path
) -> None:
    if vendor != "sqlite":
        pytest.skip("the others are really away in test_outages.py")
    journal = tmp_path / "journal"
    enqueue("journal_once", "once", 1)
    enqueue("journal_once_async", "async", 1)
    enqueue("journal_until_told", "other")
    child = worker("--threads", "2", TEST_SQLITE_TIMEOUT="0.1", TEST_JOURNAL=str(journal))
    wait_until(lambda: journal.exists() and len(journal.read_text().split()) == 3)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN IMMEDIATE")
        child.process.terminate()
        wait_until(lambda: child.text().count("must not begin twice") == 2)
        cursor.execute("COMMIT")
    (tmp_path / "journal.end").touch()
    assert child.wait() == 0
    worker(TEST_JOURNAL=str(journal))
    wait_until(lambda: not Task.objects.exists())
    assert sorted(journal.read_text().split()) == ["async", "once", "other"]
    assert CompletedTask.objects.filter(state=State.FAILED, losses=1).count() == 2


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
    worker("--burst", TEST_USE_TZ="0").wait()
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
    wait_until(noted("after"), timeout=20)


def test_a_task_that_is_told_of_after_an_outage_is_taken_at_once(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite has no connections to break")
    enqueue("note", "before")
    worker("--sleep", "600")
    wait_until(CompletedTask.objects.exists)
    time.sleep(1)  # until it has nothing more to do, of which nothing tells
    for number in range(3):
        break_other_connections()
        note(f"after {number}")
        wait_until(noted(f"after {number}"))


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


@pytest.mark.parametrize(
    "options", [{}, {"threads": "3"}, {"processes": "2"}, {"TEST_RUN_ASYNC": "1"}], ids=str
)
def test_a_pool_of_connections_that_is_exhausted_lets_no_task_fail(
    worker: Callable[..., Child], vendor: str, options: dict[str, str]
) -> None:
    if vendor != "postgresql":
        pytest.skip("Django has a pool for PostgreSQL only")
    for number in range(20):
        enqueue("query_async", f"async {number}")
        enqueue("slow", f"function {number}", 0.1)
        enqueue("write_atomically", f"atomic {number}")
    named = [each for name in options if name.islower() for each in (f"--{name}", options[name])]
    set_here = {name: value for name, value in options.items() if name.isupper()}
    child = worker(*named, TEST_POOL="1", **set_here)
    wait_until(lambda: CompletedTask.objects.count() == 60)
    assert CompletedTask.objects.succeeded().filter(attempts=1).count() == 60, child.text()


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
