"""A process is taken for dead only where its number means that process."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from background_task.identity import has_ended, this_worker

HOST, NUMBER, TOKEN = this_worker().split(":")
PLACE = TOKEN[:-8]
NOBODY = "4194999"  # above the largest process number


@pytest.mark.parametrize(
    ("worker_id", "expected"),
    [
        (this_worker(), False),
        (f"{HOST}:{NUMBER}:{PLACE}00000000", True),  # of a process that had this number before
        (f"{HOST}:1:{PLACE}00000000", False),
        (f"{HOST}:{NOBODY}:{PLACE}00000000", True),
        (f"{HOST}:{NOBODY}:ffff00000000", None),  # the host name of another machine is the same
        (f"{HOST}:{NOBODY}:00000000", None),
        (f"elsewhere:{NOBODY}:{PLACE}00000000", None),
        ("a name of its own", None),
        ("a:b:c", None),
        ("", None),
        (None, None),
    ],
    ids=range(11),
)
def test_whether_a_worker_has_ended(worker_id: str | None, expected: bool | None) -> None:
    assert has_ended(worker_id) is expected


def test_a_container_of_the_same_host_name_is_another_place() -> None:
    code = "from background_task.identity import this_worker; print(this_worker())"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no process namespace can be had here: {found.stderr.strip()}")
    host, _, _ = found.stdout.split(":")
    assert (host, has_ended(found.stdout.strip())) == (HOST, None)
