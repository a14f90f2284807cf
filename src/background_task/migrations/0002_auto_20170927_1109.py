"""The predecessor's second migration: shrinks two columns where 1.1.x had made them longer."""

from django.db import migrations, models

QUEUE = models.CharField(blank=True, db_index=True, max_length=190, null=True)
TASK_NAME = models.CharField(db_index=True, max_length=190)


class Migration(migrations.Migration):
    dependencies = [("background_task", "0001_initial")]

    operations = [
        migrations.AlterField("completedtask", "queue", QUEUE.clone()),
        migrations.AlterField("completedtask", "task_name", TASK_NAME.clone()),
        migrations.AlterField("task", "queue", QUEUE.clone()),
        migrations.AlterField("task", "task_name", TASK_NAME.clone()),
    ]
