"""A name that other histories hold; it does nothing here.

Makemigrations wrote it into the predecessor's package on Django 6, and pip leaves it there.
The three known histories are branches beside each other, so that each of them is consistent;
0005 joins them.
"""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("background_task", "0002_auto_20170927_1109")]

    operations = []
