"""Score a model on images. ``scoring.py`` is for validations of a training run, too; ``run.py`` is for ``eval.py``."""
