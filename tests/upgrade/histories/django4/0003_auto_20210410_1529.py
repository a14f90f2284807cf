from django.db import migrations

from histories import BIG


class Migration(migrations.Migration):
    dependencies = [("background_task", "0002_auto_20170927_1109")]
    operations = BIG
