"""A worker may be killed at any moment: before and after every statement that it executes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db.models import Count
from project.models import Note
from support import Child

from background_task.models import CompletedTask, Task
from background_task.states import State

# Every so many statements; the next run may begin at another one.
STEP = 8


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(400)
@pytest.mark.parametrize("threads", ["1", "3"])
def test_whenever_a_worker_is_killed_every_task_ends_exactly_once(
    command: Callable[..., Child], tmp_path: Path, threads: str
) -> None:
    journal = tmp_path / "journal"
    first = random.randint(1, STEP)  # as pytest-randomly's seed has it
    child = command(
        *map(str, (first, STEP)),
        *("--threads", threads),
        TEST_MODULE="project.dying",
        TEST_JOURNAL=str(journal),
    )
    assert child.wait(360) == 0, child.text()
    killed = int(child.text().split()[-1])
    assert killed > 12
    rounds = [first + each * STEP for each in range(killed + 1)]

    expected = {
        f"{number}-{each}"
        for number in rounds
        for each in [*range(70), "async-0", "async-1", "async-2", "chain"]
    }
    assert set(Counter(journal.read_text().split())) == expected
    ended = Counter(
        (json.loads(params)[0][0], state)
        for params, state in CompletedTask.objects.values_list("task_params", "state")
    )
    assert ended == Counter(
        [(text, State.SUCCESSFUL) for text in expected]
        + [(f"{number}-atomic", State.SUCCESSFUL) for number in rounds]
        + [(f"{number}-raises", State.FAILED) for number in rounds]
    )
    # None is to blame for what it was killed in.
    assert not CompletedTask.objects.exclude(attempts=1).exists()
    ids = CompletedTask.objects.values("result_id").annotate(count=Count("id"))
    assert not ids.filter(count__gt=1).exists()

    next_of_chains = Task.objects.all()
    assert next_of_chains.count() == len(rounds)
    assert not next_of_chains.exclude(state=State.SCHEDULED, locked_by=None).exists()
    # The effects of an atomic task go with its success, or not at all.
    assert Note.objects.filter(text__contains="atomic").count() == len(rounds)
