"""Evaluate a checkpoint. Every image of the split counts once, with any number of processes.

python eval.py checkpoint=outputs/quickstart/checkpoints/last.pt
python eval.py model=timm model.name=resnet50 checkpoint=resnet50.safetensors data.root=/path/to/imagenet
python eval.py checkpoint=PATH sets.imagenet=DIR sets.real=DIR sets.v2=DIR sets.a=DIR sets.r=DIR sets.sketch=DIR
python eval.py model=deit_small benchmark=true
"""

# Data workers import this file, too. So modules that only the main process needs are imported inside the functions.


def task(composed, choices, overrides, swept):
    from engine.checkpoints.saved_model import open_trained
    from engine.evaluation.benchmark import measure_speed
    from engine.evaluation.evaluate import evaluate_checkpoint
    from engine.options.arguments import texts_by_name
    from engine.options.paths import resolve_paths
    from engine.options.settings import eval_settings

    resolve_paths(composed)
    trained = open_trained(composed.checkpoint, not composed.benchmark, "model" in texts_by_name(overrides))
    settings = eval_settings(composed, trained, overrides, swept)
    evaluate = measure_speed if settings.benchmark else evaluate_checkpoint
    return lambda: evaluate(settings, trained)


if __name__ == "__main__":
    from engine.prerequisites import refuse_unfit_machine
    from engine.processes.signals import die_of_ctrl_c

    die_of_ctrl_c()  # the imports below take seconds
    refuse_unfit_machine()
    from engine.checkpoints.saved_model import implied_family
    from engine.options.cli import launch

    launch("eval", task, implied_family)
