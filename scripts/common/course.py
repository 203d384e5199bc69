"""What a run has done so far, and the reference that finished runs make."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.json_text import to_json
from engine.options.plain import differences
from engine.reference import Curve, setting_of
from engine.run_dir import RunDirectory


@dataclass(frozen=True)
class Course:
    """What a run has done so far.

    Attributes:
        folder: folder of the run.
        seed: its seed.
        setting: see :func:`engine.reference.setting_of`.
        curve: its curve.
    """

    folder: Path
    seed: int
    setting: dict[str, Any]
    curve: Curve

    @classmethod
    def of(cls, folder: Path) -> "Course":
        """Read a run.

        Raises:
            UserError: if ``config.yaml`` is missing or damaged, or the run has no validation after a whole epoch yet.
        """
        directory = RunDirectory(folder)
        config = directory.settings()
        try:
            metrics = directory.read_metrics()
            curve = Curve.of(metrics)
            validated = [line for line in metrics if line["split"] == "val" and line["epoch"] in curve.top1]
            if not validated:
                raise UserError(f"{folder} has no validation after a whole epoch yet: try again after the first one")
            last = validated[-1]
            setting = setting_of(config, round(last["step"] / last["epoch"]), last["images"])
            return cls(folder, config["seed"], setting, curve)
        except (KeyError, TypeError, AttributeError, ArithmeticError):  # the last: epochs or steps that cannot be
            raise UserError(
                f"{directory.config} or {directory.metrics.name} beside it is damaged: restore it, or name another run"
            ) from None

    def said(self) -> list[str]:
        """Return what the run's log said before the first step: model, device, images, recipe, length."""
        log = self.folder / "train.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        said = [re.sub(r"^\S+ \S+ [A-Z]+ ", "", line) for line in lines]
        return said[: next((i for i, line in enumerate(said) if line.startswith("epoch ")), 0)]


def write_reference(path: Path, runs: list[Course]) -> None:
    """Write the reference of finished runs that differ in their seeds only.

    Raises:
        UserError: if a run is not finished, or the runs cannot share a reference.
    """
    if path.suffix != ".json":
        raise UserError(f"{path} must end in .json, such as conf/experiment/NAME.json")
    first = runs[0]
    for number, run in enumerate(runs):
        top1 = run.curve.top1
        if top1.get(run.setting["epochs"]) is None or None in top1.values():
            raise UserError(
                f"{run.folder} has no accuracy after its last epoch, {run.setting['epochs']}, or lacks one before: "
                "a reference needs finished runs"
            )
        if found := differences(first.setting, run.setting):
            raise UserError(f"{run.folder} and {first.folder} differ in more than the seed: {', '.join(found)}")
        if any(run.seed == other.seed for other in runs[:number]):
            raise UserError(f"{run.folder} has the seed of another run: only different seeds show the spread")
        if top1.keys() != first.curve.top1.keys():
            raise UserError(f"{run.folder} and {first.folder} were validated after different epochs: name one of them")
    content = {
        "runs": [{"seed": run.seed, "log": run.said()} | asdict(run.curve) for run in runs],
        "setting": first.setting,
    }
    path.write_text(to_json(content, indent=1) + "\n", encoding="utf-8")
