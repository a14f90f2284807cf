"""What waits in the tables of the real django-tasks-db goes on with this package."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
import pytest
from environments import TASKS_DB, python_with
from legacy import Database
from support import TESTS, wait_until

OURS = "background_task.backends.DatabaseBackend"
THEIRS = "django_tasks_db.DatabaseBackend"
SOURCE = str(Path(TESTS).parent / "src")
START = "import django; django.setup(); from tasks_db_project.tasks import write; import json; "


class Project:
    """The project in an environment with both packages."""

    def __init__(self, database: Database) -> None:
        self.database = database
        more = [] if django.VERSION >= (6, 0) else ["django-tasks"]
        database.pythons["both"] = python_with(TASKS_DB, *more)

    def environment(self, backend: str) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "tasks_db_project.settings",
            "FIRST_ON_PATH": SOURCE,
            "TEST_BACKEND": backend,
        }

    def manage(self, backend: str, *arguments: str) -> str:
        return self.database.manage("both", *arguments, **self.environment(backend))

    def ask(self, backend: str, code: str, **more: str) -> Any:
        environment = {**self.environment(backend), **more}
        printed = self.database.run("both", "-c", START + code, **environment)
        return json.loads(printed.splitlines()[-1])

    def start(self, backend: str, *arguments: str) -> subprocess.Popen[str]:
        return self.database.start("both", "-m", "django", *arguments, **self.environment(backend))

    def work(self, until: Callable[[], bool]) -> None:
        """Let our worker run until something is so."""
        child = self.start(OURS, "process_tasks", "--sleep", "0.1")
        wait_until(until, timeout=90)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0, child.communicate()

    def waiting(self) -> int:
        """How many tasks are in our table."""
        return int(self.database.query("SELECT count(*) FROM background_task")[0][0])

    def notes(self) -> list[str]:
        return sorted(text for (text,) in self.database.query("SELECT text FROM project_note"))


ENQUEUE = """
from datetime import timedelta
from django.utils import timezone
later = timezone.now() + timedelta(hours=1)
ids = [
    write.enqueue("finished").id,
    write.enqueue("plain", {"a": [1, "ñ"]}).id,
    write.using(priority=7, queue_name="mail").enqueue(word="mail").id,
    write.using(run_after=later).enqueue("later").id,
    write.enqueue("running").id,
]
from django_tasks_db.models import DBTaskResult
DBTaskResult.objects.filter(id=ids[0]).update(status="SUCCESSFUL")
DBTaskResult.objects.filter(id=ids[4]).update(status="RUNNING")
print(json.dumps(ids))
"""
ROWS = """
from background_task.models import Task
names = ("task_name", "task_params", "priority", "queue", "backend", "attempts", "locked_by")
print(json.dumps({str(row.result_id): [getattr(row, name) for name in names] + [
    row.run_at > row.enqueued_at] for row in Task.objects.all()}))
