"""A worker behind PgBouncer in transaction mode: its session is not its own."""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from django.db import connections
from project.settings import TMP
from servers import ALIAS, PgBouncer, PostgreSQL, Server, are_done
from support import Child, wait_until

from background_task.models import CompletedTask, Task, Worker
from background_task.states import State

pytestmark = pytest.mark.xdist_group("outages")


@pytest.fixture
def behind(server: Server, start: Callable[..., Child]) -> Iterator[Callable[..., Child]]:
    """Start commands of a project that knows only of the pooler."""
    if not isinstance(server, PostgreSQL):
        pytest.skip("PgBouncer is for PostgreSQL")
    pooler = PgBouncer(server, Path(tempfile.mkdtemp(dir=TMP)))
    yield partial(start, TEST_POSTGRESQL=pooler.url)
    pooler.end()


def run(behind: Callable[..., Child], code: str) -> str:
    child = behind("shell", "-v0", "-c", f"from project.tasks import *\n{code}")
    assert child.wait() == 0, child.text()
    return child.text()


def assert_no_session_keeps_a_lock() -> None:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert cursor.fetchone() == (0,)


def test_tasks_of_every_kind_run_once(behind: Callable[..., Child], tmp_path: Path) -> None:
    run(
        behind,
        "from project import jobs\n"
        "[journal(str(number)) for number in range(1000)]\n"
        "[journal_async(f'a{number}') for number in range(200)]\n"
        "[note(f'n{number}') for number in range(100)]\n"
        "jobs.add.enqueue_many([(number, 1) for number in range(200)])\n"
        "write_atomically('atomic')",
    )
    workers = [behind("process_tasks"), behind("process_tasks", "--threads", "3")]
    wait_until(are_done(1501))
    done = CompletedTask.objects.using(ALIAS)
    assert not done.exclude(state=State.SUCCESSFUL).exists()
    counts = Counter((tmp_path / "journal").read_text().split())
    assert (len(counts), max(counts.values())) == (1200, 1)
    assert not Worker.objects.using(ALIAS).filter(lock_key__isnull=False).exists()
    for worker in workers:
        worker.process.terminate()
        assert worker.wait() == 0
        assert "Traceback" not in worker.text()


def test_an_idle_worker_takes_a_task_and_its_result_is_waited_for(
    behind: Callable[..., Child],
) -> None:
    behind("process_tasks", "--sleep", "120")
    for _ in range(2):
        assert run(behind, "print(note.enqueue('awake').wait(20))") == "None\n"
    assert_no_session_keeps_a_lock()


def test_what_a_killed_worker_ran_runs_again_on_another_host(
    behind: Callable[..., Child], tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    run(behind, "journal('killed', 2); journal('kept', 2)")
    lost = behind("process_tasks")
    wait_until(lambda: journal.exists() and journal.read_text())  # which comes after the file
    lost.send(signal.SIGKILL)
    lost.wait()
    # As if it had been another host, of which nobody can tell whether the process lives.
    for model in (Task, Worker):
        rows = model.objects.using(ALIAS).exclude(worker_id=None)
        rows.update(worker_id="elsewhere:1:12345678")
    behind("process_tasks")
    wait_until(are_done(2))
    assert Counter(journal.read_text().split()) == {"killed": 2, "kept": 1}
    assert CompletedTask.objects.using(ALIAS).get(losses=1).state == State.SUCCESSFUL
