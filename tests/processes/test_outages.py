"""What a worker does while its database is away, refuses to write, or has no room for it.

Each server here is a test's own, and is really crashed, made a replica, and filled up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connections
from servers import ALIAS, Server, are_done
from support import Child, wait_until

from background_task.models import CompletedTask, Task, Worker
from background_task.states import State

pytestmark = pytest.mark.xdist_group("outages")  # they share a server


def begun(tmp_path: Path) -> Counter[str]:
    journal = tmp_path / "journal"
    return Counter(journal.read_text().split()) if journal.exists() else Counter()


def assert_all_succeeded(count: int) -> None:
    history = CompletedTask.objects.using(ALIAS)
    assert not Task.objects.using(ALIAS).exists()
    assert history.values("task_hash", "task_params").distinct().count() == count
    assert history.filter(state=State.SUCCESSFUL).count() == history.count() == count


def assert_says_little_and_ends(child: Child) -> None:
    child.process.terminate()
    assert child.wait() == 0
    assert "Traceback" not in child.text()
    assert len(child.text().splitlines()) < 60, child.text()


@pytest.mark.parametrize("kind", ["journal", "journal_async"])
@pytest.mark.parametrize("options", [[], ["--threads", "3"], ["--processes", "2"]], ids=" ".join)
def test_a_server_that_crashes_again_and_again_loses_no_task(
    server: Server,
    start: Callable[..., Child],
    store: Callable[[str], None],
    tmp_path: Path,
    options: list[str],
    kind: str,
) -> None:
    count = 300
    store(f"for number in range({count}): {kind}(str(number), 0.02)")
    worker = start("process_tasks", *options)
    for part in range(1, 4):
        wait_until(lambda part=part: len(begun(tmp_path)) >= part * count / 5)
        server.crash()
        server.begin()
    wait_until(are_done(count))
    assert_all_succeeded(count)
    assert_says_little_and_ends(worker)


def test_a_server_that_only_reads_for_a_while_delays_tasks_and_no_more(
    server: Server, start: Callable[..., Child], store: Callable[[str], None], tmp_path: Path
) -> None:
    # One of them ends for certain while nothing can be written.
    store(
        "journal_async('long', 6)\n"
        "for number in range(100): journal(str(number), 0.02); journal_async(f'a{number}')"
    )
    worker = start("process_tasks")
    wait_until(lambda: len(begun(tmp_path)) > 10 and "long" in begun(tmp_path))
    server.refuse_writes()
    wait_until(lambda: "Waiting for the database to record" in worker.text())
    before = begun(tmp_path)
    assert len(before) < 150
    server.accept_writes()
    wait_until(are_done(201))
    assert_all_succeeded(201)
    assert max(begun(tmp_path).values()) == 1
    assert_says_little_and_ends(worker)


def test_what_outlasts_an_outage_is_recorded_afterwards_and_runs_once(
    server: Server, start: Callable[..., Child], store: Callable[[str], None], tmp_path: Path
) -> None:
    store("journal('long', 4); journal_async('long-async', 4); journal('behind')")
    worker = start("process_tasks")
    wait_until(lambda: len(begun(tmp_path)) == 2)
    server.crash()
    wait_until(lambda: "misses the database" in worker.text())
    server.begin()
    wait_until(are_done(3))
    assert begun(tmp_path) == {"long": 1, "long-async": 1, "behind": 1}
    assert_says_little_and_ends(worker)


def test_a_worker_whose_processes_are_killed_during_an_outage_does_not_say_that_nothing_was_cut_off(
    server: Server, start: Callable[..., Child], store: Callable[[str], None], tmp_path: Path
) -> None:
    store("for number in range(2): journal(str(number), 600)")
    worker = start("process_tasks", "--processes", "2")
    wait_until(lambda: len(begun(tmp_path)) == 2)
    processes = Worker.objects.using(ALIAS).exclude(supervisor=None)
    numbers = [int(each.split(":")[1]) for each in processes.values_list("worker_id", flat=True)]
    connections[ALIAS].close()
    worker.send(signal.SIGTERM)
    wait_until(lambda: "Stopping when" in worker.text())
    server.crash()
    for number in numbers:
        os.kill(number, signal.SIGKILL)
    assert worker.wait() == 128 + signal.SIGTERM, worker.text()
    server.begin()
    start("process_tasks", "--burst")  # what they ran is freed
    wait_until(lambda: max(begun(tmp_path).values()) == 2)


def test_what_cannot_be_recorded_before_the_worker_stops_has_not_failed_and_runs_again(
    server: Server, start: Callable[..., Child], store: Callable[[str], None], tmp_path: Path
) -> None:
    store("journal('long', 2); journal_async('async', 2); journal_async('another', 2)")
    worker = start("process_tasks")
    wait_until(lambda: len(begun(tmp_path)) == 3)
    server.crash()
    worker.process.terminate()
    wait_until(lambda: worker.text().count("could not be recorded (") == 3)
    assert worker.wait() == 0
    assert "Rescheduling" not in worker.text()
    server.begin()
    start("process_tasks")
    wait_until(are_done(3))
    assert_all_succeeded(3)
    assert begun(tmp_path) == {"long": 2, "async": 2, "another": 2}
    assert not CompletedTask.objects.using(ALIAS).exclude(attempts=1).exists()


def test_what_must_not_begin_twice_does_not_when_its_end_cannot_be_recorded(
    server: Server, start: Callable[..., Child], store: Callable[[str], None], tmp_path: Path
) -> None:
    store("journal_once('once', 1); journal_once_async('async', 1); journal_until_told('other')")
    worker = start("process_tasks", "--threads", "2")
    wait_until(lambda: len(begun(tmp_path)) == 3)
    server.crash()
    worker.process.terminate()
    wait_until(lambda: worker.text().count("must not begin twice") == 2)
    server.begin()  # so that the worker frees what it has locked
    (tmp_path / "journal.end").touch()
    assert worker.wait() == 0
    start("process_tasks")
    wait_until(are_done(3))
    assert begun(tmp_path) == {"once": 1, "async": 1, "other": 1}
    failed = CompletedTask.objects.using(ALIAS).filter(state=State.FAILED, losses=1)
    assert failed.count() == 2


def test_what_has_failed_in_an_outage_is_recorded_afterwards(
    server: Server, start: Callable[..., Child], store: Callable[[str], None], tmp_path: Path
) -> None:
    store("fail_once('fails', 1)")
    worker = start("process_tasks")
    wait_until(lambda: begun(tmp_path))
    server.crash()
    wait_until(lambda: worker.text().count("Could not read") > 2)
    server.begin()
    wait_until(are_done(1))
    assert begun(tmp_path) == {"fails": 1}
    failed = CompletedTask.objects.using(ALIAS).get()
    assert "on purpose" in failed.last_error
    assert not failed.losses


def test_a_worker_waits_for_a_server_that_is_not_there_yet(
    server: Server, start: Callable[..., Child], store: Callable[[str], None], tmp_path: Path
) -> None:
    store("journal('first'); journal_async('first-async')")
    server.crash()
    workers = [start("process_tasks"), start("process_tasks", "--processes", "2")]
    for worker in workers:
        wait_until(lambda worker=worker: "unreachable" in worker.text())
    server.begin()
    wait_until(are_done(2))
    for worker in workers:
        assert_says_little_and_ends(worker)


def test_a_server_without_room_for_a_connection_delays_tasks_and_no_more(
    server: Server, start: Callable[..., Child], store: Callable[[str], None], tmp_path: Path
) -> None:
    worker = start("process_tasks")
    store("journal('before')")
    wait_until(are_done(1))
    store("for number in range(50): journal(str(number), 0.02); query_async(f'a{number}')")
    wait_until(lambda: len(begun(tmp_path)) > 5)
    worker.send(signal.SIGSTOP)  # so that it cannot be back before the others
    server.cut_connections()
    with server.filled_up():
        worker.send(signal.SIGCONT)
        wait_until(lambda: server.full.lower() in worker.text().lower())
    wait_until(are_done(101))
    assert_all_succeeded(101)
    assert_says_little_and_ends(worker)
