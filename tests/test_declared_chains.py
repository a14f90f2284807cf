"""``@background(every=…)``: one chain, kept by the workers, that follows the code."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from project.models import Note
from support import Child, wait_until

from background_task import background
from background_task.models import CompletedTask, Task
from background_task.tasks import tasks
from background_task.worker.duties import Duties

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_other_tasks() -> None:
    tasks._tasks.clear()


def declare(every: Any = 10, function: Callable[[], Any] = lambda: None, **options: Any) -> Any:
    """Declare a task as the code of this project does."""
    function.__module__, function.__name__ = "project.tasks", "declared"
    return background(every=every, **options)(function)


def keep() -> None:
    Duties(tasks).keep_declared_chains()


def test_the_worker_stores_one_row_that_is_due_at_once() -> None:
    declare()
    keep()
    row = Task.objects.get()
    assert (row.task_name, row.repeat) == ("project.tasks.declared", 10)
    assert row.run_at <= timezone.now()


def test_a_declaration_alone_stores_nothing() -> None:
    declare()
    assert not Task.objects.exists()


def test_keeping_the_chain_again_changes_nothing() -> None:
    declare()
    keep()
    before = Task.objects.values().get()
    keep()
    assert Task.objects.values().get() == before


def test_a_run_leaves_exactly_the_next_row_in_the_same_phase() -> None:
    declare()
    keep()
    first = Task.objects.get()
    assert tasks.run_next_task()
    keep()
    following = Task.objects.get()
    assert following.pk != first.pk
    assert following.run_at == first.run_at + timedelta(seconds=10)
    assert following.unique_key == first.unique_key


def test_a_chain_that_cannot_be_kept_stops_neither_the_others_nor_other_duties(
    caplog: pytest.LogCaptureFixture,
) -> None:
    declare()
    keep()
    Task.objects.update(task_hash="of another")  # its key is taken by a row that is not its own
    declare(function=lambda: None, name="declared second")
    background("unknown")(lambda: None)()
    del tasks._tasks["unknown"]
    Duties(tasks).run_if_due()
    assert Task.objects.filter(task_name="declared second").exists()
    assert "Could not keep the chain of project.tasks.declared" in caplog.text
    assert "are named 'unknown'" in caplog.text


def test_a_declaration_that_cannot_be_stored_neither_ends_the_worker_nor_its_chain(
    caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    declare(schedule=datetime(2030, 1, 1))
    with pytest.warns(RuntimeWarning, match="naive"):
        keep()
    settings.BACKGROUND_TASK_STRICT_DATETIMES = True
    Duties(tasks).run_if_due()
    assert "BACKGROUND_TASK_STRICT_DATETIMES" in caplog.text
    assert Task.objects.count() == 1


def test_a_final_failure_does_not_end_a_declared_chain(settings: Any) -> None:
    settings.MAX_ATTEMPTS = 1

    def fails() -> None:
        raise ValueError

    declare(function=fails)
    keep()
    tasks.run_next_task()
    assert CompletedTask.objects.get().failed_at
    assert Task.objects.get().repeat == 10


def test_a_shorter_period_in_the_code_brings_the_next_run_near() -> None:
    declare(every=86400)
    keep()
    tasks.run_next_task()
    declare(every=timedelta(seconds=10))
    keep()
    row = Task.objects.get()
    assert row.repeat == 10
    assert row.run_at <= timezone.now() + timedelta(seconds=10)


def test_queue_and_priority_follow_the_code() -> None:
    declare()
    keep()
    declare(queue="other", schedule={"priority": 7})
    keep()
    row = Task.objects.get()
    assert (row.queue, row.priority) == ("other", 7)


def test_a_period_that_changes_while_the_task_runs_holds_for_the_next_run() -> None:
    declare(every=10, function=lambda: (declare(every=20), keep()))
    keep()
    assert tasks.run_next_task()
    assert Task.objects.get().repeat == 20


@pytest.mark.parametrize("function_stays", [True, False])
def test_a_chain_ends_when_its_declaration_is_gone(function_stays: bool) -> None:
    proxy = declare()
    keep()
    proxy.every = 0
    if not function_stays:
        tasks._tasks.clear()
    keep()
    assert not Task.objects.exists()


def test_a_chain_whose_declaration_goes_while_it_runs_ends_with_that_run() -> None:
    def last() -> None:
        tasks._tasks.clear()
        keep()

    declare(function=last)
    keep()
    assert tasks.run_next_task()
    assert CompletedTask.objects.count() == 1
    assert not Task.objects.exists()


def test_a_chain_of_another_project_on_the_same_database_is_left_alone() -> None:
    foreign = Task.objects.new_task("theirs.tasks.declared", repeat=10)
    foreign.identify(unique_key=f"every:{foreign.task_hash}")
    foreign.options = json.dumps({"declared_in": "theirs.tasks"})
    foreign.save()
    keep()
    assert Task.objects.get() == foreign


def test_chains_that_calls_have_started_become_the_declared_one() -> None:
    proxy = declare()
    proxy(repeat=60)
    proxy(repeat=10)
    keep()
    assert Task.objects.get().repeat == 10


def test_a_chain_that_somebody_made_for_himself_stays_beside_the_declared_one() -> None:
    proxy = declare()
    owner = User.objects.create(username="ana")
    own = proxy(repeat=604800, creator=owner)
    keep()
    assert Task.objects.get(pk=own.pk).repeat == 604800
    assert Task.objects.count() == 2


def test_a_single_call_of_a_declared_task_is_no_part_of_its_chain() -> None:
    proxy = declare()
    single = proxy()
    keep()
    keep()
    assert Task.objects.count() == 2
    assert Task.objects.get(repeat=0) == single


def test_a_row_that_an_operator_deletes_comes_back() -> None:
    declare()
    keep()
    Task.objects.all().delete()
    keep()
    assert Task.objects.count() == 1


@pytest.fixture
def declared_app(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Write an app with a declared task; returns the environment of a worker that knows it."""

    def write(code: str) -> dict[str, str]:
        (tmp_path / "declaring").mkdir(exist_ok=True)
        (tmp_path / "declaring" / "__init__.py").touch()
        (tmp_path / "declaring" / "tasks.py").write_text(
            f"from background_task import background\nfrom project.models import Note\n{code}"
        )
        return {"TEST_APPS": "declaring", "TEST_PATH": str(tmp_path)}

    return write


