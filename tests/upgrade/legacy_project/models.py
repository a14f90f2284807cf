"""What the project stores, and how it refers to the tasks."""

from django.db import models


class Note(models.Model):
    text = models.TextField()
    worker = models.CharField(max_length=20)


class Watch(models.Model):
    task = models.ForeignKey("background_task.Task", null=True, on_delete=models.SET_NULL)
    done = models.ForeignKey("background_task.CompletedTask", null=True, on_delete=models.CASCADE)
