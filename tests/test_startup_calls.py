"""A task that is called while its module is imported, the way of the predecessor's example."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import OperationalError, connection
from django.db.models.signals import pre_save
from django.utils import timezone
from project.models import Note
from support import Child, wait_until

from background_task.api import startup
from background_task.models import CompletedTask, Task
from background_task.signals import task_created
from background_task.tasks import DBTaskRunner, tasks
from background_task.worker.duties import Duties

pytestmark = pytest.mark.django_db(transaction=True)

SEED = "contador_task(repeat=10, remove_existing_tasks=True)"
names = (f"startup_app_{number}" for number in itertools.count())


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write an app whose ``tasks.py`` ends with a call; returns the name of the app."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(startup, "_postponed", [])
    made = []

    def make(call: str = SEED, body: str = "pass", name: str | None = None) -> str:
        name = name or next(names)
        made.append(name)
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "tasks.py").write_text(
            "from background_task import background\n"
            "from background_task.models import Task\n"
            "@background\n"
            "def contador_task():\n"
            f"    {body}\n"
            f"{call}\n"
        )
        return name

    yield make
    for name in made:
        sys.modules.pop(f"{name}.tasks", None)


def import_anew(name: str) -> None:
    """Import the module as one more process would."""
    sys.modules.pop(f"{name}.tasks", None)
    import_module(f"{name}.tasks")


@pytest.mark.parametrize(
    "call",
    [
        SEED,
        "contador_task(repeat=10)",
        "contador_task()",
        "contador_task(schedule={'action': 1, 'run_at': 60})",
        "contador_task(schedule={'action': 2})",
    ],
)
def test_five_imports_leave_one_row(app: Callable[..., str], call: str) -> None:
    name = app(call)
    for _ in range(5):
        import_anew(name)
    assert Task.objects.count() == 1


def test_the_import_that_stores_the_row_announces_it(app: Callable[..., str]) -> None:
    announced = []

    def receiver(sender: type, task: Task, **kwargs: Any) -> None:
        announced.append((sender, task))

    task_created.connect(receiver)
    name = app()
    import_anew(name)
    import_anew(name)
    assert announced == [(DBTaskRunner, Task.objects.get())]


def test_a_call_through_a_helper_of_the_module_counts_as_made_by_the_import(
    app: Callable[..., str],
) -> None:
    name = app(f"def schedule_all():\n    {SEED}\nschedule_all()")
    import_anew(name)
    import_anew(name)
    assert Task.objects.count() == 1


def test_a_call_after_the_import_adds_a_row_each_time(app: Callable[..., str]) -> None:
    name = app("")
    import_anew(name)
    module = sys.modules[f"{name}.tasks"]
    module.contador_task()
    module.contador_task()
    assert Task.objects.count() == 2


def test_a_row_that_waits_is_neither_delayed_nor_repeated_by_a_restart(
    app: Callable[..., str],
) -> None:
    name = app("contador_task(repeat=86400, remove_existing_tasks=True)")
    import_anew(name)
    assert tasks.run_next_task()
    tomorrow = Task.objects.get().run_at
    import_anew(name)
    assert Task.objects.get().run_at == tomorrow


def test_a_row_that_keeps_failing_starts_afresh_when_it_is_asked_for_anew(
    app: Callable[..., str],
) -> None:
    name = app(body="raise ValueError")
    import_anew(name)
    tasks.run_next_task()
    import_anew(name)
    row = Task.objects.get()
    assert row.attempts == 0
    assert row.run_at <= timezone.now()


def test_a_period_that_changed_in_the_code_changes_the_row(app: Callable[..., str]) -> None:
    name = app("contador_task(repeat=86400, remove_existing_tasks=True)")
    import_anew(name)
    app(SEED, name=name)
    import_anew(name)
    assert Task.objects.get().repeat == 10


TWO = "contador_task(repeat=3600)\ncontador_task(repeat=86400, queue='daily', verbose_name='all')"


def chains() -> list[Any]:
    return sorted(Task.objects.values_list("repeat", "queue", "verbose_name", "run_at", "pk"))


def test_two_calls_that_differ_are_two_chains_which_a_restart_leaves_alone(
    app: Callable[..., str],
) -> None:
    name = app(TWO)
    import_anew(name)
    while tasks.run_next_task():
        pass
    before = chains()
    assert [row[:3] for row in before] == [(3600, None, None), (86400, "daily", "all")]
    import_anew(name)
    assert chains() == before


def test_the_rows_of_two_calls_that_the_predecessor_stored_stay_as_they_are(
    app: Callable[..., str],
) -> None:
    name = app(TWO)
    for repeat, queue, title in ((3600, None, None), (86400, "daily", "all")):
        options = {"repeat": repeat, "queue": queue, "verbose_name": title}
        Task.objects.new_task(f"{name}.tasks.contador_task", **options).save()
    before = chains()
    import_anew(name)
    assert chains() == before


def test_a_row_that_somebody_made_for_himself_is_not_touched_by_a_call_at_import(
    app: Callable[..., str],
) -> None:
    name = app("contador_task(repeat=60)")
    own = Task.objects.new_task(
        f"{name}.tasks.contador_task", repeat=604800, verbose_name="weekly, of Ana"
    )
    own.save()
    import_anew(name)
    assert Task.objects.get(pk=own.pk).repeat == 604800
    assert Task.objects.get(repeat=60).pk != own.pk


def test_a_period_that_changed_without_removing_changes_the_row_of_that_call(
    app: Callable[..., str],
) -> None:
    name = app("contador_task(repeat=86400)")
    import_anew(name)
    app("contador_task(repeat=10)", name=name)
    import_anew(name)
    assert Task.objects.get().repeat == 10


def test_a_call_beside_a_declaration_of_the_same_task_changes_nothing(
    app: Callable[..., str],
) -> None:
    name = app("background(every=60)(contador_task.task_function)\ncontador_task(repeat=10)")
    import_anew(name)
    Duties(tasks).run_if_due()
    import_anew(name)
    assert Task.objects.get().repeat == 60


def test_rows_that_the_predecessor_multiplied_become_one(app: Callable[..., str]) -> None:
    name = app()
    for _ in range(3):
        Task.objects.new_task(f"{name}.tasks.contador_task", repeat=10).save()
    import_anew(name)
    assert Task.objects.count() == 1


def test_an_import_while_the_task_runs_starts_no_second_chain(app: Callable[..., str]) -> None:
    name = app()
    import_anew(name)
    row = Task.objects.get().lock("me")
    import_anew(name)
    assert Task.objects.count() == 1
    tasks.run_task(row)
    assert Task.objects.count() == 1
    assert CompletedTask.objects.count() == 1


def test_an_import_without_tables_is_logged_and_made_good_by_the_worker(
    app: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    def no_table(execute: Any, sql: str, *args: Any) -> Any:
        raise OperationalError("no such table: background_task")

    caplog.set_level(logging.INFO)
    with connection.execute_wrapper(no_table):
        import_anew(app())
    assert "the worker will schedule it" in caplog.text
    assert not Task.objects.exists()
    Duties(tasks).run_if_due()
    assert Task.objects.count() == 1


def test_an_import_before_django_is_ready_is_made_good_by_the_worker(
    app: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(apps, "ready", False)
        import_anew(app())
    assert not Task.objects.exists()
    Duties(tasks).run_if_due()
    assert Task.objects.count() == 1


def test_a_call_at_import_that_cannot_be_made_good_stops_no_other(
    app: Callable[..., str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(apps, "ready", False)
        import_anew(app("contador_task(repeat=10)\nbackground('other')(print)(queue='second')"))

    def refuse(instance: Task, **kwargs: Any) -> None:
        if instance.queue is None:
            raise RuntimeError("not this one")

    pre_save.connect(refuse, sender=Task)
    try:
        Duties(tasks).run_if_due()
        assert Task.objects.get().queue == "second"
        assert "not this one" in caplog.text
    finally:
        pre_save.disconnect(refuse, sender=Task)
    Duties(tasks).run_if_due()
    assert startup.postponed() == []


def test_an_import_with_bad_input_still_fails(app: Callable[..., str]) -> None:
    with pytest.raises(TypeError, match="repeat"):
        import_anew(app("contador_task(repeat='daily')"))


def test_management_commands_work_on_an_empty_database(
    app: Callable[..., str], command: Callable[..., Child], tmp_path: Path, empty_database: str
) -> None:
    name = app()
    environment = {
        "TEST_NAME": empty_database,
        "TEST_APPS": name,
        "TEST_IMPORTED_BY_URLS": f"{name}.tasks",
        "TEST_PATH": str(tmp_path),
    }
    for arguments in (["check"], ["makemigrations", "--check", "--dry-run"], ["migrate"]):
        child = command(*arguments, **environment)
        assert child.wait() == 0, child.text()
        assert "Traceback" not in child.text()
    child = command("process_tasks", "--burst", **environment)
    assert child.wait() == 0, child.text()
    child = command(
        "shell",
        "-c",
        "from background_task.models import *; print(Task.objects.count(), 'waits', "
        "CompletedTask.objects.count(), 'done')",
        **environment,
    )
    assert child.wait() == 0
    assert "1 waits 1 done" in child.text()


def test_processes_that_start_at_the_same_time_leave_one_row(
    app: Callable[..., str], command: Callable[..., Child], tmp_path: Path
) -> None:
    name = app("contador_task(repeat=3600, remove_existing_tasks=True)")
    environment = {"TEST_APPS": name, "TEST_PATH": str(tmp_path)}
    children = [command("shell", "-c", f"import {name}.tasks", **environment) for _ in range(6)]
    for child in children:
        assert child.wait() == 0, child.text()
        assert "Traceback" not in child.text()
    assert Task.objects.count() == 1


def test_five_starts_of_web_server_and_worker_leave_one_row(
    app: Callable[..., str], command: Callable[..., Child], tmp_path: Path
) -> None:
    name = app()
    environment = {
        "TEST_APPS": name,
        "TEST_IMPORTED_BY_URLS": f"{name}.tasks",
        "TEST_PATH": str(tmp_path),
    }
    for start in range(1, 6):
        web = command("runserver", "--noreload", "--skip-checks", "127.0.0.1:0", **environment)
        worker = command("process_tasks", "--sleep", "0.1", **environment)
        Task.objects.new_task("project.tasks.note", [f"start {start}"]).save()
        wait_until(Note.objects.filter(text=f"start {start}").exists)
        wait_until(lambda web=web: "Starting development server" in web.text() or web.text())
        worker.process.terminate()
        assert worker.wait() == 0, worker.text()
        web.process.terminate()
        web.wait()
        assert Task.objects.filter(repeat=10).count() == 1, f"after start {start}"
