"""What is measured: each workload is a function from a place to samples."""

from collections.abc import Callable, Iterator

from figures import Sample
from place import Place

from workloads.backlog import backlog
from workloads.queueing import bulk, drain, enqueue, pickup
from workloads.recovery import recovery
from workloads.resources import idle, memory

Workload = Callable[[Place], Iterator[Sample]]

# Those that every system has a part in, and those that only this package is asked.
COMMON: dict[str, Workload] = {
    "enqueue": enqueue,
    "bulk": bulk,
    "drain": drain,
    "pickup": pickup,
}
OURS: dict[str, Workload] = {
    "backlog": backlog,
    "memory": memory,
    "recovery": recovery,
    "idle": idle,
}
WORKLOADS = COMMON | OURS
# What is over in a moment is measured so many times in a pass, of all systems in turn.
ROUNDS = {"enqueue": 7}
