import os
from importlib import import_module

from django.contrib import admin
from django.urls import path

# As views do that enqueue: the web server imports a tasks.py with the URLs.
for module in os.environ.get("TEST_IMPORTED_BY_URLS", "").split():
    import_module(module)

urlpatterns = [path("admin/", admin.site.urls)]
