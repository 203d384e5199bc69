"""Training and evaluation. Uses all the other packages.

- ``options/``: from the words of a command to checked settings;
- this folder: a training run, from ``training_run.py``, which builds its parts, to ``loop.py`` and ``step.py``;
- ``checkpoints/``: what a run keeps of a model;
- ``processes/``: several processes that train together, and the signals that end them;
- ``measuring/``: what a step costs;
- ``callbacks/``: what watches a run;
- ``evaluation/``: scores and speed of a model.
"""
