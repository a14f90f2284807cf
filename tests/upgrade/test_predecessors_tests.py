"""The tests that the predecessor ships, as PyPI has them, run against this package."""

from __future__ import annotations

import pytest
from legacy import NEW, OLD, Database


@pytest.mark.parametrize("threads", [False, True], ids=["one by one", "in threads"])
def test_the_predecessors_own_tests_pass_with_this_package(
    database: Database, vendor: str, threads: bool
) -> None:
    if threads and vendor != "sqlite":
        pytest.skip("they sleep for a second after each call; once, on SQLite, is enough")
    environment = {"TEST_RUN_ASYNC": "1"} if threads else {}
    folder = database.run(OLD, "-c", "import background_task.tests as t; print(t.__path__[0])")
    code = (
        "import sys, django, unittest.mock\n"
        "sys.modules['mock'] = unittest.mock\n"
        "import background_task.tests; background_task.tests.__path__.insert(0, sys.argv[1])\n"
        "from django.conf import settings; from django.test.utils import get_runner\n"
        "if settings.DATABASES['default']['ENGINE'].endswith('sqlite3'):\n"
        "    settings.DATABASES['default']['TEST'] = {'NAME': sys.argv[2]}\n"
        "else:\n    settings.DATABASES['default']['TEST'] = {'NAME': sys.argv[2] + '_own'}\n"
        "django.setup()\n"
        "sys.exit(bool(get_runner(settings)(verbosity=0, interactive=False)"
        ".run_tests(['background_task.tests.test_tasks'])))\n"
    )
    name = f"{database.name}.tests" if vendor == "sqlite" else database.name
    printed = database.run(NEW, "-c", code, folder.strip(), name, **environment)
    assert "Ran 55 tests" in printed
    assert "\nOK" in printed
