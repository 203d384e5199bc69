"""Which image comes next, and how it is cropped and changed: pure functions of seed, epoch and position."""
