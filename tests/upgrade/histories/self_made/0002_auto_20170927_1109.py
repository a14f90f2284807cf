from importlib import import_module

Migration = import_module("background_task.migrations.0002_auto_20170927_1109").Migration
