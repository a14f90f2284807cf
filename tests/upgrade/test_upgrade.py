"""A database that the real predecessor has filled goes on with this package, row by row."""

from __future__ import annotations

import json
from collections import Counter

from legacy import NEW, OLD, Database, finish
from support import wait_until

TRICKY = [
    "('ñandú 🎉', 'a\"b\\\\c')",
    "({'b': {'a': [1, 2.5, None, True]}, 'a': 1},)",
    "(1e300, 0.1, -0.0, 10**30)",
    "((1, 2), [3, [4]])",
    "({2: 'two', 1: 'one'},)",
    "('\\x00\\ud800',)",
    "()",
]

FILL = """
import os
now = datetime.now(tz.utc)
ana = User.objects.create(username="ana")
note("due", 1, key="ñ")
note("due with priority", priority=-7, verbose_name="A name", schedule=now - timedelta(days=1))
note("in a queue", queue="mail")
note("owned", creator=ana)
Task.objects.new_task("legacy_project.tasks.note", (1), {}).save()
for arguments in [TRICKY]: note(*arguments)
note("future", schedule=3600)
past = now - timedelta(hours=5, minutes=10)
note("repeating", repeat=3600, repeat_until=now + timedelta(days=30), schedule=past)
note("retrying")
Task.objects.filter(task_params__contains="retrying").update(
    attempts=3, last_error="Traceback", run_at=now + timedelta(hours=1))
note("locked")
Task.objects.filter(task_params='[["locked"], {}]').update(locked_by="999999", locked_at=now)
note("lock expired")
Task.objects.filter(task_params__contains="lock expired").update(
    locked_by="999999", locked_at=now - timedelta(hours=2))
note("failed long ago")
Task.objects.filter(task_params__contains="failed long ago").update(failed_at=now)
Task.objects.new_task("code.that.is.gone", ["unknown"]).save()
note("history")
row = Task.objects.get(task_params__contains="history").lock("1"); tasks.run_task(row)
failing()
Task.objects.filter(task_name__contains="failing").update(attempts=24)
row = Task.objects.get(task_name__contains="failing").lock("1"); tasks.run_task(row)
Note.objects.all().delete()
""".replace("TRICKY", ", ".join(TRICKY))


def test_an_upgraded_database_keeps_every_column_and_runs_what_is_due_once(
    database: Database,
) -> None:
    database.manage(OLD, "migrate")
    database.code(OLD, FILL)
    untouched = database.rows()
    database.manage(NEW, "migrate")
    assert database.rows() == untouched, "the migration changed a column"

    database.work(NEW, 2)
    expected = [
        ["due", 1],
        ["due with priority"],
        ["in a queue"],
        ["owned"],
        ["repeating"],
        ["lock expired"],
    ]
    code = "print(json.dumps(list(Note.objects.values_list('text', 'worker'))))"
    notes = json.loads(database.code(NEW, code).splitlines()[-1])
    assert {worker for _, worker in notes} == {"2.0.0a1"}
    ran = Counter(text for text, _ in notes)
    assert set(ran.values()) == {1}, "a task ran twice"
    called = [json.loads(text) for text in ran]
    for arguments in expected:
        assert [args for args, _ in called if args == arguments] == [arguments]
    assert [["due", 1], {"key": "ñ"}] in called
    assert len(called) == len(expected) + len(TRICKY)
    # new_task("x", (1), {}) stores a number where the arguments should be; no call fits it.
    after = database.rows()
    tasks, history = (after[name] for name in ("background_task", "background_task_completedtask"))
    had_tasks, had_history = (
        untouched[name] for name in ("background_task", "background_task_completedtask")
    )
    left = {key: row for key, row in tasks.items() if key in had_tasks}
    odd = [key for key, row in left.items() if row[2] == "[1, {}]"]
    assert len(odd) == 1
    assert left[odd[0]][10] == "1", "the call that cannot be made counts as one attempt"
    waiting = {key: row for key, row in left.items() if key not in odd}
    assert waiting == {key: had_tasks[key] for key in waiting}
    kept = sorted(row[2] for row in waiting.values())
    assert kept == sorted(
        f'[["{what}"], {{}}]'
        for what in ["failed long ago", "future", "locked", "retrying", "unknown"]
    )
    assert {key: history[key] for key in had_history} == had_history

    (again,) = [row for key, row in tasks.items() if key not in had_tasks]
    (before,) = [row for row in had_tasks.values() if row[2] == '[["repeating"], {}]']
    assert again[1:6] == before[1:6]
    assert again[7:10] == before[7:10]
    code = (
        "from datetime import datetime as d\n"
        f"print((d.fromisoformat('{again[6]}') - d.fromisoformat('{before[6]}')).total_seconds())"
    )
    assert float(database.code(NEW, code)) == 6 * 3600


