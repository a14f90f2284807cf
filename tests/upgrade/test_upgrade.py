"""A database that the real predecessor has filled goes on with this package, row by row."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta

from legacy import HISTORY, NEW, OLD, TASKS, Database
from support import wait_until

from background_task import __version__ as OURS  # noqa: N812

OF_A_RUN = {"id", "run_at", "locked_by", "locked_at"}


def test_an_upgraded_database_keeps_every_column_and_runs_what_is_due_once(
    database: Database,
) -> None:
    database.manage(OLD, "migrate")
    keys = database.call(OLD, "fill")
    tasks, history = database.rows(TASKS), database.rows(HISTORY)
    owned, permissions = database.call(OLD, "owned"), database.call(OLD, "permissions")
    assert len(tasks) == len(keys["rest"]) + len(keys["due"]) + 2
    assert sorted(each["failed_at"] is not None for each in history.values()) == [False, True]

    database.manage(NEW, "migrate")
    assert database.rows(TASKS) == tasks
    assert database.rows(HISTORY) == history
    assert database.call(NEW, "owned") == owned
    assert all(each in database.call(NEW, "permissions") for each in permissions)

    due, repeating, odd = set(keys["due"]), keys["repeating"], keys["odd"]

    def finished() -> bool:
        left = database.rows(TASKS)
        return not (due | {repeating}) & set(left) and left[odd]["attempts"] > 0

    database.work(NEW, finished)
    assert database.call(NEW, "run_one") is False, "nothing else is due"

    ran = Counter({(tasks[key]["task_params"], OURS): 1 for key in due | {repeating}})
    assert database.notes() == ran, "each due row ran once, with its arguments"
    left, done = database.rows(TASKS), database.rows(HISTORY)
    for key in keys["rest"]:
        assert left.pop(key) == tasks[key]
    for key in history:
        assert done.pop(key) == history[key]

    # What ran is in the history as it was called, with one attempt more.
    changed = {"id", "run_at", "attempts", "locked_by", "locked_at"}
    expected = {tasks[key]["task_params"]: tasks[key] for key in due | {repeating}}
    assert len(done) == len(expected)
    for row in done.values():
        called = expected[row["task_params"]]
        assert _but(row, changed) == _but(called, changed)
        assert row["attempts"] == called["attempts"] + 1
        assert row["locked_at"] <= row["run_at"]

    # The call that cannot be made is tried again later, as the predecessor would.
    failed = left.pop(odd)
    assert failed["attempts"] == 1
    assert "TypeError" in failed["last_error"]
    changed = {"run_at", "attempts", "last_error"}
    assert _but(failed, changed) == _but(tasks[odd], changed)

    ((new, following),) = left.items()
    assert new > max(tasks)
    assert _but(following, OF_A_RUN) == _but(tasks[repeating], OF_A_RUN)
    # It was due five hours and ten minutes ago, and every hour since.
    assert _time(following) - _time(tasks[repeating]) == timedelta(hours=6)


def _but(row: dict, names: set[str]) -> dict:  # type: ignore[type-arg]
    return {name: value for name, value in row.items() if name not in names}


def _time(row: dict) -> datetime:  # type: ignore[type-arg]
    """When the row is due; SQLite hands out text."""
    return datetime.fromisoformat(str(row["run_at"]))


def test_calls_store_and_find_the_same_bytes_as_with_the_predecessor(database: Database) -> None:
    database.manage(NEW, "migrate")
    old = database.call(OLD, "store_calls")
    before, found, after = database.call(NEW, "find_calls")
    assert before == found == after == len(old)
    assert database.call(NEW, "store_calls") == old
    assert database.call(OLD, "find_calls") == [before, found, after]


def test_what_old_code_enqueues_on_our_schema_is_run_and_recorded_like_its_own(
    database: Database,
) -> None:
    database.manage(OLD, "migrate")
    mine, theirs = database.call(OLD, "enqueue_in_full", 2)
    assert database.call(OLD, "run_one")
    (recorded,) = database.rows(HISTORY).values()

    database.manage(NEW, "migrate")  # the web servers still run the old code
    database.query(f"DELETE FROM background_task WHERE id = {theirs}")
    database.query(f"UPDATE background_task SET id = id WHERE id = {mine}")
    (enqueued,) = database.call(OLD, "enqueue_in_full", 1)
    stored = database.rows(TASKS)[enqueued]
    database.work(NEW, lambda: enqueued not in database.rows(TASKS))
    done = database.rows(HISTORY)[max(database.rows(HISTORY))]
    assert done["task_params"] == stored["task_params"]
    different = OF_A_RUN | {"repeat_until"}
    assert _but(done, different) == _but(recorded, different)
    assert done["repeat_until"] == stored["repeat_until"]
    assert done["locked_by"].isdecimal()
    assert _time(done) >= datetime.fromisoformat(str(done["locked_at"])) >= _time(stored)
    assert database.notes() == {(stored["task_params"], OLD): 1, (stored["task_params"], OURS): 1}
    assert database.call(NEW, "public_ids") == [False, True]


def test_workers_of_both_packages_run_each_of_500_tasks_once(
    database: Database, vendor: str
) -> None:
    database.manage(OLD, "migrate")
    database.manage(NEW, "migrate")
    if vendor == "sqlite":  # two writers need the write-ahead log, whichever package they run
        database.query("PRAGMA journal_mode=WAL")
    database.call(OLD, "enqueue_many", 500)
    with database.worker(OLD):
        wait_for_first_note(database)
        database.work(NEW, lambda: not database.rows(TASKS))
    notes = database.notes()
    assert Counter(int(text) for text, _ in notes.elements()) == dict.fromkeys(range(500), 1)
    assert {worker for _, worker in notes} == {OLD, OURS}
    done = database.rows(HISTORY).values()
    assert {json.loads(row["task_params"])[0][0] for row in done} == set(range(500))
    assert len(done) == 500
    assert {(row["attempts"], row["last_error"], row["failed_at"]) for row in done} == {
        (1, "", None)
    }


def test_the_predecessor_can_be_put_back_and_ours_again(database: Database) -> None:
    database.manage(NEW, "migrate")
    database.call(NEW, "fill_for_the_way_back")

    assert "No migrations to apply" in database.manage(OLD, "migrate")
    database.manage(OLD, "check")
    assert database.call(OLD, "make_due", "failing") == 1
    database.call(OLD, "enqueue", "theirs")
    database.work(OLD, lambda: len(database.rows(TASKS)) == 3 and attempts(database) == 2)
    ran_by_theirs = {'[["ours", 1], {}]', '[["theirs"], {}]', '[["chain"], {}]'}
    assert database.notes() == {(text, OLD): 1 for text in ran_by_theirs}

    database.call(OLD, "enqueue", "left by theirs")
    assert database.call(OLD, "make_due", "failing") == 1
    assert database.call(OLD, "make_due", "note") == 3
    assert "No migrations to apply" in database.manage(NEW, "migrate")
    database.work(NEW, lambda: len(database.rows(TASKS)) == 2 and attempts(database) == 3)
    ran_by_ours = {'[["left by theirs"], {}]', '[["chain"], {}]', '[["later"], {}]'}
    assert database.notes() == {(text, OLD): 1 for text in ran_by_theirs} | {
        (text, OURS): 1 for text in ran_by_ours
    }
    chain = [row for row in database.rows(TASKS).values() if row["repeat"]]
    assert [(row["task_params"], row["queue"]) for row in chain] == [('[["chain"], {}]', "mail")]
    assert database.call(NEW, "owned")[2] == 1, "the history of both packages knows the owner"


def test_a_declared_chain_stays_one_with_the_predecessor_and_with_ours_again(
    database: Database,
) -> None:
    database.manage(NEW, "migrate")
    keys = []
    for which, name in [(NEW, OURS), (OLD, OLD), (NEW, OURS)]:
        database.call(which, "make_due", "hourly", TEST_EVERY="1")
        ran = database.notes() + Counter({('[["hourly"], {}]', name): 1})

        def came_back(before: list[int] = keys, ran: Counter[tuple[str, str]] = ran) -> bool:
            waiting = database.rows(TASKS)
            return database.notes() == ran and bool(waiting) and not waiting.keys() & set(before)

        database.work(which, came_back, TEST_EVERY="1")
        (row,) = database.rows(TASKS).values()
        assert (row["repeat"], row["locked_by"]) == (3600, None)
        keys.append(row["id"])


def attempts(database: Database) -> int:
    """How often the task that always fails was tried, or 0 while it runs."""
    for row in database.rows(TASKS).values():
        if row["task_name"].endswith("failing") and row["locked_by"] is None:
            return int(row["attempts"])
    return 0


def wait_for_first_note(database: Database) -> None:
    wait_until(database.notes)
