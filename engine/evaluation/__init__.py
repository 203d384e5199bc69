"""Score a model on images: ``scoring.py`` also in validations of a training run, ``evaluate.py`` for ``eval.py``."""
