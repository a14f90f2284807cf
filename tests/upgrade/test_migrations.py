"""Every public history of the two tables, and a fresh database, lead to our schema."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from legacy import HISTORY, NEW, OLD, PROJECT, TASKS, Database, column

from background_task import __version__ as OURS  # noqa: N812

FIRST = "Applying background_task.0005_public_ids_and_states... OK"
SELF_MADE = "0003_alter_completedtask_id_alter_task_id"
FORK = "fork"


def plain(database: Database, request: pytest.FixtureRequest) -> str:
    """The predecessor alone."""
    database.manage(OLD, "migrate")
    return OLD


def forked(database: Database, request: pytest.FixtureRequest) -> str:
    """The fork django4-background-tasks, which made the keys 64-bit and 32-bit again."""
    database.pythons[FORK] = request.getfixturevalue("fork")
    printed = database.manage(FORK, "migrate")
    assert "Applying background_task.0003_auto_20210410_1529... OK" in printed
    assert "Applying background_task.0004_auto_20220202_1721... OK" in printed
    return FORK


def self_made(database: Database, request: pytest.FixtureRequest) -> str:
    """The predecessor, and the migration that makemigrations writes into its package."""
    folder = request.getfixturevalue("tmp_path")
    find = "import background_task.migrations as m; print(m.__path__[0])"
    shutil.copytree(database.run(OLD, "-c", find).strip(), folder / "written")
    environment = {
        "FIRST_ON_PATH": str(folder),
        "TEST_MIGRATIONS": "written",
        "TEST_AUTO_FIELD": "BigAutoField",
    }
    database.manage(OLD, "makemigrations", "background_task", **environment)
    assert (folder / "written" / f"{SELF_MADE}.py").exists()
    printed = database.manage(OLD, "migrate", **environment)
    assert f"Applying background_task.{SELF_MADE}... OK" in printed
    return OLD


def migrate_twice(database: Database) -> None:
    assert FIRST in database.manage(NEW, "migrate")
    assert "No migrations to apply" in database.manage(NEW, "migrate")
    database.manage(NEW, "check", "--database", "default")


def test_a_fresh_database_migrates_twice(database: Database) -> None:
    migrate_twice(database)
    database.call(NEW, "fill_little")
    assert database.call(NEW, "references")[0] == '[["watched"], {}]'


@pytest.mark.parametrize("history", [plain, forked, self_made])
def test_a_known_history_migrates_twice_and_keeps_every_row_and_reference(
    new_database: Callable[[], Database],
    history: Callable[[Database, pytest.FixtureRequest], str],
    request: pytest.FixtureRequest,
) -> None:
    database = new_database()
    which = history(database, request)
    database.call(which, "fill_little")
    tasks, done = database.rows(TASKS), database.rows(HISTORY)
    assert (len(tasks), len(done)) == (3, 1)
    references = database.call(which, "references")

    migrate_twice(database)
    assert (database.rows(TASKS), database.rows(HISTORY)) == (tasks, done)
    assert database.call(NEW, "references") == references
    database.work(NEW, lambda: len(database.rows(TASKS)) == 1)
    assert database.notes() == {("[[1], {}]", OURS): 1, ("[[2], {}]", OURS): 1}

    fresh = new_database()
    fresh.manage(NEW, "migrate")
    tables = (TASKS, HISTORY, *PROJECT)
    assert database.schema(*tables) == fresh.schema(*tables)


@pytest.mark.parametrize("auto_field", [None, "AutoField", "BigAutoField", "SmallAutoField"])
def test_no_migration_is_missing_whatever_keys_the_project_chooses(
    database: Database, auto_field: str | None
) -> None:
    environment = {"TEST_AUTO_FIELD": auto_field} if auto_field else {}
    printed = database.manage(NEW, "makemigrations", "--check", "--dry-run", **environment)
    assert printed.strip() == "No changes detected"


def test_keys_become_64_bit_and_the_foreign_keys_of_projects_follow(
    database: Database, vendor: str
) -> None:
    database.manage(OLD, "migrate")
    if vendor == "postgresql":  # one table as Django before 4.1 made it
        database.query(
            "ALTER TABLE background_task ALTER id DROP IDENTITY;"
            "CREATE SEQUENCE background_task_id_seq AS integer OWNED BY background_task.id;"
            "ALTER TABLE background_task ALTER id SET DEFAULT nextval('background_task_id_seq')"
        )
    database.call(OLD, "fill_little")
    references = database.call(OLD, "references")
    last = max(database.rows(TASKS))
    database.manage(NEW, "migrate")

    schema = database.schema(TASKS, HISTORY, *PROJECT)
    types = [
        schema[table]["columns"][name][0]
        for table, name in [
            (TASKS, "id"),
            (HISTORY, "id"),
            ("archive_watch", "task_id"),
            ("archive_watch", "done_id"),
            ("archive_report", "done_id"),
            ("archive_batch_tasks", "task_id"),
        ]
    ]
    if vendor == "sqlite":  # every integer column of SQLite holds 64 bits
        assert all("Integer" in each or "Auto" in each for each in types), types
    else:
        assert all(each in ("BigIntegerField", "BigAutoField") for each in types), types
    assert database.call(NEW, "references") == references

    assert database.call(NEW, "enqueue", "next")[0] > last
    for table in (TASKS, HISTORY):
        raise_ids(database, vendor, table, 2**32)
    (far,) = database.call(NEW, "enqueue", "far")
    assert far == 2**32 + 1
    assert database.call(NEW, "refer_to", far) == '[["far"], {}]'
    assert database.call(NEW, "run_one")
    assert max(database.rows(HISTORY)) == 2**32 + 1
    assert database.query("SELECT max(task_id) FROM archive_watch") == [(far,)]


def raise_ids(database: Database, vendor: str, table: str, last: int) -> None:
    """Let the next key be the one after ``last``."""
    if vendor == "sqlite":
        database.query(f"UPDATE sqlite_sequence SET seq = {last} WHERE name = '{table}'")
    elif vendor == "postgresql":
        database.query(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {last})")
    else:
        database.query(f"ALTER TABLE {table} AUTO_INCREMENT = {last + 1}")


def test_references_of_projects_are_still_enforced(database: Database) -> None:
    database.manage(OLD, "migrate")
    database.call(OLD, "fill_little")
    database.manage(NEW, "migrate")
    refused, left = database.call(NEW, "references_are_enforced")
    assert refused == [True] * 4
    assert left == [1, 0, 0], "SET_NULL keeps its row, CASCADE does not"


def test_our_migration_can_be_taken_back_and_made_again(database: Database) -> None:
    database.manage(OLD, "migrate")
    database.call(OLD, "fill_little")
    before = database.schema(TASKS, HISTORY)
    rows = database.rows(TASKS), database.rows(HISTORY)
    database.manage(NEW, "migrate")
    database.manage(NEW, "migrate", "background_task", "0002")
    assert (database.rows(TASKS), database.rows(HISTORY)) == rows
    after = database.schema(TASKS, HISTORY)
    for table in (TASKS, HISTORY):
        assert after[table]["constraints"] == before[table]["constraints"]
        del before[table]["columns"]["id"], after[table]["columns"]["id"]  # stays 64-bit
        assert after[table]["columns"] == before[table]["columns"]
    database.manage(OLD, "migrate")
    assert database.call(OLD, "run_one")
    database.manage(NEW, "migrate")
    assert database.call(NEW, "run_one")
    assert column(database.rows(HISTORY), "attempts") == [1, 1, 1]
