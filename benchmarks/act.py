"""Let a system act, in a process of its own.

``python -m act MODULE prepare | enqueue N | bulk N | fill N | pickup N GAP | work``; the module
names its class ``program``.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from importlib import import_module

import databases
from program import Program


def main() -> None:
    """Do what the command line says."""
    module, act, *numbers = sys.argv[1:]
    program: Program = import_module(module).program()
    if act == "enqueue":
        program.empty()
        program.enqueue()
        print(_rate(program.enqueue_one_by_one, int(numbers[0])))
    elif act == "bulk":
        program.empty()
        print(_rate(program.enqueue_many, int(numbers[0])))
    elif act == "fill":
        program.empty()
        program.enqueue_many(int(numbers[0]))
        databases.settle()
    elif act == "pickup":
        _pickup(program.enqueue, int(numbers[0]), float(numbers[1]))
    else:
        getattr(program, act)(*map(int, numbers))


def _rate(act: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    act(count)
    return count / (time.perf_counter() - began)


def _pickup(enqueue: Callable[[], None], count: int, gap: float) -> None:
    """Store tasks at random moments, and print when each call has returned."""
    for _ in range(count):
        time.sleep(random.uniform(0.1, 1.0) * gap)
        enqueue()
        print(time.time_ns(), flush=True)


if __name__ == "__main__":
    main()
