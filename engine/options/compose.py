"""The settings of trainings that another program will start, so that it finds their mistakes early."""

from collections.abc import Sequence

import hydra
from hydra.errors import HydraException
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from engine.errors import UserError
from engine.options.cli import prepared
from engine.options.config import CONF, TrainConfig, register
from engine.options.explain import explain
from engine.options.recipe import implied_recipe
from engine.options.settings import train_settings


def settings_of(options: Sequence[str]) -> TrainConfig:
    """Return the settings with which ``train.py OPTIONS`` would train.

    Raises:
        UserError: if ``train.py`` would refuse an option; the same line that it would print.
    """
    register()
    try:
        options = prepared(list(options), "train", implied_recipe)
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose("train", overrides=options, return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed["hydra"]
        return train_settings(composed, choices, options)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(explain(error, "train", options)) from error
