"""The options of train.py and eval.py with their types and rules. The YAML files in conf/ set their values.

The ``metadata`` of a field holds the rules of that option; :class:`engine.options.rules.Rules` lists the possible
rules. The method ``check`` of a class holds the rules that involve several options.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from data import AugmentConfig, DataConfig, EvalSetsConfig, policies
from engine.errors import UserError
from models import FAMILIES, ModelConfig
from optim import OptimConfig, ScheduleConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
NOT_IN_PROJECTS = r"/\#?%:"  # characters that Weights & Biases refuses in project names
MODEL_SCHEMA = "+schema/model@model"  # the argument MODEL_SCHEMA=FAMILY selects a family's options without conf/model/


@dataclass
class CheckpointConfig:
    """Starting weights, and when to save (``checkpoint.*``). A run always keeps ``last.pt`` and ``best.pt``."""

    # File of weights that a new run starts from. The short form is checkpoint=PATH.
    start: str | None = field(default=None, metadata={"path": "absolute"})
    every_steps: int | None = field(default=None, metadata={"above": 0, "may_change": True})
    every_epochs: int | None = field(default=1, metadata={"above": 0, "may_change": True})
    every_minutes: float | None = field(default=30.0, metadata={"above": 0, "may_change": True})
    keep: int = field(default=1, metadata={"least": 0, "may_change": True})  # number of older checkpoints to keep


@dataclass
class MonitorConfig:
    """The instruments that watch a run (``monitor.*``)."""

    every: int = field(default=200, metadata={"least": 0})  # optimizer steps between readings of all layers; 0: none
    images: int = field(default=16, metadata={"above": 0})  # images of the batch for reading attention and blocks
    history: int = field(default=64, metadata={"least": 0})  # steps in a loss spike's record, 16 at least; 0: none


@dataclass
class LoggerConfig:
    """Weights & Biases (``logger.*``)."""

    # auto: online if WANDB_API_KEY is set
    mode: str = field(default="offline", metadata={"choices": ("offline", "online", "auto")})
    project: str = "${oc.env:WANDB_PROJECT,coldstart}"  # W&B's own variable, if it is set
    entity: str | None = None
    group: str | None = None

    def check(self) -> None:
        """Refuse a project name that Weights & Biases would refuse later."""
        if len(self.project) > 128 or set(self.project) & set(NOT_IN_PROJECTS):
            raise UserError(
                f"logger.project={self.project} must have 128 characters at most, and none of {NOT_IN_PROJECTS}, "
                "which Weights & Biases refuses"
            )


@dataclass
class EvalOptions:
    """Evaluation (``eval.*``)."""

    weights: str = field(default="ema", metadata={"choices": ("ema", "raw")})  # ema: if there is one, else raw
    # Images that a process evaluates at once. The scores do not depend on it.
    batch_size: int = field(default=128, metadata={"above": 0, "may_change": True})


@dataclass
class RunConfig:
    """The options that training and evaluation share."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalOptions = field(default_factory=EvalOptions)
    device: str = field(default="auto", metadata={"choices": ("auto", "cpu", "cuda"), "may_change": True})
    amp: str = field(default="bf16", metadata={"choices": ("bf16", "fp16", "fp32")})
    channels_last: bool = False  # torch.channels_last, a memory layout for convolutional networks
    # torch.compile. auto: on GPUs, for models that are known to compile well
    compile: str = field(default="auto", metadata={"choices": ("auto", "true", "false"), "may_change": True})
    # auto: reduce-overhead if one GPU takes each step as one micro-batch; otherwise default
    compile_mode: str = field(
        default="auto",
        metadata={
            "choices": ("auto", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
            "may_change": True,
        },
    )
    # Further options of torch's compiler, added to those of the mode: +compile_options.combo_kernels=true
    compile_options: dict[str, Any] = field(default_factory=dict, metadata={"may_change": True})
    # Data workers (threads or processes) of each process; null: the process's share of the cores.
    max_workers: int | None = field(default=None, metadata={"least": 0, "may_change": True})

    def __post_init__(self) -> None:
        self.compile = self.compile.lower()  # True in a YAML file arrives as the text "True"

    def check(self) -> None:
        """Refuse a model whose image size differs from ``data.crop``."""
        if self.model.img_size not in (None, self.data.crop):
            raise UserError(
                f"model.img_size={self.model.img_size} differs from data.crop={self.data.crop}: "
                "set only data.crop, which the model follows"
            )


@dataclass
class TrainConfig(RunConfig):
    """All options of ``train.py``."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = MISSING
    schedule: ScheduleConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig, metadata={"may_change": True})
    logger: LoggerConfig = field(default_factory=LoggerConfig, metadata={"may_change": True})
    # Further callbacks: name and class (package.module.Class). logger=NAME adds one.
    callbacks: dict[str, str] = field(default_factory=dict, metadata={"may_change": True})
    # Name of the run; null: the name of the experiment or model.
    name: str | None = field(default=None, metadata={"may_change": True})
    # Set at the start: the file in conf/ that the values come from. recipe=NAME chooses it.
    recipe: str | None = field(default=None, metadata={"may_change": True})
    # Null: outputs/<name>
    output_dir: str | None = field(default=None, metadata={"path": "as typed", "may_change": True})
    # auto: continue where the run stopped | never | path of a checkpoint
    resume: str = field(default="auto", metadata={"path": "absolute", "may_change": True})
    epochs: int = field(default=300, metadata={"above": 0, "may_change": True})
    # Stop early. The learning-rate schedule still covers all epochs.
    max_steps: int | None = field(default=None, metadata={"above": 0, "may_change": True})
    batch_size: int = field(default=1024, metadata={"above": 0})  # global: sum over all processes and micro-batches
    # Largest number of images that a process trains on at once. auto: what fits the GPUs, up to 256; on a CPU and with
    # BatchNorm 128. null: the process's whole share of the batch.
    micro_batch_size: int | str | None = field(
        default=None, metadata={"choices": ("auto",), "above": 0, "may_change": True}
    )
    seed: int = field(default=0, metadata={"least": 0, "most": 2**64 - 1})
    # ce: cross-entropy; bce: binary cross-entropy of each class. The loss of a validation is cross-entropy.
    loss: str = field(default="ce", metadata={"choices": ("ce", "bce")})
    # bce: targets above it count as 1 and all others as 0, as timm's --bce-target-thresh; null: targets as they are.
    bce_target_thresh: float | None = field(default=None, metadata={"least": 0, "below": 1})
    bce_sum: bool = False  # bce: an image's loss is the sum over its classes, not the mean, as timm's --bce-sum
    # Decay of the moving average of the weights, such as 0.9998; null: no average. At 1 it would never change.
    ema: float | None = field(default=None, metadata={"least": 0, "below": 1})
    sync_bn: bool | None = None  # share BatchNorm's statistics between processes; null: on GPUs only
    # MiB of gradients that processes exchange at once, during the backward pass; null: torch's choice, 25 after a first
    # exchange of 1; 0: all of them after the backward pass, as with a compile_mode that records CUDA graphs.
    ddp_bucket_mb: int | None = field(default=None, metadata={"least": 0, "may_change": True})
    # Seconds that a process waits for the others in a step, the first one excepted, before it gives up.
    ddp_timeout: float = field(default=100.0, metadata={"least": 5, "most": 1800, "may_change": True})
    log_every: int = field(default=50, metadata={"above": 0, "may_change": True})  # optimizer steps
    eval_every: int = field(default=1, metadata={"above": 0, "may_change": True})  # epochs
    profile: bool = field(default=False, metadata={"may_change": True})  # save a profiler trace of a few steps

    def check(self) -> None:
        """Refuse options that are invalid or contradict each other."""
        super().check()
        if self.resume not in ("auto", "never") and not self.resume.endswith(".pt"):
            raise UserError(f"resume={self.resume} is unknown: choose auto, never, or the path of a .pt file")
        augment, micro = self.augment, self.micro_batch_size
        if augment.mixes and isinstance(micro, int) and micro < augment.mix_group:
            raise UserError(
                f"micro_batch_size={micro} is smaller than augment.mix_group={augment.mix_group}, whose images are "
                f"mixed with one another: set micro_batch_size={augment.mix_group} or more"
            )
        if self.loss != "bce" and (self.bce_target_thresh is not None or self.bce_sum):
            raise UserError(f"bce_target_thresh and bce_sum belong to loss=bce, but loss={self.loss}: add loss=bce")
        policies(augment.auto_augment, augment.color_jitter, self.data.crop)  # raises for unknown names


@dataclass
class EvalConfig(RunConfig):
    """All options of ``eval.py``. Model and data come from the checkpoint unless the user chooses others."""

    checkpoint: str | None = field(default=None, metadata={"path": "as typed"})
    sets: EvalSetsConfig = field(default_factory=EvalSetsConfig)  # if any is set, evaluate these instead of data.split
    benchmark: bool = False  # measure speed on random images instead; needs no checkpoint
    # Timed passes at each batch size; null: as many as fit into about 4 seconds.
    benchmark_runs: int | None = field(default=None, metadata={"above": 0})
    # JSON file for the scores. The table for evaluation sets goes to the same name with the ending .md.
    output: str = field(default="eval.json", metadata={"path": "as typed"})
    # CSV file for the five most probable classes of every image. Each of several sets gets its own file, FILE.SET.csv.
    predictions: str | None = field(default=None, metadata={"path": "as typed"})

    def check(self) -> None:
        """Refuse options that contradict each other."""
        super().check()
        if self.sets.labels is not None and self.sets.imagenet is None:
            raise UserError("sets.labels is a list for the images of sets.imagenet: add sets.imagenet=FOLDER")
        if self.benchmark and self.sets.folders():
            raise UserError("benchmark=true measures speed on noise, without sets.…: run one command for each")
        if self.benchmark and self.predictions is not None:
            raise UserError(
                "benchmark=true measures speed on noise, which has no classes to predict: leave out predictions"
            )


ENTRIES: dict[str, type[RunConfig]] = {"train": TrainConfig, "eval": EvalConfig}


def config_groups() -> set[str]:
    """Return the names of the config groups, which are the folders of ``conf/``."""
    return {path.name for path in CONF.iterdir() if path.is_dir()}


@cache  # Hydra keeps them for all commands of a process
def register() -> None:
    """Register the config classes with Hydra."""
    store = ConfigStore.instance()
    for entry, kind in ENTRIES.items():
        store.store(name=f"{entry}_schema", node=kind)
    for family, node in FAMILIES.items():
        store.store(group="schema/model", name=family, node=node)
