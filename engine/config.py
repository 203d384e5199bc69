"""Every option of a run, with its type and its rules. YAML files under conf/ choose values.

``metadata`` holds the rules of an option; :class:`engine.options.Rules` lists the words. ``check`` holds those over
several options of a class.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from data import AugmentConfig, DataConfig, EvalSetsConfig, policies
from engine.errors import UserError
from models import FAMILIES, ModelConfig
from optim import OptimConfig, ScheduleConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
NOT_IN_PROJECTS = r"/\#?%:"  # characters that Weights & Biases refuses in the name of a project
MODEL_SCHEMA = "+schema/model@model"  # MODEL_SCHEMA=FAMILY gives the options of a family without a file of conf/model


@dataclass
class CheckpointConfig:
    """Where to start and when to save (``checkpoint.*``); the last and the best checkpoint are always kept."""

    # A file of weights that a new run starts from; checkpoint=PATH for short.
    start: str | None = field(default=None, metadata={"path": "absolute"})
    every_steps: int | None = field(default=None, metadata={"above": 0, "may_change": True})
    every_epochs: int | None = field(default=1, metadata={"above": 0, "may_change": True})
    every_minutes: float | None = field(default=30.0, metadata={"above": 0, "may_change": True})
    keep: int = field(default=1, metadata={"least": 0, "may_change": True})  # older checkpoints kept beside the last


@dataclass
class MonitorConfig:
    """The instruments that watch a run (``monitor.*``)."""

    every: int = field(default=200, metadata={"least": 0})  # optimizer steps between readings of every layer; 0: none
    images: int = field(default=16, metadata={"above": 0})  # of the batch, that attention and blocks are looked at with
    history: int = field(default=64, metadata={"least": 0})  # steps in the record that a spike leaves; 0: no records


@dataclass
class LoggerConfig:
    """Weights & Biases (``logger.*``)."""

    # auto: online where an API key is present
    mode: str = field(default="offline", metadata={"choices": ("offline", "online", "auto")})
    project: str = "coldstart"
    entity: str | None = None
    group: str | None = None

    def check(self) -> None:
        """Refuse a name that Weights & Biases would refuse later."""
        if len(self.project) > 128 or set(self.project) & set(NOT_IN_PROJECTS):
            raise UserError(
                f"logger.project={self.project} must have 128 characters at most, and none of {NOT_IN_PROJECTS}, "
                "which Weights & Biases refuses"
            )


@dataclass
class EvalOptions:
    """Evaluation (``eval.*``)."""

    weights: str = field(default="ema", metadata={"choices": ("ema", "raw")})  # ema: where the run has a moving average
    # Images that a process takes at once; changes no result.
    batch_size: int = field(default=128, metadata={"above": 0, "may_change": True})


@dataclass
class RunConfig:
    """What training and evaluation share."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalOptions = field(default_factory=EvalOptions)
    device: str = field(default="auto", metadata={"choices": ("auto", "cpu", "cuda"), "may_change": True})
    amp: str = field(default="bf16", metadata={"choices": ("bf16", "fp16", "fp32")})
    channels_last: bool = False  # memory layout of convolutional networks
    compile: bool = False  # torch.compile
    # Data threads or processes for each process; null: its share of the cores.
    max_workers: int | None = field(default=None, metadata={"least": 0, "may_change": True})

    def check(self) -> None:
        """Refuse a model for another size of image than the data give."""
        if self.model.img_size not in (None, self.data.crop):
            raise UserError(
                f"model.img_size={self.model.img_size} differs from data.crop={self.data.crop}: "
                "set data.crop alone, the model follows"
            )


