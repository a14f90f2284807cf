"""django-background-tasks, whose package has the same name as this one."""

from program import become

from peers.project import Project


class Predecessor(Project):
    """Stores by calling the decorated function."""

    app = "background_task"

    def enqueue(self) -> None:
        self.begin(1)

    def work(self) -> None:
        become("-m", "django", "process_tasks")


program = Predecessor
