"""Every public history of the two tables, and a fresh database, lead to our schema."""

from __future__ import annotations

import pytest
from legacy import NEW, OLD, Database

HISTORIES = ["plain", "django4", "self_made"]
FILL = (
    "from background_task.tasks import tasks\n"
    "for number in range(3): note(number)\n"
    "Watch.objects.create(task=note('watched', schedule=3600))\n"
    "tasks.run_next_task()\n"
    "Watch.objects.create(done=CompletedTask.objects.get())\n"
)


def prepare(database: Database, history: str) -> None:
    """Make a database as the predecessor, or a fork of it, has left it."""
    environment = {} if history == "plain" else {"LEGACY_HISTORY": history}
    database.manage(OLD, "migrate", **environment)
    database.code(OLD, FILL)


@pytest.mark.parametrize("history", HISTORIES)
def test_a_known_history_migrates_twice_and_keeps_every_row(
    database: Database, history: str
) -> None:
    prepare(database, history)
    before = database.code(OLD, "print(sorted(Task.objects.values_list('id', 'task_params')))")
    first = database.manage(NEW, "migrate")
    assert "Applying background_task.0005_public_ids_and_states... OK" in first
    assert "No migrations to apply" in database.manage(NEW, "migrate")
    after = database.code(NEW, "print(sorted(Task.objects.values_list('id', 'task_params')))")
    assert after == before
    database.manage(NEW, "check", "--database", "default")
    database.work(NEW, 1)
    notes = database.code(NEW, "print(sorted(Note.objects.values_list('text', flat=True)))")
    assert notes.strip() == "['[[0], {}]', '[[1], {}]', '[[2], {}]']"


def test_a_fresh_database_migrates_twice(database: Database) -> None:
    assert "Applying background_task.0005_public_ids_and_states... OK" in database.manage(
        NEW, "migrate"
    )
    assert "No migrations to apply" in database.manage(NEW, "migrate")


@pytest.mark.parametrize("auto_field", ["AutoField", "BigAutoField", "SmallAutoField"])
def test_no_migration_is_missing_whatever_keys_the_project_chooses(
    database: Database, auto_field: str
) -> None:
    printed = database.run(
        NEW,
        "-c",
        "import django; from django.conf import settings\n"
        f"settings.DEFAULT_AUTO_FIELD = 'django.db.models.{auto_field}'\n"
        "django.setup(); from django.core.management import call_command\n"
        "call_command('makemigrations', 'background_task', check=True, dry_run=True)\n",
    )
    assert "No changes detected" in printed


def test_keys_become_64_bit_and_the_projects_foreign_keys_follow(
    database: Database, vendor: str
) -> None:
    prepare(database, "plain")
    database.manage(NEW, "migrate")
    code = (
        "found = []\n"
        "for table, column in [('background_task', 'id'), ('background_task_completedtask', 'id'),"
        " ('legacy_project_watch', 'task_id'), ('legacy_project_watch', 'done_id')]:\n"
        "    with connection.cursor() as c:\n"
        "        for d in connection.introspection.get_table_description(c, table):\n"
        "            if d.name == column:\n"
        "                found.append(connection.introspection.get_field_type(d.type_code, d))\n"
        "print(found)\n"
        "watched, done = Watch.objects.order_by('id')\n"
        "print(watched.task.params()[0], done.done.task_params)\n"
        "print(max(Task.objects.values_list('id', flat=True)) < note('next').pk)\n"
        "try:\n    Watch.objects.create(task_id=10**12); connection.check_constraints()\n"
        "except Exception as error: print(type(error).__name__)\n"
        "watched.task.delete(); watched.refresh_from_db(); print(watched.task)\n"
    )
    types, followed, higher, enforced, cascaded = database.code(NEW, code).splitlines()[-5:]
    if vendor == "sqlite":  # every integer column of SQLite holds 64 bits
        assert types.count("Integer") + types.count("Auto") >= 4
    else:
        assert types.count("Big") == 4
    assert followed == "['watched'] [[0], {}]"
    assert higher == "True"
    assert enforced == "IntegrityError"
    assert cascaded == "None"


def test_ids_beyond_32_bits_are_given(database: Database, vendor: str) -> None:
    database.manage(NEW, "migrate")
    raise_it = {
        "sqlite": "UPDATE sqlite_sequence SET seq = 4294967296 WHERE name = 'background_task'",
        "postgresql": (
            "SELECT setval(pg_get_serial_sequence('background_task', 'id'), 4294967296)"
        ),
        "mysql": "ALTER TABLE background_task AUTO_INCREMENT = 4294967297",
    }[vendor]
    code = f'note("near")\nconnection.cursor().execute("{raise_it}")\nprint(note("far").pk)'
    assert int(database.code(NEW, code).splitlines()[-1]) == 4294967297


def test_our_migration_can_be_taken_back(database: Database) -> None:
    prepare(database, "plain")
    database.manage(NEW, "migrate")
    database.manage(NEW, "migrate", "background_task", "0002")
    assert database.code(OLD, "print(Task.objects.count(), CompletedTask.objects.count())") == (
        "3 1\n"
    )
    database.manage(NEW, "migrate")
    assert database.code(NEW, "print(Task.objects.count(), CompletedTask.objects.count())") == (
        "3 1\n"
    )
