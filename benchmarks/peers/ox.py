"""django-ox."""

from django_ox.bulk import enqueue_many
from program import become

from peers.project import Project


class Ox(Project):
    """Stores by the door of Django, or in bulk by its own."""

    app = "django_ox"

    def enqueue_many(self, count: int) -> None:
        enqueue_many(self.begin, [((1,), {})] * count)

    def work(self) -> None:
        become("-m", "django", "ox_worker")


program = Ox
