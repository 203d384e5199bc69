"""Training and evaluation. Uses all the other packages.

- ``options/``: from the words of a command to checked settings;
- this folder: a training run, from ``training_run.py``, which builds its parts, to ``loop.py`` and ``step.py``;
- ``checkpoints/``: save, load and export;
- ``processes/``: the processes of a run and what they tell each other;
- ``measuring/``: time, memory and FLOPs;
- ``callbacks/``: what watches a run;
- ``evaluation/``: scores and speed of a model.
"""
