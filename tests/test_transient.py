"""What is tried again against a database that is away: here one that somebody else has locked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from background_task.storage import transient
from background_task.storage.transient import UnrecordedError, outlast
from background_task.utils import SignalManager


@contextmanager
def asked_to_stop() -> Iterator[None]:
    signals = SignalManager()
    try:
        signals.exit_gracefully(None, None)
        yield
    finally:
        signals.restore()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as other:
        other.execute("CREATE TABLE background_task (epoch)")
        yield other


@pytest.fixture
def away(
    tmp_path: Path,
    other: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    django_db_blocker: pytest.FixtureRequest,
) -> Iterator[BaseDatabaseWrapper]:
    """A database that cannot be written, since ``other`` does so."""
    settings = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "db"),
        "OPTIONS": {"timeout": 0},
    }
    monkeypatch.setitem(connections.settings, "away", settings)
    monkeypatch.setattr(transient, "PATIENT", (0.01, 0.01, 0.01))
    other.execute("BEGIN IMMEDIATE")
    with django_db_blocker.unblock(), closing(connections.create_connection("away")) as away:
        yield away


def test_what_could_not_wait_at_one_stop_has_patience_at_the_next(
    away: BaseDatabaseWrapper, other: sqlite3.Connection
) -> None:
    tries = 0

    def write() -> int:
        nonlocal tries
        tries += 1
        if tries == 3:
            other.execute("ROLLBACK")
        return away.cursor().execute("DELETE FROM background_task").rowcount

    with asked_to_stop(), pytest.raises(UnrecordedError):
        outlast(away, "write", lambda: away.cursor().execute("DELETE FROM background_task"))
    with asked_to_stop():
        assert outlast(away, "write", write) == 0
    assert tries == 3
