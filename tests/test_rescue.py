"""Who is taken for dead, and who is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from background_task.storage import workers
from background_task.storage.engine import Engine

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine("default")
    yield engine
    engine.close()


def register(engine: Engine, worker_id: str) -> workers.Suspect:
    workers.register(engine, worker_id, name="", queues="", supervisor=None, has_lock=False)
    (suspect,) = workers.all_but(engine, "another")
    return suspect


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
    assert workers.rescue(engine, suspect, is_known_dead=True) == 0
