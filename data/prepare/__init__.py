"""Preparing ImageNet: official tar files or an image folder become class folders or shards, with their index."""

from data.prepare.task import Result, Task, prepare

__all__ = ["Result", "Task", "prepare"]
