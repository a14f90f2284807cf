"""Runs workers that are killed before one of their first statements, before a later one, and so on.

Each of them has tasks of every kind to run, and is followed by one that is left alone. Ends when a
worker has come to its end; prints how many were killed. The arguments: before which statement the
first is killed, how many statements later the next, and options of the workers.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import django
from django.core.management import execute_from_command_line
from django.db.backends.signals import connection_created

KILLED = -signal.SIGKILL
ENOUGH = 1000


def in_child(act: Callable[[], object]) -> int:
    """Do it in a process of its own; return its exit code, negative for a signal."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        act()
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def store(number: int) -> None:
    """Enqueue tasks of every kind, enough of the short ones for batches of every kind."""
    from project import jobs, tasks

    for each in range(70):
        tasks.journal(f"{number}-{each}")
    for each in range(3):
        tasks.journal_async(f"{number}-async-{each}")
    tasks.journal(f"{number}-chain", repeat=3600)
    tasks.write_atomically(f"{number}-atomic")
    jobs.raises.enqueue(f"{number}-raises")


def die_before(number: int) -> None:
    """Let this process be killed before the statement of this number, whoever executes it."""
    statements = itertools.count(1)

    def count() -> None:
        if next(statements) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def execute(execute: Callable[..., Any], *args: Any) -> Any:
        count()
        return execute(*args)

    def watch(connection: Any, **kwargs: Any) -> None:
        commit = connection._commit
        connection._commit = lambda: (count(), commit())
        connection.execute_wrappers.append(execute)

    connection_created.connect(watch, weak=False)


def work(options: list[str]) -> None:
    execute_from_command_line(["manage.py", "process_tasks", "--burst", *options])


def main(first: int, step: int, options: list[str]) -> None:
    django.setup()

    def be_killed() -> None:
        die_before(number)
        work(options)

    for killed in itertools.count():
        number = first + killed * step
        assert in_child(lambda number=number: store(number)) == 0
        code = in_child(be_killed)
        assert code in (0, KILLED), code
        assert in_child(lambda: work(options)) == 0
        if code == 0:
            print(killed)
            return
        assert number < ENOUGH, "the worker does not end"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
