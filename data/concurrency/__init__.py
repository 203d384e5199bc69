"""Processes, threads, and waiting for what may never come."""
