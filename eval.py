"""Evaluate a checkpoint: every image of the split once, over all processes.

python eval.py checkpoint=outputs/quickstart/checkpoints/last.pt
python eval.py model=timm model.name=resnet50 checkpoint=resnet50.safetensors data.root=/path/to/imagenet
"""

# Data workers import this file too: what only the main process needs is imported where it is used.


def task(composed, choices, overrides, many) -> None:
    from engine.eval import evaluate_checkpoint, open_trained
    from engine.settings import eval_settings

    trained = open_trained(composed.checkpoint)
    evaluate_checkpoint(eval_settings(composed, trained, overrides), trained)


if __name__ == "__main__":
    from engine.cli import launch
    from engine.eval import implied_family

    launch("eval", task, implied_family)
