"""Augmentation of a batch on the device: the host draws operations, the device does the arithmetic."""
