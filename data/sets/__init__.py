"""Splits and evaluation sets: images with their labels."""
