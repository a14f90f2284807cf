"""The loop by hand on the tables of this package: what their width and indexes cost.

``BENCH_CLAIM`` is how it takes rows: ``mark`` writes into them, ``hold`` only locks them in a
transaction that stays open until the batch has run.
"""

from __future__ import annotations

import os

import django

django.setup()

import databases  # noqa: E402
from project.producer import Ours  # noqa: E402

from background_task.models import CompletedTask, Task  # noqa: E402
from background_task.states import State  # noqa: E402
from yardsticks import loop  # noqa: E402

FOUND = f"""
    SELECT {{columns}} FROM background_task
    WHERE state = {State.READY:d} AND locked_by IS NULL AND run_at <= {{now}}
    ORDER BY priority DESC, run_at, id LIMIT {loop.BATCH}
"""
MARK = f"""
    UPDATE background_task SET state = {State.RUNNING:d}, locked_by = '1', worker_id = 'host:1:me',
        locked_at = {{now}}, epoch = COALESCE(epoch, 0) + 1,
        started_at = COALESCE(started_at, {{now}})
    WHERE id IN ({{found}}) RETURNING id, task_name, task_params
"""


def copy(now: str) -> str:
    """Return the statement that copies rows into the history, but for where they come from."""
    given = {
        "state": f"{State.SUCCESSFUL:d}",
        "run_at": now,
        "attempts": "attempts + 1",
        "locked_by": "'1'",
        "locked_at": now,
        "worker_id": "'host:1:me'",
        "started_at": f"COALESCE(started_at, {now})",
    }
    live = {field.column for field in Task._meta.concrete_fields}
    columns = [f.column for f in CompletedTask._meta.concrete_fields if f.column in live - {"id"}]
    names = ", ".join(f'"{column}"' for column in columns)
    values = ", ".join(given.get(column, f'"{column}"') for column in columns)
    return f"INSERT INTO background_task_completedtask ({names}) SELECT {values} FROM"


class PostgreSQL(Ours):
    """The loop with psycopg."""

    def work(self) -> None:
        finish = f"""
            WITH done AS (DELETE FROM background_task WHERE id = ANY(%s) RETURNING *)
            {copy("now()")} done
        """
        if os.environ["BENCH_CLAIM"] == "mark":
            self._mark(finish)
        else:
            self._hold(finish)

    def _mark(self, finish: str) -> None:
        found = FOUND.format(columns="id", now="now()") + "FOR UPDATE SKIP LOCKED"
        mark = MARK.format(now="now()", found=found)
        with loop.postgresql() as connection:
            loop.drain(
                lambda: connection.execute(mark, prepare=True).fetchall(),
                lambda keys: connection.execute(finish, [keys], prepare=True),
            )

    def _hold(self, finish: str) -> None:
        found = FOUND.format(columns="id, task_name, task_params", now="now()")
        hold = f"{found} FOR UPDATE SKIP LOCKED"
        with loop.postgresql() as connection:

            def claim() -> list[tuple[int, str, str]]:
                connection.execute("BEGIN")
                return connection.execute(hold, prepare=True).fetchall()

            def complete(keys: list[int]) -> None:
                connection.execute(finish, [keys], prepare=True)
                connection.execute("COMMIT")

            loop.drain(claim, complete)


class SQLite(Ours):
    """The loop with sqlite3, which marks."""

    def work(self) -> None:
        now = "strftime('%Y-%m-%d %H:%M:%f', 'now')"
        mark = MARK.format(now=now, found=FOUND.format(columns="id", now=now))
        finish = f"{copy(now)} background_task"
        connection = loop.sqlite()
        loop.drain(
            lambda: connection.execute(mark).fetchall(),
            lambda keys: loop.move(connection, finish, "background_task", keys),
        )


program = PostgreSQL if databases.vendor() == "postgresql" else SQLite
