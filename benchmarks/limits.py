"""The yardstick: a loop by hand, in batches of 500, on tables with nothing but what it needs.

Run as a process of its own, like a worker: ``python limits.py postgresql|sqlite fill|drain COUNT``.
It claims by one statement, runs each task as a plain call, and moves the batch to a history table
by one statement. Nothing can be had for less in Python: no signals, no results, no retries.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

import django
from django.conf import settings

BATCH = 500

POSTGRESQL_TABLES = """
    DROP TABLE IF EXISTS limit_job, limit_done;
    CREATE TABLE limit_job (
        id bigserial PRIMARY KEY, name text NOT NULL, params jsonb NOT NULL,
        priority int NOT NULL DEFAULT 0, run_at timestamptz NOT NULL DEFAULT now(),
        state smallint NOT NULL DEFAULT 0, worker text, claimed_at timestamptz
    ) WITH (fillfactor = 85);
    CREATE INDEX limit_ready ON limit_job (priority DESC, id) WHERE state = 0;
    CREATE TABLE limit_done (
        id bigint PRIMARY KEY, name text NOT NULL, params jsonb NOT NULL, worker text,
        claimed_at timestamptz, done_at timestamptz
    );
"""
POSTGRESQL_CLAIM = """
    UPDATE limit_job SET state = 1, worker = 'me', claimed_at = now() WHERE id IN (
        SELECT id FROM limit_job WHERE state = 0
        ORDER BY priority DESC, id LIMIT %s FOR UPDATE SKIP LOCKED
    ) RETURNING id, name, params
"""
POSTGRESQL_FINISH = """
    WITH done AS (DELETE FROM limit_job WHERE id = ANY(%s) RETURNING *)
    INSERT INTO limit_done
    SELECT id, name, params, worker, claimed_at, now() FROM done
"""
SQLITE_TABLES = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    DROP TABLE IF EXISTS limit_job;
    DROP TABLE IF EXISTS limit_done;
    CREATE TABLE limit_job (
        id integer PRIMARY KEY, name text NOT NULL, params text NOT NULL,
        priority int NOT NULL DEFAULT 0, state int NOT NULL DEFAULT 0, worker text
    );
    CREATE INDEX limit_ready ON limit_job (priority DESC, id) WHERE state = 0;
    CREATE TABLE limit_done (
        id integer PRIMARY KEY, name text NOT NULL, params text NOT NULL, worker text,
        done_at text
    );
"""
SQLITE_CLAIM = """
    UPDATE limit_job SET state = 1, worker = 'me' WHERE id IN (
        SELECT id FROM limit_job WHERE state = 0 ORDER BY priority DESC, id LIMIT ?
    ) RETURNING id, name, params
"""


def postgresql(act: str, count: int) -> None:
    import psycopg

    database = settings.DATABASES["default"]
    with psycopg.connect(
        dbname=database["NAME"],
        user=database["USER"],
        password=database["PASSWORD"] or None,
        host=database["HOST"],
        port=database["PORT"] or None,
        autocommit=True,
    ) as connection:
        if act == "fill":
            connection.execute(POSTGRESQL_TABLES)
            connection.execute(
                "INSERT INTO limit_job (name, params) "
                "SELECT 'record', '[[1], {}]' FROM generate_series(1, %s)",
                [count],
            )
            connection.execute("VACUUM ANALYZE limit_job")
            return
        drain(
            lambda: connection.execute(POSTGRESQL_CLAIM, [BATCH], prepare=True).fetchall(),
            lambda ids: connection.execute(POSTGRESQL_FINISH, [ids], prepare=True),
        )


def sqlite(act: str, count: int) -> None:
    connection = sqlite3.connect(settings.DATABASES["default"]["NAME"], isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")
    if act == "fill":
        connection.executescript(SQLITE_TABLES)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO limit_job (name, params) VALUES (?, ?)",
            [("record", "[[1], {}]")] * count,
        )
        connection.execute("COMMIT")
        return

    def finish(ids: list[int]) -> None:
        some = ",".join(map(str, ids))
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO limit_done SELECT id, name, params, worker, datetime('now') "
            f"FROM limit_job WHERE id IN ({some})"
        )
        connection.execute(f"DELETE FROM limit_job WHERE id IN ({some})")
        connection.execute("COMMIT")

    drain(lambda: connection.execute(SQLITE_CLAIM, [BATCH]).fetchall(), finish)


def drain(claim: Callable[[], list[Any]], finish: Callable[[list[int]], Any]) -> None:
    from project.tasks import record

    functions = {"record": record}
    while rows := claim():
        for _, name, params in rows:
            args, kwargs = json.loads(params) if isinstance(params, str) else params
            functions[name](*args, **kwargs)
        finish([row[0] for row in rows])


if __name__ == "__main__":
    django.setup()
    {"postgresql": postgresql, "sqlite": sqlite}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
