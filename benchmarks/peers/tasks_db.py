"""django-tasks-db, the first database backend of ``django.tasks``."""

from program import become

from peers.project import Project


class TasksDB(Project):
    """Stores by the door of Django."""

    app = "django_tasks_database"

    def work(self) -> None:
        become("-m", "django", "db_worker")


program = TasksDB
