"""A router that keeps the tasks apart from the rest, and reads them from a replica."""


class QueueRouter:
    def db_for_read(self, model, **hints):
        return "replica" if model._meta.app_label == "background_task" else "default"

    def db_for_write(self, model, **hints):
        return "queue" if model._meta.app_label == "background_task" else "default"

    def allow_relation(self, first, second, **hints):
        return True
