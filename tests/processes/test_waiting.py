"""Waiting for a result that a worker in another process brings about."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from project import jobs
from project.tasks import slow, slow_async
from support import Child, wait_until

from background_task import vendors
from background_task.api import results
from background_task.storage import notifications
from background_task.storage.engine import apart

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def only_by_notification(monkeypatch: pytest.MonkeyPatch, vendor: str) -> None:
    """Let whoever waits look once, and then not again for a day."""
    if vendor != "postgresql":
        pytest.skip("only PostgreSQL can notify")
    monkeypatch.setattr(results, "SHORTEST_PAUSE", 86400)
    monkeypatch.setattr(results, "LONGEST_PAUSE", 86400)


def listening() -> int:
    """Return how many wait for tasks to end; workers listen for new ones."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND query LIKE 'LISTEN %%finished%%'"
        )
        return int(cursor.fetchone()[0])


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.usefixtures("only_by_notification")
def test_who_waits_is_woken(worker: Callable[..., Child], threads: bool) -> None:
    worker(**({"TEST_RUN_ASYNC": "1"} if threads else {}))
    assert slow.enqueue("function", 1).wait() is None
    assert slow_async.enqueue("coroutine", 1).wait() is None
    wait_until(lambda: listening() == 0)


@pytest.mark.usefixtures("only_by_notification")
def test_who_waits_for_a_failure_is_woken(worker: Callable[..., Child]) -> None:
    worker()
    for number in range(3):  # the first may fail before anybody waits
        with pytest.raises(ValueError, match="failed"):
            jobs.raises.enqueue(str(number)).wait()


@pytest.mark.usefixtures("only_by_notification")
def test_who_awaits_is_woken_and_many_share_one_connection(worker: Callable[..., Child]) -> None:
    most = 0

    async def wait_for_many() -> None:
        nonlocal most
        waiting = [await slow_async.aenqueue(f"task {number}", 2) for number in range(20)]
        all_of_them = asyncio.gather(*[result.await_() for result in waiting])
        while not all_of_them.done():
            most = max(most, await asyncio.to_thread(listening_and_close))
            await asyncio.sleep(0.05)
        await all_of_them

    worker()
    async_to_sync(wait_for_many)()
    assert most == 1


@pytest.mark.usefixtures("only_by_notification")
def test_a_listener_whose_connection_breaks_listens_again(
    worker: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "BETWEEN_TRIES", 0.01)
    result = slow.enqueue("long", 1)
    waited: list[object] = []

    def wait() -> None:
        try:
            waited.append(result.wait())
        finally:
            connection.close()

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: listening() == 1)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'LISTEN %%'"
        )
    wait_until(lambda: listening() == 1)
    worker()
    thread.join(30)
    assert waited == [None]


def test_nobody_is_told_when_nobody_listens(vendor: str) -> None:
    if vendor != "postgresql":
        pytest.skip("only PostgreSQL can notify")
    heard_by_stranger, ids = [], [uuid4(), uuid4()]
    with connection.cursor() as cursor:
        cursor.execute("LISTEN background_task_finished")
        notifications.tell_finished(connection, ids)
        heard_by_stranger += connection.connection.notifies(timeout=0.2)
        cursor.execute("UNLISTEN *")
    assert heard_by_stranger == []
    another = apart("default")
    with vendors.of(another).listening(another, notifications.FINISHED) as ear:
        notifications.tell_finished(connection, ids)
        select.select([ear], [], [], 20)
        assert ear.heard() == [",".join(map(str, ids))]


def test_inside_a_transaction_no_connection_listens(vendor: str) -> None:
    result = jobs.add.enqueue(1)
    with transaction.atomic(), pytest.raises(TimeoutError):
        result.wait(0.2)
    assert notifications._listeners == {} or vendor == "postgresql"
    assert vendor != "postgresql" or listening() == 0


def test_who_waits_bears_a_connection_that_breaks(
    worker: Callable[..., Child], vendor: str
) -> None:
    if vendor == "sqlite":
        pytest.skip("SQLite has no connections to break")
    result = slow.enqueue("long", 2)
    with connection.cursor() as cursor:
        own = "pg_backend_pid()" if vendor == "postgresql" else "CONNECTION_ID()"
        cursor.execute(f"SELECT {own}")
        (number,) = cursor.fetchone()

    def cut() -> None:
        with connection.cursor() as cursor:
            if vendor == "postgresql":
                cursor.execute("SELECT pg_terminate_backend(%s)", [number])
            else:
                cursor.execute("KILL %s", [number])
        connection.close()

    threading.Timer(0.5, cut).start()
    worker()
    assert result.wait(30) is None


def test_a_process_that_is_forked_while_one_waits_keeps_no_listener_alive(vendor: str) -> None:
    if vendor != "postgresql":
        pytest.skip("only PostgreSQL can notify")
    result = slow.enqueue("never taken")
    children: list[int] = []

    def fork() -> None:
        wait_until(listening_and_close)
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        children.append(child)

    thread = threading.Thread(target=fork)
    thread.start()
    with pytest.raises(TimeoutError):
        result.wait(2)
    thread.join()
    try:
        wait_until(lambda: listening() == 0)
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


@pytest.mark.usefixtures("only_by_notification")
def test_a_process_with_many_files_listens_too(worker: Callable[..., Child]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        worker()
        assert slow.enqueue("function", 1).wait() is None
    finally:
        for number in files:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def listening_and_close() -> int:
    try:
        return listening()
    finally:
        connection.close()
