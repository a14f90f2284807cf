"""The loop by hand that the yardsticks of a drain share, and its connections."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import body
import databases

if TYPE_CHECKING:
    from psycopg import Connection

BATCH = 500
NAMES = {"record": body.record, "project.tasks.begin": body.record}


def postgresql() -> Connection[Any]:
    """Connect; each statement is a transaction of its own."""
    import psycopg

    return psycopg.connect(databases.url(), autocommit=True)


def sqlite() -> sqlite3.Connection:
    """Connect as durably as the project does; each statement is a transaction of its own."""
    connection = sqlite3.connect(databases.entry()["NAME"], isolation_level=None, timeout=20)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def drain(claim: Callable[[], list[Any]], finish: Callable[[list[int]], Any]) -> None:
    """Claim, run and finish batches until there is nothing left.

    Args:
        claim: returns rows of key, name and parameters.
        finish: moves the rows of these keys to the history.
    """
    while rows := claim():
        for _, name, params in rows:
            args, kwargs = json.loads(params) if isinstance(params, str) else params
            NAMES[name](*args, **kwargs)
        finish([row[0] for row in rows])


def move(connection: sqlite3.Connection, copy: str, table: str, keys: list[int]) -> None:
    """Copy rows into the history and delete them, in one transaction of SQLite."""
    some = ",".join(map(str, keys))
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"{copy} WHERE id IN ({some})")
    connection.execute(f"DELETE FROM {table} WHERE id IN ({some})")
    connection.execute("COMMIT")
