"""Threads of a worker that share a connection, and who closes it."""

from __future__ import annotations

import threading

from background_task.models import Task
from background_task.storage.engine import Engine
from background_task.tasks import Tasks
from background_task.worker.budget import Budget
from background_task.worker.functions import Functions
from background_task.worker.options import Queues
from background_task.worker.threads import Threads


def test_the_last_of_the_threads_closes_the_connection_that_they_share(engine: Engine) -> None:
    tasks = Tasks()
    has_begun, may_end = threading.Event(), threading.Event()

    @tasks.background(name="a task")
    def work() -> None:
        has_begun.set()
        may_end.wait(60)

    Task.objects.new_task("a task").save()
    threads = Threads(
        2,
        lambda engine: Functions(tasks, engine, Queues(), None, Budget(), None),
        engine,
        on_hunger=lambda: None,
    )
    threads.start()
    assert has_begun.wait(60)
    threads.stop()
    assert not threads.drain(0.1)
    assert engine.connection.connection is not None
    may_end.set()
    assert threads.drain(60)
    assert engine.connection.connection is None


def test_a_connection_is_not_closed_while_another_thread_uses_it(engine: Engine) -> None:
    driver = engine.connection.connection
    with engine.lock:
        another = threading.Thread(target=engine.close)
        another.start()
        another.join()
        assert engine.connection.connection is driver
    engine.close()
    assert engine.connection.connection is None
