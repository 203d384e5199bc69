"""Preparing ImageNet: its files, in any form, become class folders, shards or WebDataset tar files with their index."""

from data.prepare.task import Result, Task, prepare

__all__ = ["Result", "Task", "prepare"]
