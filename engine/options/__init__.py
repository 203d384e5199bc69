"""From the words of a command to the checked settings of a run, with one line for each mistake.

``cli.py`` is the way in: it composes the options with Hydra. ``config.py`` declares them, ``rules.py`` checks them, and
``settings.py`` returns the settings.
"""
