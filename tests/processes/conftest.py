"""Fixtures for tests that have a database server of their own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.db import connections
from project.settings import TMP, VENDOR
from project.settings import server as settings_of
from servers import ALIAS, MariaDB, PostgreSQL, Server
from support import Child

from background_task.models import CompletedTask, Task, Worker

SERVERS = {"postgresql": PostgreSQL, "mysql": MariaDB}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if VENDOR not in SERVERS:
        pytest.skip("SQLite has no server")
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

    def start(*arguments: str, **environment: str) -> Child:
        output = tmp_path / f"child-{len(children)}.log"
        journal = str(tmp_path / "journal")
        environment = {"TEST_JOURNAL": journal, **server.environment, **environment}
        children.append(Child(*arguments, output=output, **environment))
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
