"""Train a vision transformer without warm-up.

python train.py experiment=quickstart
torchrun --nproc-per-node=8 train.py model=lipsformer_swin_tiny data.root=/path/to/imagenet
python train.py --help
"""

# Data workers import this file, too. So modules that only the main process needs are imported inside the functions.


def task(composed, choices, overrides, swept):
    from engine.options.settings import train_settings
    from engine.training_run import train

    settings = train_settings(composed, choices, overrides, swept)
    return lambda: train(settings)


if __name__ == "__main__":
    from engine.prerequisites import refuse_unfit_machine
    from engine.processes.signals import die_of_ctrl_c

    die_of_ctrl_c()  # the imports below take seconds
    refuse_unfit_machine()
    from engine.options.cli import launch
    from engine.options.recipe import implied_recipe

    launch("train", task, implied_recipe)
