"""What an upgrade can leave behind is reported by ``manage.py check``, with the remedy."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from legacy import NEW, OLD, Database


def test_the_predecessor_installed_beside_us_is_an_error(
    database: Database, tmp_path: Path
) -> None:
    find = (
        "from importlib.metadata import distribution as d\n"
        "print(d('django-background-tasks').locate_file('django_background_tasks-1.2.8.dist-info'))"
    )
    metadata = Path(database.run(OLD, "-c", find).strip())
    shutil.copytree(metadata, tmp_path / metadata.name)
    printed = database.manage(NEW, "check", ok=False, FIRST_ON_PATH=str(tmp_path))
    assert_two_distributions_are_reported(printed, "django-background-tasks")


@pytest.mark.parametrize("name", ["django4-background-tasks", "django_background_tasks_updated"])
def test_a_fork_installed_beside_us_is_an_error(
    database: Database, tmp_path: Path, name: str
) -> None:
    metadata = tmp_path / f"{name.replace('-', '_')}-1.2.8.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.8\n")
    printed = database.manage(NEW, "check", ok=False, FIRST_ON_PATH=str(tmp_path))
    assert_two_distributions_are_reported(printed, name)


def assert_two_distributions_are_reported(printed: str, name: str) -> None:
    assert "background_task.E001" in printed
    assert f"{name} is installed beside django-background-tasks2" in printed
    assert f"pip uninstall -y {name} django-background-tasks2" in printed


@pytest.mark.parametrize("command", ["check", "migrate"])
@pytest.mark.parametrize("stray", ["0003_auto_20211112_1314", "0006_alter_task_id"])
def test_a_stray_migration_file_is_an_error(
    database: Database, tmp_path: Path, stray: str, command: str
) -> None:
    package = find_spec("background_task")
    assert package is not None
    assert package.origin is not None
    shutil.copytree(Path(package.origin).parent, tmp_path / "background_task")
    left = tmp_path / "background_task" / "migrations" / f"{stray}.py"
    left.write_text(
        "from django.db import migrations\n"
        "class Migration(migrations.Migration):\n"
        "    dependencies = [('background_task', '0002_auto_20170927_1109')]\n"
    )
    printed = database.manage(NEW, command, ok=False, FIRST_ON_PATH=str(tmp_path))
    assert "background_task.E002" in printed
    assert str(left) in printed
    assert "delete the file" in printed


def test_a_project_that_owns_the_migrations_is_not_told_about_files(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "owned").mkdir()
    (tmp_path / "owned" / "__init__.py").touch()
    (tmp_path / "owned" / "0001_initial.py").touch()
    printed = database.manage(NEW, "check", FIRST_ON_PATH=str(tmp_path), TEST_MIGRATIONS="owned")
    assert "no issues" in printed


def test_a_clean_upgrade_passes_every_check(database: Database) -> None:
    database.manage(OLD, "migrate")
    database.manage(NEW, "migrate")
    printed = database.manage(NEW, "check", "--database", "default")
    assert printed.strip() == "System check identified no issues (0 silenced)."