TICK = "@background(every={every})\ndef tick():\n    Note.objects.create(text='tick')\n"


def test_four_workers_that_start_together_keep_one_chain(
    worker: Callable[..., Child], declared_app: Callable[[str], dict[str, str]]
) -> None:
    environment = declared_app(TICK.format(every=1))
    workers = [worker(**environment) for _ in range(4)]
    wait_until(lambda: Note.objects.count() >= 4)
    seen = [Task.objects.count() for _ in range(50)]
    for child in workers:
        child.process.terminate()
    assert [child.wait() for child in workers] == [0, 0, 0, 0]
    assert set(seen) == {1}
    runs = list(CompletedTask.objects.order_by("pk"))
    # One for each second at most, however late the machine lets them begin. (The first was due a
    # moment before it was stored.)
    seconds = (runs[-1].locked_at - runs[0].enqueued_at).total_seconds()
    assert len(runs) <= seconds + 1.5
    assert "Traceback" not in "".join(child.text() for child in workers)


def test_a_worker_that_starts_with_changed_code_changes_and_removes_the_chain(
    worker: Callable[..., Child], declared_app: Callable[[str], dict[str, str]]
) -> None:
    worker("--duration", "1", **declared_app(TICK.format(every=3600))).wait()
    assert Task.objects.get().repeat == 3600
    worker("--duration", "1", **declared_app(TICK.format(every=7200))).wait()
    assert Task.objects.get().repeat == 7200
    worker("--duration", "1", **declared_app("")).wait()
    assert not Task.objects.exists()
