"""The demo does what its page and the README say."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_process import Demo, lives
from support import wait_until

pytestmark = pytest.mark.xdist_group("demo")  # some share a server

FORM = "application/x-www-form-urlencoded"
TASKS = "/api/v1/tasks/"


def state_of(demo: Demo, url: str) -> Any:
    return demo.request("GET", url.removeprefix(f"http://127.0.0.1:{demo.port}"))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, b"message=Hola amigos!"),
        ("application/json", b'{"message": "Hola amigos!"}'),
        (
            "multipart/form-data; boundary=x",
            (
                b'--x\r\nContent-Disposition: form-data; name="message"\r\n\r\n'
                b"Hola amigos!\r\n--x--\r\n"
            ),
        ),
    ],
)
@pytest.mark.parametrize("path", [TASKS, TASKS.rstrip("/")])
def test_a_message_is_accepted_and_its_state_goes_to_done(
    shared_demo: Demo, path: str, content_type: str, body: bytes
) -> None:
    status, answer, headers = shared_demo.request("POST", path, body, Content_Type=content_type)
    assert status == 202
    assert answer["state"] == "waiting"
    assert headers["Location"] == answer["url"]
    done = wait_until(
        lambda: (found := state_of(shared_demo, answer["url"])[1])["state"] == "done" and found
    )
    assert done["id"] == answer["id"]
    assert done["arguments"] == ["Hola amigos!"]
    assert done["attempts"] == 1
    _, overview, _ = shared_demo.request("GET", "/api/v1/overview/")
    assert overview["messages"][0]["text"] == "Hola amigos!"


@pytest.mark.parametrize(
    ("method", "path", "content_type", "body", "status", "says"),
    [
        ("POST", TASKS, FORM, b"", 400, "missing"),
        ("POST", TASKS, "", b"", 400, "missing"),
        ("POST", TASKS, FORM, b"mesage=hi", 400, "missing"),
        ("POST", TASKS, FORM, b"message=", 400, "empty"),
        ("POST", TASKS, FORM, b"message=+%09+", 400, "empty"),
        ("POST", TASKS, FORM, b"message=" + b"x" * 201, 400, "201 characters"),
        ("POST", TASKS, FORM, b"message=" + b"x" * 4_000_000, 400, "cannot be read"),
        ("POST", TASKS, FORM, b"message=a%00b", 400, "cannot be stored"),
        ("POST", TASKS, "application/json", b"{", 400, "cannot be read"),
        ("POST", TASKS, "application/json", b"[1]", 400, "missing"),
        ("POST", TASKS, "application/json", b'{"message": 5}', 400, "not text"),
        ("POST", TASKS, "application/json", b'{"message": "\\ud800"}', 400, "cannot be stored"),
        ("POST", TASKS, "application/json", b"\xff", 400, "cannot be read"),
        ("POST", TASKS, "application/json", b"[" * 100_000, 400, "cannot be read"),
        ("POST", TASKS, "multipart/form-data", b"x", 400, "cannot be read"),
        ("POST", TASKS, "text/plain", b"message=hi", 415, "text/plain"),
        ("GET", TASKS, "", b"", 405, "GET"),
        ("PUT", TASKS, FORM, b"message=hi", 405, "PUT"),
        ("DELETE", TASKS, "", b"", 405, "DELETE"),
        ("GET", f"{TASKS}00000000-0000-7000-8000-000000000000", "", b"", 404, "no task"),
        ("POST", f"{TASKS}00000000-0000-7000-8000-000000000000", FORM, b"", 405, "POST"),
        ("GET", f"{TASKS}1", "", b"", 404, "nothing"),
        ("GET", "/api/v2/", "", b"", 404, "nothing"),
    ],
)
def test_a_bad_request_is_refused_in_json_that_says_why(
    shared_demo: Demo,
    method: str,
    path: str,
    content_type: str,
    body: bytes,
    status: int,
    says: str,
) -> None:
    headers = {"Content_Type": content_type} if content_type else {}
    found, answer, answered = shared_demo.request(method, path, body or None, **headers)
    assert (found, answered["Content-Type"]) == (status, "application/json")
    assert says in answer["error"]
    if status in (400, 415):
        assert "1 to 200 characters" in answer["expected"]
    if status == 405:
        assert answered["Allow"]


def test_an_utf8_message_comes_back_as_it_was(shared_demo: Demo) -> None:
    body = "message=¿Qué tal, 日本? 🎉".encode()
    _, answer, _ = shared_demo.request("POST", TASKS, body, Content_Type=FORM)
    assert state_of(shared_demo, answer["url"])[1]["arguments"] == ["¿Qué tal, 日本? 🎉"]


def test_the_counter_counts_by_itself_and_one_run_waits_after_several_starts(
    demo: Callable[..., Demo],
) -> None:
    for start in range(1, 4):
        running = demo().ready()

        def overview(running: Demo = running) -> Any:
            return running.request("GET", "/api/v1/overview/")[1]

        wait_until(lambda overview=overview: overview()["counter"] >= 1)
        waiting = [task for task in overview()["tasks"] if task["state"] != "done"]
        assert len(waiting) == 1, f"start {start}"
        running.stop()


@pytest.mark.parametrize("to_the_group", [True, False], ids=["Ctrl-C", "kill"])
def test_the_demo_stops_both_of_its_processes(
    demo: Callable[..., Demo], to_the_group: bool
) -> None:
    running = demo().ready()
    assert len(running.children) == 2
    if to_the_group:
        os.killpg(running.process.pid, signal.SIGINT)
    else:
        running.process.terminate()
    assert running.process.wait(30) == 0, running.text()
    assert "Stopped." in running.text()
    assert "Traceback" not in running.text()
    assert not any(map(lives, running.children))


def test_a_worker_that_dies_ends_the_demo_with_an_error(demo: Callable[..., Demo]) -> None:
    running = demo().ready()
    os.kill(running.worker(), signal.SIGKILL)
    assert running.process.wait(30) == 1
    assert "the worker has ended by itself" in running.text()
    assert not any(map(lives, running.children))


def test_once_prints_both_tables_before_and_after(demo: Callable[..., Demo]) -> None:
    running = demo("--once")
    assert running.process.wait(60) == 0, running.text()
    before, after = running.text().split("After:")
    for part in (before, after):
        assert "background_task (" in part
        assert "background_task_completedtask (" in part
    waiting, history = after.split("background_task_completedtask (")
    assert "Hola amigos!" in before.split("background_task_completedtask (")[0]
    assert "Hola amigos!" in history
    assert "demo_task" not in waiting


def test_a_port_that_is_taken_is_an_error_with_a_remedy(
    shared_demo: Demo, demo: Callable[..., Demo]
) -> None:
    second = demo(port=shared_demo.port)
    assert second.process.wait(30) == 1
    assert "choose another: --port N" in second.text()


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--port", "70000"], ["--por"], ["extra"]])
def test_wrong_options_are_refused(demo: Callable[..., Demo], arguments: list[str]) -> None:
    running = demo(*arguments)
    assert running.process.wait(30) == 2
    assert "usage: scripts/demo" in running.text()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    browser_path = Path("/usr/bin/chromium")
    if not browser_path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed")
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    flags = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags.split())
        yield browser.new_page()
        browser.close()


def test_the_page_shows_a_message_on_its_way_to_done_and_as_text(
    shared_demo: Demo, page: Any
) -> None:
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto(f"http://127.0.0.1:{shared_demo.port}/")
    os.kill(shared_demo.worker(), signal.SIGSTOP)
    try:
        page.get_by_role("textbox", name="Message").fill("<script>alert('hola')</script>")
        page.get_by_role("button", name="Enqueue").click()
        row = page.locator("tr", has_text="<script>").first
        row.get_by_text("waiting").wait_for()
    finally:
        os.kill(shared_demo.worker(), signal.SIGCONT)
    row.get_by_text("done").wait_for()
    page.locator("#message-rows li", has_text="<script>alert('hola')</script>").wait_for()
    assert errors == []


def test_the_admin_shows_both_tables(shared_demo: Demo, page: Any) -> None:
    page.goto(f"http://127.0.0.1:{shared_demo.port}/admin/background_task/task/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("admin")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("link", name="api.tasks.contador_task").first.wait_for()
    page.goto(f"http://127.0.0.1:{shared_demo.port}/admin/background_task/completedtask/")
    assert page.get_by_role("link", name="api.tasks.contador_task").count() >= 1
