"""Where the databases are, and how they are made, dropped and put in order.

``BENCH_DATABASE`` chooses one, ``BENCH_NAME`` its name. ``BENCH_POSTGRESQL`` and ``BENCH_MYSQL``
are the URLs of the servers, and the names that those of the databases begin with.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

VENDORS = ("sqlite", "postgresql", "mysql")
URLS = {
    "postgresql": "postgresql://postgres@127.0.0.1:5432/background_task_bench",
    "mysql": "mysql://root@127.0.0.1:3306/background_task_bench",
}
REDIS = os.environ.get("BENCH_REDIS", "redis://127.0.0.1:6379/5")


def vendor() -> str:
    """Return which database this process is to use."""
    return os.environ.get("BENCH_DATABASE", "sqlite")


def name(which: str, suffix: str = "") -> str:
    """Return the name of a database."""
    url = os.environ.get(f"BENCH_{which.upper()}", URLS.get(which, "/background_task_bench"))
    return urlsplit(url).path.lstrip("/") + suffix


def entry() -> dict[str, Any]:
    """Return the entry for Django's DATABASES."""
    which = vendor()
    called = os.environ.get("BENCH_NAME") or name(which)
    if which == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(os.environ.get("BENCH_FOLDER", "/tmp")) / f"{called}.sqlite3",
            "OPTIONS": {
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
            },
        }
    if which == "mysql":
        install_driver()
    return {"ENGINE": f"django.db.backends.{which}", "NAME": called, **_server(which)}


def _server(which: str) -> dict[str, Any]:
    url = urlsplit(os.environ.get(f"BENCH_{which.upper()}", URLS[which]))
    return {
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": unquote(url.hostname or ""),
        "PORT": url.port or "",
    }


def install_driver() -> None:
    """Let PyMySQL stand in where mysqlclient is missing."""
    if not find_spec("MySQLdb"):
        import pymysql

        pymysql.install_as_MySQLdb()


def url() -> str:
    """Return the URL of the PostgreSQL database of this process."""
    found = urlsplit(os.environ.get("BENCH_POSTGRESQL", URLS["postgresql"]))
    return found._replace(path=f"/{os.environ.get('BENCH_NAME') or name('postgresql')}").geturl()


def ask(which: str, sql: str, *, fetch: bool = False) -> list[Any]:
    """Run a statement on the server, in no database that is measured."""
    server = _server(which)
    host, port = server["HOST"] or None, int(server["PORT"] or 0)
    if which == "postgresql":
        import psycopg

        options = {"user": server["USER"], "password": server["PASSWORD"] or None}
        connection: Any = psycopg.connect(
            dbname="postgres", host=host, port=port or None, autocommit=True, **options
        )
    else:
        install_driver()
        import MySQLdb

        options = {"user": server["USER"], "passwd": server["PASSWORD"]}
        connection = MySQLdb.connect(host=host or "localhost", port=port or 3306, **options)
    with closing(connection), closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall()) if fetch else []


def create(which: str, called: str) -> None:
    """Make an empty database."""
    if which != "sqlite":
        drop(which, called)
        ask(which, f"CREATE DATABASE {called}")


def drop(which: str, called: str) -> None:
    """Drop a database, if it is there."""
    if which != "sqlite":
        force = " WITH (FORCE)" if which == "postgresql" else ""
        ask(which, f"DROP DATABASE IF EXISTS {called}{force}")


def version(which: str) -> str:
    """Return the version of a database."""
    if which == "sqlite":
        import sqlite3

        return sqlite3.sqlite_version
    sql = "SHOW server_version" if which == "postgresql" else "SELECT version()"
    return re.split(r"[ -]", str(ask(which, sql, fetch=True)[0][0]))[0]


def settle() -> None:
    """Put the database of this process in order after rows were deleted and stored."""
    if vendor() == "postgresql":
        import psycopg

        with psycopg.connect(url(), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
