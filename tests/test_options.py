"""What a worker is told: by the command line, then by the setting, then by default."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from project import jobs

from background_task import background
from background_task.management.commands.process_tasks import Command
from background_task.models import CompletedTask, Task
from background_task.settings import app_settings
from background_task.worker.options import Options

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ran() -> Iterator[list[str]]:
    """What has run; one task waits in each of four queues, and one in none."""
    ran: list[str] = []
    proxy = background("noting")(ran.append)
    for queue in ("a", "b", "c", "d", None):
        proxy(str(queue), queue=queue)
    return ran


def work(**options: Any) -> None:
    call_command("process_tasks", **{"burst": True, **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "a b c d None"),
        ({"queue": "c"}, "c"),
        ({"queue": "d,b"}, "d b"),
        ({"queue": ["d", "b"]}, "d b"),
        ({"queue": "c,*"}, "c a b d None"),
        ({"queue": "c,*,a"}, "c b d None a"),
        ({"queue": ""}, "a b c d None"),
        ({"exclude_queue": "b,c"}, "a d None"),
        ({"queue": "d, *", "exclude_queue": "b"}, "d a c None"),
    ],
)
def test_queues_are_taken_as_they_are_named(
    ran: list[str], options: dict[str, Any], expected: str
) -> None:
    work(**options)
    assert ran == expected.split()


def test_a_queue_may_be_named_by_an_option_of_its_own() -> None:
    parser = Command().create_parser("manage.py", "process_tasks")
    told = vars(parser.parse_args(["--queue", "b", "--queue", "a,*", "--exclude-queue", "c"]))
    assert str(Options.of(told).queues) == "b, a, * without c"


def test_no_more_tasks_are_run_than_was_said(ran: list[str]) -> None:
    work(max_tasks=2)
    assert ran == ["a", "b"]
    assert Task.objects.filter(attempts=0, locked_by=None).count() == 3


def test_the_tasks_of_one_backend_may_be_singled_out(ran: list[str]) -> None:
    jobs.add.enqueue(1)
    jobs.add.using(backend="retrying").enqueue(2)
    work(backend="retrying")
    assert CompletedTask.objects.get().backend == "retrying"
    assert not ran


def test_the_setting_says_what_the_command_line_does_not(settings: Any, ran: list[str]) -> None:
    settings.BACKGROUND_TASK_WORKER = {"MAX_TASKS": 1, "QUEUE": ["c", "b"]}
    work()
    assert ran == ["c"]
    work(queue="a,d", max_tasks=2)
    assert ran == ["c", "a", "d"]


def test_as_many_processes_as_cores_may_be_asked_for() -> None:
    assert Options.of({"processes": 0}).processes == os.cpu_count()


W004 = "background_task.W004"

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sleep": -1}, "--sleep is -1; it must be a number, 0 to 1,000,000,000"),
    ({"sleep": "5"}, "--sleep must be a number, not str ('5')"),
    ({"sleep": float("nan")}, "--sleep is nan"),
    ({"threads": 0}, "--threads is 0; it must be a whole number, 1 to 1,000."),
    ({"threads": 10**30}, "it must be a whole number, 1 to 1,000."),
    ({"processes": 1001}, "--processes is 1001; it must be a whole number, 0 to 1,000."),
    ({"concurrency": 100_001}, "it must be a whole number, 1 to 100,000."),
    ({"duration": 1e300}, "it must be a number, 1,000,000,000 or less."),
    ({"shutdown_timeout": 2e9}, "it must be a number, 0 to 1,000,000,000."),
    ({"processes": -1}, "--processes is -1"),
    ({"concurrency": 0}, "--concurrency is 0"),
    ({"max_tasks": 1.5}, "--max-tasks is 1.5; it must be a whole number"),
    ({"max_memory": 0}, "--max-memory is 0"),
    ({"shutdown_timeout": -1}, "--shutdown-timeout is -1"),
    ({"queue": 5}, "--queue must name queues, not 5"),
    ({"queue": "x" * 191}, "--queue: a name has 191 characters, at most 190"),
    ({"queue": "a,b", "exclude_queue": "b"}, "--queue and --exclude-queue both name 'b'"),
    ({"queue": "a", "exclude_queue": "b"}, "nothing for --exclude-queue to leave out"),
    ({"exclude_queue": "*"}, "--exclude-queue is '*', so nothing would be taken"),
    ({"burst": "no"}, "--burst must be True or False, not str ('no')"),
    ({"worker_name": ""}, "--worker-name is empty: name something, or leave it out."),
    ({"worker_name": "a\0b"}, "--worker-name contains a character that no database stores"),
    ({"queue": ["a", "\udcff"]}, "--queue: a name contains a character that no database stores"),
    ({"processes": 10**5000}, "--processes is out of all bounds"),
    ({"database": "defautl"}, "--database is 'defautl'; the databases are default"),
    ({"backend": "retryin"}, "--backend is 'retryin'; TASKS has default, retrying"),
    ({"backend": "immediate"}, "whose tasks another package runs"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_meant_is_refused_by_name(
    options: dict[str, Any], message: str, ran: list[str]
) -> None:
    with pytest.raises(CommandError) as error:
        work(**options)
    assert message in str(error.value)
    assert not ran


def test_what_contradicts_the_setting_is_told_so(settings: Any) -> None:
    settings.BACKGROUND_TASK_WORKER = {"EXCLUDE_QUEUE": "a", "QUEUE": "b", "THREADS": 2}
    with pytest.raises(ValueError, match=r"BACKGROUND_TASK_WORKER has EXCLUDE_QUEUE\.$"):
        Options.of({"queue": "a"})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"MAX_MEMORY": True}, "--max-memory must be a number, not bool (True)."),
        ({"MAX_MEMORY": True}, "The setting BACKGROUND_TASK_WORKER has MAX_MEMORY."),
        ({"MAX_TASK": 5}, "has the unknown key 'MAX_TASK'. Did you mean 'MAX_TASKS'"),
        ({"max_tasks": 5}, "has the unknown key 'max_tasks'. The keys are in upper case"),
        ({"THREADS": "two"}, "--threads must be a whole number, not str ('two')"),
        (["THREADS"], "BACKGROUND_TASK_WORKER must be a dict, not list"),
        ([], "BACKGROUND_TASK_WORKER must be a dict, not list ([])."),
        ("", "BACKGROUND_TASK_WORKER must be a dict, not str ('')."),
        (None, "BACKGROUND_TASK_WORKER must be a dict, not NoneType (None)."),
    ],
)
def test_a_worker_that_cannot_be_meant_is_found_by_the_checks(
    settings: Any, setting: Any, message: str
) -> None:
    settings.BACKGROUND_TASK_WORKER = setting
    (found,) = [each for each in run_checks() if each.id == "background_task.E008"]
    assert message in found.msg


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_ATTEMPTS", float("inf"), "MAX_ATTEMPTS is not a number of at least 1"),
        ("MAX_RUN_TIME", "1h", "MAX_RUN_TIME is not a number of at least 1"),
        ("BACKGROUND_TASK_MAX_LOSSES", -1, "MAX_LOSSES is not a number of at least 0"),
        ("BACKGROUND_TASK_EAGER", "False", "is the text 'False', which counts as True"),
        ("BACKGROUND_TASK_PRIORITY_ORDERING", "asc", "is 'asc', which counts as \"DESC\""),
    ],
)
def test_a_setting_that_cannot_be_meant_is_found_by_the_checks(
    settings: Any, name: str, value: Any, message: str
) -> None:
    setattr(settings, name, value)
    found = [each.msg for each in run_checks() if each.id in ("background_task.E004", W004)]
    assert any(message in each for each in found), found


def test_a_setting_that_is_no_number_is_named_where_it_is_used(settings: Any) -> None:
    settings.MAX_RUN_TIME = "1h"
    message = "The setting BACKGROUND_TASK_MAX_RUN_TIME or MAX_RUN_TIME must be a number, not str"
    with pytest.raises(ValueError, match=message):
        _ = app_settings.MAX_RUN_TIME


def test_the_size_of_the_pool_has_the_bounds_of_threads(settings: Any) -> None:
    settings.BACKGROUND_TASK_RUN_ASYNC = True
    settings.BACKGROUND_TASK_ASYNC_THREADS = 1001
    message = "The setting BACKGROUND_TASK_ASYNC_THREADS is 1001; it must be a whole number, 1 to"
    with pytest.raises(ValueError, match=message):
        Options.of({})
