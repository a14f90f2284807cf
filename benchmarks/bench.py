"""Measures this package against the limit, in one run. See README.md.

Each figure is the median of several passes, and every pass measures everything once: the machine
may be busier in one pass than in another, but the ratios stay.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
DATABASES = ("sqlite", "postgresql", "mysql")
LIMITED = ("sqlite", "postgresql")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=DATABASES, action="append")
    parser.add_argument("--workload", choices=[*WORKLOADS], action="append")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000, help="tasks to drain")
    parser.add_argument("--save", type=Path, help="write the figures there as JSON")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for database in options.database or DATABASES:
        figures[database] = measure(
            database, options.workload or [*WORKLOADS], options.passes, options.count
        )
        for name, value in figures[database].items():
            print(f"{database:<11} {name:<44} {value:>12,.1f}", flush=True)
    if options.save:
        options.save.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n")


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "at": time.ctime()}


def measure(database: str, workloads: list[str], passes: int, count: int) -> dict[str, float]:
    """Return the median of each figure, tasks a second or milliseconds."""
    seen: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "BENCH_DATABASE": database,
            "BENCH_FOLDER": folder,
            "DJANGO_SETTINGS_MODULE": "project.settings",
            "PYTHONPATH": str(HERE),
        }
        create(database)
        run("-m", "django", "migrate", "-v0", "--run-syncdb")
        for _ in range(passes):
            for workload in workloads:
                for name, value in WORKLOADS[workload](database, Path(folder), count):
                    seen[name].append(value)
    return {name: statistics.median(values) for name, values in seen.items()}


def create(database: str) -> None:
    """Make an empty database."""
    if database == "sqlite":
        return
    name = "background_task_bench"
    code = (
        "from django.conf import settings; import django; "
        "settings.DATABASES['default']['NAME'] = {base!r}; django.setup(); "
        "from django.db import connection; c = connection.cursor(); "
        "c.execute('DROP DATABASE IF EXISTS {name}'); c.execute('CREATE DATABASE {name}')"
    )
    base = "postgres" if database == "postgresql" else "mysql"
    run("-c", code.format(base=base, name=name))


def run(*arguments: str, **environment: str) -> str:
    """Run Python and return what it prints."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE,
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


@contextmanager
def started(records: Path, *commands: list[str]) -> Iterator[None]:
    """Run workers, which write down what they begin."""
    environment = {**os.environ, "BENCH_RECORDS": str(records)}
    children = [
        subprocess.Popen([sys.executable, *command], cwd=HERE, env=environment)
        for command in commands
    ]
    try:
        yield
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()


WORKER = ["-m", "django", "process_tasks"]


def drained(folder: Path, count: int, *commands: list[str]) -> float:
    """Return how many tasks a second began, from the first to the last."""
    records = folder / "records"
    records.unlink(missing_ok=True)
    with started(records, *commands):
        while not records.exists() or records.stat().st_size < 20 * count:
            time.sleep(0.02)
    moments = sorted(int(line) for line in records.read_text().split())
    return (len(moments) - 1) / ((moments[-1] - moments[0]) / 1e9)


def drain(database: str, folder: Path, count: int) -> Iterator[tuple[str, float]]:
    if database in LIMITED:
        run("limits.py", database, "fill", str(count))
        yield (
            "drain, limit, 1 process",
            drained(folder, count, ["limits.py", database, "drain", "0"]),
        )
    for door in ("begin", "begin_background"):
        run("-c", FILL.format(count=count, door=door))
        yield f"drain, {door}, 1 process", drained(folder, count, WORKER)
    run("-c", FILL.format(count=count, door="begin"))
    yield "drain, begin, 2 processes", drained(folder, count, WORKER, WORKER)


FILL = """
import django; django.setup()
from background_task.models import CompletedTask, Task
from django.db import connection
from django.tasks import task_backends
from project.tasks import begin, begin_background
Task.objects.all().delete(); CompletedTask.objects.all().delete()
task_backends["default"].enqueue_many([({door}, (1,), {{}}) for _ in range({count})])
if connection.vendor == "postgresql":
    connection.cursor().execute("VACUUM ANALYZE background_task, background_task_completedtask")
"""


def enqueue(database: str, folder: Path, count: int) -> Iterator[tuple[str, float]]:
    for line in run("-c", ENQUEUE).splitlines():
        name, _, value = line.rpartition(" ")
        yield name, float(value)


ENQUEUE = """
import time, django; django.setup()
from background_task.models import Task
from django.db import transaction
from django.tasks import task_backends
from django.utils import timezone
from project.models import Plain
from project.tasks import begin, begin_background
def rate(name, act, count=1000):
    act(0)
    began = time.perf_counter()
    for number in range(count): act(number)
    print(name, count / (time.perf_counter() - began))
for _ in range(2):
    rate("enqueue, create() of a plain row", lambda n: Plain.objects.create(
        name="project.tasks.begin", params="[[1], {}]", run_at=timezone.now()), 500)
    rate("enqueue, begin", lambda n: begin.enqueue(n), 500)
    rate("enqueue, begin_background", lambda n: begin_background(n), 500)
calls = [(begin, (n,), {}) for n in range(100_000)]
began = time.perf_counter()
with transaction.atomic():
    task_backends["default"].enqueue_many(calls)
print("enqueue, 100,000 at once", len(calls) / (time.perf_counter() - began))
Task.objects.all().delete(); Plain.objects.all().delete()
"""


def pickup(database: str, folder: Path, count: int) -> Iterator[tuple[str, float]]:
    records = folder / "records"
    records.unlink(missing_ok=True)
    with started(records, WORKER):
        sent = [int(line) for line in run("-c", PICKUP).split()]
        while records.stat().st_size < 20 * len(sent):
            time.sleep(0.02)
    began = [int(line) for line in records.read_text().split()]
    late = sorted((b - s) / 1e6 for b, s in list(zip(began, sent, strict=True))[5:])
    yield "pickup, p50, ms", statistics.median(late)
    yield "pickup, p99, ms", late[int(len(late) * 0.99)]


PICKUP = """
import random, time, django; django.setup()
from project.tasks import begin
time.sleep(2)
for _ in range(205):
    begin.enqueue(1)
    print(time.time_ns(), flush=True)
    time.sleep(random.uniform(0.02, 0.2))
"""

WORKLOADS: dict[str, Callable[[str, Path, int], Iterator[tuple[str, float]]]] = {
    "enqueue": enqueue,
    "drain": drain,
    "pickup": pickup,
}

if __name__ == "__main__":
    main()
