"""Ports for processes that meet later."""

import itertools
import os
import socket

FIRST, COUNT = 20000, 12000  # below those that the kernel gives to connections: none takes one before it is needed
_numbers = itertools.count(os.getpid())  # tests in other processes try others


def free_port() -> int:
    """A port of this machine that nobody uses and no other test gets."""
    for number in _numbers:
        port = FIRST + number % COUNT
        with socket.socket() as tried:
            try:
                tried.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("the numbers do not end")
