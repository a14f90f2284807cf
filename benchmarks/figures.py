"""What a run of the benchmarks has found."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """One value: of which figure, of which system, in which unit."""

    figure: str
    system: str
    value: float
    unit: str = "tasks/s"


@dataclass
class Figure:
    """The values of one figure, one or more for each pass."""

    database: str
    workload: str
    figure: str
    system: str
    kind: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The value that stands in the tables."""
        return statistics.median(self.values)


@dataclass
class Results:
    """All figures of a run, and what could not be measured, with the reason."""

    machine: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, database: str, workload: str, kind: str, samples: Iterable[Sample]) -> None:
        """Take values in, as they come."""
        for sample in samples:
            self._figure(database, workload, kind, sample).values.append(sample.value)

    def _figure(self, database: str, workload: str, kind: str, sample: Sample) -> Figure:
        for figure in self.figures:
            known = (figure.database, figure.workload, figure.figure, figure.system)
            if known == (database, workload, sample.figure, sample.system):
                return figure
        figure = Figure(database, workload, sample.figure, sample.system, kind, sample.unit)
        self.figures.append(figure)
        return figure

    def of(self, database: str, figure: str, system: str) -> Figure | None:
        """Return one figure, if it was measured."""
        for known in self.figures:
            if (known.database, known.figure, known.system) == (database, figure, system):
                return known
        return None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON can tell it."""
        figures = [{**asdict(figure), "median": figure.median} for figure in self.figures]
        return {"machine": self.machine, "left_out": self.left_out, "figures": figures}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Results:
        """Return what :meth:`to_json` has told."""
        names = Figure.__dataclass_fields__
        figures = [Figure(**{name: row[name] for name in names}) for row in found["figures"]]
        return cls(found["machine"], figures, found["left_out"])
