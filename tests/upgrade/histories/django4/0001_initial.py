from importlib import import_module

Migration = import_module("background_task.migrations.0001_initial").Migration
