"""Who is taken for dead, and who is not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db.models import F
from django.utils import timezone
from project.tasks import note

from background_task.execution.runs import runs
from background_task.models import Task
from background_task.storage import workers
from background_task.storage.engine import Engine

pytestmark = pytest.mark.django_db(transaction=True)


def register(engine: Engine, worker_id: str) -> workers.Suspect:
    workers.register(engine, worker_id, name="", queues="", supervisor=None, has_lock=False)
    (suspect,) = workers.all_but(engine, "another")
    return suspect


@pytest.mark.parametrize("is_registered", [True, False])
def test_what_a_dead_worker_ran_is_freed_although_it_was_edited_meanwhile(
    engine: Engine, is_registered: bool
) -> None:
    row = note("runs").lock("1")
    assert row is not None
    dead = "host:1:token"
    Task.objects.update(worker_id=dead)
    Task.objects.update(run_at=timezone.now())
    assert Task.objects.get().state is None, "as after any edit"
    if is_registered:
        suspect = register(engine, dead)
        workers.deregister(engine, dead)
        assert workers.rescue(engine, suspect) == 1
    else:
        assert workers.forgotten(engine) == [dead]
        assert workers.free_forgotten(engine, dead) == 1
    assert (Task.objects.get().locked_by, Task.objects.get().losses) == (None, 1)


@pytest.mark.parametrize(("age", "is_freed"), [(0, False), (60, True)])
def test_what_this_process_has_locked_without_knowing_is_freed_though_it_appears_late(
    engine: Engine, age: float, is_freed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.doubt(engine.using)
    runs.settle_doubts(engine)
    assert note("runs").lock("1")
    Task.objects.update(locked_at=F("locked_at") - timedelta(seconds=age))
    runs.settle_late_doubts(engine)
    assert (Task.objects.get().locked_by is None) is is_freed


def test_what_this_process_knows_to_run_is_not_freed_by_a_doubt(engine: Engine) -> None:
    row = note("runs").lock("1")
    assert row is not None
    run = runs.begin(row)
    try:
        Task.objects.update(locked_at=F("locked_at") - timedelta(seconds=60))
        runs.doubt(engine.using)
        runs.settle_doubts(engine)
        runs.settle_late_doubts(engine)
    finally:
        runs.end(run.task)
    assert Task.objects.get().locked_by == "1"


def test_a_lock_is_taken_once_in_each_database_of_a_server(
    engine: Engine, empty_database: str
) -> None:
    elsewhere, again = Engine("default"), Engine("default")
    elsewhere.connection.settings_dict = {
        **elsewhere.connection.settings_dict,
        "NAME": empty_database,
    }
    lock, other = (each.vendor.session_lock(each.connection, 7) for each in (engine, elsewhere))
    assert lock is not None
    assert other is not None
    assert again.vendor.session_lock(again.connection, 7) is None
    lock.release()
    last = again.vendor.session_lock(again.connection, 7)
    assert last is not None
    for each in (last, other):
        each.release()
    for each in (elsewhere, again):
        each.close()


def test_whatever_fraction_of_a_second_a_worker_died_at_it_is_rescued_from_at_once(
    engine: Engine,
) -> None:
    for number in range(50):
        assert workers.rescue(engine, register(engine, f"host:{number}:token")) == 0


def test_a_worker_whose_heart_has_beaten_since_is_left_alone(engine: Engine) -> None:
    suspect = register(engine, "host:1:token")
    workers.beat(engine, suspect.worker_id)
    assert workers.rescue(engine, suspect) is None
    assert workers.find(engine, suspect.worker_id) is not None


def test_what_is_known_to_be_dead_is_rescued_from_whoever_has_beaten_for_it(
    engine: Engine,
) -> None:
    suspect = register(engine, "host:1:token")
    workers.beat(engine, "another", [suspect.worker_id])
    assert workers.rescue(engine, suspect, ended_by="SIGKILL") == 0
