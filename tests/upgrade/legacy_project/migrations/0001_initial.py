from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    # As public projects write it: the name of the predecessor's last migration.
    dependencies = [("background_task", "0002_auto_20170927_1109")]
    operations = [
        migrations.CreateModel(
            "Note",
            fields=[
                ("id", models.BigAutoField(primary_key=True)),
                ("text", models.TextField()),
                ("worker", models.CharField(max_length=20)),
            ],
        ),
        migrations.CreateModel(
            "Watch",
            fields=[
                ("id", models.BigAutoField(primary_key=True)),
                (
                    "task",
                    models.ForeignKey("background_task.Task", models.SET_NULL, null=True),
                ),
                (
                    "done",
                    models.ForeignKey("background_task.CompletedTask", models.CASCADE, null=True),
                ),
            ],
        ),
    ]
