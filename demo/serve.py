"""Starts the web server and the worker of the demo together, and stops both together.

``--once`` sends one message, waits until it is saved, and prints both tables before and after.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

DEMO = Path(__file__).resolve().parent
MESSAGE = "Hola amigos!"
PATIENCE = 60.0


class Stopped(Exception):  # noqa: N818 - a wish, not an error
    """A signal asked the demo to stop."""


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


def main():
    """Parse the command line, run, and return the exit code."""
    options = parse()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        if options.once:
            with tempfile.TemporaryDirectory(prefix="demo-") as folder:
                once(options.port, folder)
        else:
            serve(options.port)
    except Stopped:
        print("Stopped.")
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def parse():
    """Return the options."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument(
        "--port", type=port, default=8000, help="the port of the web server (default: 8000)"
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="send one message, wait for it, print the two tables before and after, and exit",
    )
    return parser.parse_args()


def port(text):
    """Return a port number, or raise what argparse shows."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 1 to 65535")
    return int(text)


def stop(number, frame):
    """Leave whatever goes on, once: what cleans up must not be interrupted."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise Stopped


def serve(port):
    """Run both until a signal comes or one of them ends."""
    data = os.environ.get("DEMO_DATA", str(DEMO / "data"))
    prepare(port, data)
    with started("web server", web(port), data) as server:
        wait_for_server(port, server)
        with started("worker", WORKER, data) as worker:
            print(
                f"""
  The page      http://localhost:{port}/
  The API       curl -d message="{MESSAGE}" http://localhost:{port}/api/v1/tasks/
  The admin     http://localhost:{port}/admin/   (user admin, password admin)

Ctrl-C stops the web server and the worker.
""",
                flush=True,
            )
            while True:
                for child in (server, worker):
                    if child.poll() is not None:
                        raise DemoError(f"the {child.name} has ended by itself ({child.poll()}).")
                time.sleep(0.2)


def once(port, data):
    """Send one message and see it through."""
    prepare(port, data)
    with started("web server", web(port), data, subprocess.DEVNULL) as server:
        wait_for_server(port, server)
        url = f"http://127.0.0.1:{port}/api/v1/tasks/"
        print(f'$ curl -d message="{MESSAGE}" http://localhost:{port}/api/v1/tasks/')
        task = ask(url, urllib.parse.urlencode({"message": MESSAGE}).encode())
        print(json.dumps(task, indent=2))
        print("\nBefore: the worker does not run yet, so the task is stored and waits.")
        manage(data, "print_tables")
        with started("worker", WORKER, data) as worker:
            deadline = time.monotonic() + PATIENCE
            while (state := ask(task["url"]))["state"] != "done":
                if state["state"] == "failed" or worker.poll() is not None:
                    raise DemoError(f"the task was not done: {state}")
                if time.monotonic() > deadline:
                    raise DemoError(f"the task was not done within {PATIENCE:.0f} s: {state}")
                time.sleep(0.1)
        print("After: the worker has run it.")
        manage(data, "print_tables")


WORKER = ["process_tasks", "--sleep", "0.5"]


def web(port):
    """Return the command of the web server, which is Django's own and only fit for a demo."""
    return ["runserver", "--noreload", "--insecure", f"127.0.0.1:{port}"]


def prepare(port, data):
    """Make sure that the port is free, the tables are there, and the admin has a user."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DemoError(
                f"port {port} cannot be used ({error.strerror}); choose another: --port N"
            ) from None
    Path(data).mkdir(parents=True, exist_ok=True)
    manage(data, "migrate", "--verbosity", "0", "--skip-checks")
    manage(data, "make_admin")


def environment(data):
    """Return the environment of a child."""
    settings = {"DEMO_DATA": str(data), "DJANGO_SETTINGS_MODULE": "demo_project.settings"}
    return {**os.environ, **settings, "PYTHONUNBUFFERED": "1"}


def manage(data, *arguments):
    """Run a management command to its end."""
    command = [sys.executable, str(DEMO / "manage.py"), *arguments]
    sys.stdout.flush()
    if subprocess.run(command, env=environment(data), check=False).returncode:
        raise DemoError(f"manage.py {' '.join(arguments)} has failed.")


@contextlib.contextmanager
def started(name, arguments, data, output=None):
    """Run a management command meanwhile, and stop it in the end.

    It gets a session of its own: Ctrl-C in the terminal shall reach this process alone, since the
    worker takes a second signal for the wish not to wait for its task.
    """
    child = subprocess.Popen(
        [sys.executable, str(DEMO / "manage.py"), *arguments],
        env=environment(data),
        start_new_session=True,
        stdout=output,
    )
    child.name = name
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            child.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for_server(port, server):
    """Return when the web server answers."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise DemoError("the web server did not start.")


def ask(url, body=None):
    """Return the JSON that the API answers with."""
    try:
        with urllib.request.urlopen(url, body, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise DemoError(f"{url} answered {error.code}: {error.read().decode()}") from None


if __name__ == "__main__":
    sys.exit(main())