"""
LEFT = """
from django_tasks_db.models import DBTaskResult
print(json.dumps(sorted(DBTaskResult.objects.values_list("status", flat=True))))
"""


@pytest.fixture
def moving(database: Database) -> Project:
    """The project with its tables, and with tasks in each state in those of django-tasks-db."""
    project = Project(database)
    project.manage(THEIRS, "migrate")
    return project


def test_waiting_tasks_are_moved_with_their_ids_and_run_once(moving: Project) -> None:
    _, plain, mail, later, running = moving.ask(THEIRS, ENQUEUE)
    assert "3 task(s) to import" in moving.manage(OURS, "import_django_tasks_db", "--dry-run")
    printed = moving.manage(OURS, "import_django_tasks_db")
    assert "3 task(s) imported" in printed
    assert "1 task(s) are marked as running" in printed
    assert "0 task(s) imported" in moving.manage(OURS, "import_django_tasks_db")
    name = "tasks_db_project.tasks.write"
    parameters = json.dumps([["plain", {"a": [1, "ñ"]}], {}])
    assert moving.ask(OURS, ROWS) == {
        plain: [name, parameters, 0, "default", "default", 0, None, False],
        mail: [name, '[[], {"word": "mail"}]', 7, "mail", "default", 0, None, False],
        later: [name, '[["later"], {}]', 0, "default", "default", 0, None, True],
    }
    assert moving.ask(OURS, LEFT) == ["RUNNING", "SUCCESSFUL"]

    moving.work(lambda: moving.waiting() == 1)
    assert moving.notes() == sorted([parameters, '[[], {"word": "mail"}]'])
    asked = f"print(json.dumps([write.get_result({plain!r}).return_value, write.get_result("
    assert moving.ask(OURS, f"{asked}{later!r}).status]))") == [2, "READY"]

    printed = moving.manage(OURS, "import_django_tasks_db", "--include-running")
    assert "1 task(s) imported" in printed
    moving.work(lambda: moving.waiting() == 1)
    assert '[["running"], {}]' in moving.notes()
    assert moving.ask(OURS, f"print(json.dumps(write.get_result({running!r}).attempts))") == 1


ODD = """
from django_tasks_db.models import DBTaskResult
rows = DBTaskResult.objects.all()
write.enqueue("first")
for number, changes in enumerate([
    {"task_path": "x" * 200}, {"task_path": ""}, {"args_kwargs": {}}, {"args_kwargs": [1]},
]):
    row = write.enqueue(number)
    rows.filter(id=row.id).update(**changes)
write.enqueue("last")
print(json.dumps(None))
"""
IMPORT = """
import io
from django.core.management import CommandError, call_command
out = io.StringIO()
try:
    call_command("import_django_tasks_db", *options, stdout=out)
except CommandError as error:
    print(json.dumps([out.getvalue(), str(error)]))
"""


def test_rows_that_cannot_be_stored_here_are_left_and_named_and_stop_no_other(
    moving: Project,
) -> None:
    moving.ask(THEIRS, ODD)
    for options, done in ((["--dry-run"], "2 task(s) to import"), ([], "2 task(s) imported")):
        printed, error = moving.ask(OURS, f"options = {options}\n{IMPORT}")
        assert done in printed
        assert "4 task(s) cannot be imported, and stay where they are" in error
        for words in ("200 characters", "name is empty", "args_kwargs is {}", "args_kwargs is [1]"):
            assert words in error
    assert moving.ask(OURS, LEFT) == ["READY"] * 4
    assert moving.waiting() == 2
    assert "0 task(s) imported" in moving.ask(OURS, f"options = []\n{IMPORT}")[0]


def test_nothing_is_moved_to_where_no_worker_of_the_backend_looks(moving: Project) -> None:
    moving.ask(THEIRS, ENQUEUE)
    importing = """
from django.core.management import CommandError, call_command
try:
    call_command("import_django_tasks_db")
except CommandError as error:
    print(json.dumps(str(error)))
"""
    refused = moving.ask(OURS, importing, TEST_ELSEWHERE="1")
    assert "keeps its tasks in 'elsewhere'" in refused
    assert moving.waiting() == 0


def test_workers_of_both_packages_and_the_import_at_once_run_each_task_once(
    moving: Project,
) -> None:
    if moving.database._connection.vendor == "sqlite":
        moving.database.query("PRAGMA journal_mode=WAL")
    moving.ask(THEIRS, "[write.enqueue(n) for n in range(300)]; print(json.dumps(None))")
    theirs = moving.start(THEIRS, "db_worker", "--batch", "--no-startup-delay")
    ours = moving.start(OURS, "process_tasks", "--sleep", "0.1")
    moving.manage(OURS, "import_django_tasks_db")
    assert theirs.wait(90) == 0, theirs.communicate()
    moving.manage(OURS, "import_django_tasks_db")
    wait_until(lambda: moving.waiting() == 0, timeout=90)
    ours.send_signal(signal.SIGTERM)
    assert ours.wait(30) == 0, ours.communicate()
    assert moving.notes() == sorted(json.dumps([[n], {}]) for n in range(300))


def test_without_the_old_app_the_import_says_what_to_do(database: Database) -> None:
    printed = database.manage("ours", "import_django_tasks_db", ok=False)
    assert "django_tasks_db is not in INSTALLED_APPS" in printed
