"""The limit: a loop by hand, in batches of 500, on tables with nothing but what it needs.

It claims by one statement, runs each task as a plain call, and moves the batch to a history table
by one statement. Nothing can be had for less in Python: no signals, no results, no retries.
"""

from __future__ import annotations

import databases
from program import Program

from yardsticks import loop

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
SQLITE_FINISH = """
    INSERT INTO limit_done SELECT id, name, params, worker, datetime('now') FROM limit_job
"""


class PostgreSQL(Program):
    """The loop with psycopg."""

    def enqueue_many(self, count: int) -> None:
        with loop.postgresql() as connection:
            connection.execute(POSTGRESQL_TABLES)
            connection.execute(
                "INSERT INTO limit_job (name, params) "
                "SELECT 'record', '[[1], {}]' FROM generate_series(1, %s)",
                [count],
            )

    def work(self) -> None:
        with loop.postgresql() as connection:
            loop.drain(
                lambda: connection.execute(POSTGRESQL_CLAIM, [loop.BATCH], prepare=True).fetchall(),
                lambda keys: connection.execute(POSTGRESQL_FINISH, [keys], prepare=True),
            )


class SQLite(Program):
    """The loop with sqlite3."""

    def enqueue_many(self, count: int) -> None:
        connection = loop.sqlite()
        connection.executescript(SQLITE_TABLES)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "INSERT INTO limit_job (name, params) VALUES (?, ?)",
            [("record", "[[1], {}]")] * count,
        )
        connection.execute("COMMIT")

    def work(self) -> None:
        connection = loop.sqlite()
        loop.drain(
            lambda: connection.execute(SQLITE_CLAIM, [loop.BATCH]).fetchall(),
            lambda keys: loop.move(connection, SQLITE_FINISH, "limit_job", keys),
        )


program = PostgreSQL if databases.vendor() == "postgresql" else SQLite
