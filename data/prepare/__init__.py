"""Preparing ImageNet: official tar files, an image folder or parquet files become class folders,
shards or WebDataset tar files, with their index.
"""

from data.prepare.task import Result, Task, prepare

__all__ = ["Result", "Task", "prepare"]
