"""What a worker does while its database is away, refuses to write, or has no room for it.

Each server here is a test's own, and is really crashed, made a replica, and filled up.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connections
from project.settings import TMP, VENDOR
from project.settings import server as settings_of
from servers import ALIAS, MariaDB, PostgreSQL, Server
from support import Child, wait_until

from background_task.models import CompletedTask, Task, Worker
from background_task.states import State

pytestmark = pytest.mark.xdist_group("outages")  # they share a server
SERVERS = {"postgresql": PostgreSQL, "mysql": MariaDB}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if VENDOR not in SERVERS:
        pytest.skip("SQLite has no server that could be away")
    # Not in a folder of pytest's, into which nobody but its user may look.
    folder = Path(tempfile.mkdtemp(dir=TMP))
    server = SERVERS[VENDOR](folder)
    settings = settings_of(server.engine, server.operators_url)
    connections.settings[ALIAS] = {**connections.settings["default"], **settings}
    yield server
    connections[ALIAS].close()
    del connections[ALIAS], connections.settings[ALIAS]
    server.end()
    shutil.rmtree(folder)


@pytest.fixture
def start(
    server: Server, tmp_path: Path, django_db_blocker: pytest.FixtureRequest
) -> Iterator[Callable[..., Child]]:
    """Start management commands of a project on that server, which has tables and no tasks."""
    children: list[Child] = []

    def start(*arguments: str) -> Child:
        output = tmp_path / f"child-{len(children)}.log"
        journal = str(tmp_path / "journal")
        children.append(
            Child(*arguments, output=output, TEST_JOURNAL=journal, **server.environment)
        )
        return children[-1]

    with django_db_blocker.unblock():
        assert start("migrate", "-v0").wait() == 0, children[-1].text()
        yield start
        for child in children:
            child.end()
        for model in (Task, CompletedTask, Worker):
            model.objects.using(ALIAS).all().delete()
        connections[ALIAS].close()


@pytest.fixture
def store(start: Callable[..., Child]) -> Callable[[str], None]:
    """Run Python in the project, which has the tasks at hand."""

    def store(code: str) -> None:
        child = start("shell", "-v0", "-c", f"from project.tasks import *\n{code}")
        assert child.wait() == 0, child.text()

    return store


def begun(tmp_path: Path) -> Counter[str]:
    journal = tmp_path / "journal"
    return Counter(journal.read_text().split()) if journal.exists() else Counter()


def are_done(count: int) -> Callable[[], bool]:
    return lambda: CompletedTask.objects.using(ALIAS).count() == count


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
    wait_until(are_done(count), timeout=60)
    assert_all_succeeded(count)
    assert_says_little_and_ends(worker)