@dataclass
class TrainConfig(RunConfig):
    """Everything that ``train.py`` takes."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = MISSING
    schedule: ScheduleConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig, metadata={"may_change": True})
    logger: LoggerConfig = field(default_factory=LoggerConfig, metadata={"may_change": True})
    # What else watches the run, by name: the class of each, package.module.Class. logger=NAME adds one.
    callbacks: dict[str, str] = field(default_factory=dict, metadata={"may_change": True})
    name: str | None = field(
        default=None, metadata={"may_change": True}
    )  # of the run; null: the experiment or the model
    # Filled in at the start: the file below conf/ whose numbers these are. recipe=NAME chooses it.
    recipe: str | None = field(default=None, metadata={"may_change": True})
    # Null: outputs/<name>
    output_dir: str | None = field(default=None, metadata={"path": "as typed", "may_change": True})
    # auto: go on where the run stopped | never | path of a checkpoint
    resume: str = field(default="auto", metadata={"path": "absolute", "may_change": True})
    epochs: int = field(default=300, metadata={"above": 0, "may_change": True})
    # Stop early; the schedule stays that of all epochs.
    max_steps: int | None = field(default=None, metadata={"above": 0, "may_change": True})
    batch_size: int = field(default=1024, metadata={"above": 0})  # global: over all processes and micro-batches
    # Most images that a process takes at once; null: its whole share.
    micro_batch_size: int | None = field(default=None, metadata={"above": 0, "may_change": True})
    seed: int = field(default=0, metadata={"least": 0, "most": 2**64 - 1})
    # Decay of the weights' moving average, such as 0.9998; null: none. At 1 no new weights would enter.
    ema: float | None = field(default=None, metadata={"least": 0, "below": 1})
    sync_bn: bool | None = None  # share BatchNorm's statistics between processes; null: on GPUs, where there is any
    log_every: int = field(default=50, metadata={"above": 0, "may_change": True})  # optimizer steps
    eval_every: int = field(default=1, metadata={"above": 0, "may_change": True})  # epochs
    profile: bool = field(default=False, metadata={"may_change": True})  # save a trace of a few steps

    def check(self) -> None:
        """Refuse what no run can be made of."""
        super().check()
        if self.resume not in ("auto", "never") and not self.resume.endswith(".pt"):
            raise UserError(f"resume={self.resume} is unknown: choose auto, never, or the path of a .pt file")
        augment, micro = self.augment, self.micro_batch_size
        if augment.mixes and micro is not None and micro < augment.mix_group:
            raise UserError(
                f"micro_batch_size={micro} is smaller than augment.mix_group={augment.mix_group}, whose images are "
                f"mixed with one another: set micro_batch_size={augment.mix_group} or more"
            )
        policies(augment.auto_augment, augment.color_jitter, self.data.crop)  # refuses what there is not


@dataclass
class EvalConfig(RunConfig):
    """Everything that ``eval.py`` takes. Null model or data: those the checkpoint was trained with."""

    checkpoint: str | None = field(default=None, metadata={"path": "as typed"})
    sets: EvalSetsConfig = field(default_factory=EvalSetsConfig)  # where any is named, these are evaluated
    benchmark: bool = False  # measure speed on noise instead; needs no checkpoint
    # Timed passes at each batch size; null: as many as take about 4 seconds.
    benchmark_runs: int | None = field(default=None, metadata={"above": 0})
    # Tables of several sets go beside it, with the ending .md.
    output: str = field(default="eval.json", metadata={"path": "as typed"})

    # A CSV file with the model's five best classes of every image; with several sets one for each, FILE.SET.csv.
    predictions: str | None = field(default=None, metadata={"path": "as typed"})

    def check(self) -> None:
        """Refuse options that contradict each other."""
        super().check()
        if self.sets.labels is not None and self.sets.imagenet is None:
            raise UserError("sets.labels is a list for the images of sets.imagenet: add sets.imagenet=FOLDER")
        if self.benchmark and self.sets.folders():
            raise UserError("benchmark=true measures speed on noise, without sets.…: run the two one after the other")


def register() -> None:
    """Make the classes known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
    for family, node in FAMILIES.items():
        store.store(group="schema/model", name=family, node=node)
