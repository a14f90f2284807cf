"""What an upgrade can leave behind is reported by ``manage.py check``, with the remedy."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from legacy import HERE, NEW, Database
from support import TESTS


def check(database: Database, first_on_path: Path) -> str:
    path = os.pathsep.join([str(first_on_path), str(HERE), str(TESTS)])
    return database.manage(NEW, "check", ok=False, PYTHONPATH=path)


@pytest.mark.parametrize(
    "name",
    ["django-background-tasks", "django4-background-tasks", "django_background_tasks_updated"],
)
def test_a_second_distribution_of_the_package_is_an_error(
    database: Database, tmp_path: Path, name: str
) -> None:
    metadata = tmp_path / f"{name.replace('-', '_')}-1.2.8.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.8\n")
    printed = check(database, tmp_path)
    assert "background_task.E001" in printed
    assert f"{name} is installed beside django-background-tasks2" in printed
    assert f"pip uninstall -y {name} django-background-tasks2" in printed


@pytest.mark.parametrize("stray", ["0003_auto_20211112_1314", "0006_alter_task_id"])
def test_a_stray_migration_file_is_an_error(database: Database, tmp_path: Path, stray: str) -> None:
    package = find_spec("background_task")
    assert package is not None
    assert package.origin is not None
    shutil.copytree(Path(package.origin).parent, tmp_path / "background_task")
    left = tmp_path / "background_task" / "migrations" / f"{stray}.py"
    left.write_text(
        "from django.db import migrations\nclass Migration(migrations.Migration): pass\n"
    )
    printed = check(database, tmp_path)
    assert "background_task.E002" in printed
    assert str(left) in printed
    assert "delete the file" in printed


def test_a_project_that_owns_the_migrations_is_not_told_about_files(
    database: Database,
) -> None:
    printed = database.manage(NEW, "check", LEGACY_HISTORY="django4")
    assert "no issues" in printed
