"""dj-queue: three threads in a process of their own, beside a supervisor and two others."""

from program import become

from peers.project import Project


class DjQueue(Project):
    """Stores by the door of Django, or in bulk by its own."""

    app = "dj_queue"

    def enqueue_many(self, count: int) -> None:
        self.begin.get_backend().enqueue_all([(self.begin, (1,), {})] * count)

    def work(self) -> None:
        become("-m", "django", "dj_queue")


program = DjQueue