def test_calls_store_the_same_bytes_as_with_the_predecessor(database: Database) -> None:
    database.manage(OLD, "migrate")
    calls = f"for arguments in [{', '.join(TRICKY)}]: note(*arguments, zeta=1, alfa=(1, 2))\n"
    stored = (
        "print(json.dumps(list(Task.objects.order_by('id').values_list("
        "'task_name', 'task_params', 'task_hash'))))\nTask.objects.all().delete()"
    )
    old = database.code(OLD, calls + stored)
    database.manage(NEW, "migrate")
    assert database.code(NEW, calls + stored) == old
    assert len(json.loads(old)) == len(TRICKY)


def test_workers_of_both_packages_run_each_of_500_tasks_once(
    database: Database, vendor: str
) -> None:
    database.manage(OLD, "migrate")
    database.manage(NEW, "migrate")
    if vendor == "sqlite":  # two writers need the write-ahead log, whichever package they run
        database.code(NEW, "connection.cursor().execute('PRAGMA journal_mode=WAL')")
    database.code(OLD, "for number in range(500): unhurried(number)")
    arguments = ["-m", "django", "process_tasks", "--sleep", "0.1", "--duration", "120"]
    ours, theirs = database.start(NEW, *arguments), database.start(OLD, *arguments)
    wait_until(
        lambda: database.code(NEW, "print(Task.objects.count())").strip() == "0", timeout=120
    )
    theirs.terminate()
    theirs.communicate()
    ours.terminate()
    finish(ours)
    code = "print(json.dumps(list(Note.objects.values_list('text', 'worker'))))"
    notes = json.loads(database.code(NEW, code).splitlines()[-1])
    ran = Counter(int(text) for text, _ in notes)
    assert ran == dict.fromkeys(range(500), 1)
    assert {worker for _, worker in notes} == {"1.2.8", "2.0.0a1"}
    assert database.code(NEW, "print(Task.objects.count(), CompletedTask.objects.count())") == (
        "0 500\n"
    )


def test_the_predecessor_can_be_put_back_and_ours_again(database: Database) -> None:
    database.manage(NEW, "migrate")
    database.code(NEW, "note('ours', 1, repeat=3600)")
    assert "No migrations to apply" in database.manage(OLD, "migrate")
    database.code(OLD, "note('theirs', 2); note('left by theirs', schedule=2)")
    database.work(OLD, 1)
    seen = "print(sorted(Note.objects.values_list('text', 'worker')))"
    assert database.code(OLD, seen).strip() == (
        "[('[[\"ours\", 1], {}]', '1.2.8'), ('[[\"theirs\", 2], {}]', '1.2.8')]"
    )
    database.work(NEW, 3)
    assert "('[[\"left by theirs\"], {}]', '2.0.0a1')" in database.code(NEW, seen)
    ids = "print([row.result_id is not None for row in CompletedTask.objects.order_by('id')])"
    assert database.code(NEW, ids).strip() == "[False, False, True]"
