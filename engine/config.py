"""Every option of a run, with its type. YAML files under conf/ choose values; these classes refuse the rest."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from data import AugmentConfig, DataConfig, EvalSetsConfig
from models import FAMILIES, ModelConfig
from optim import OptimConfig, ScheduleConfig

MODEL_SCHEMA = "+schema/model@model"  # MODEL_SCHEMA=FAMILY gives the options of a family without a file of conf/model


@dataclass
class CheckpointConfig:
    """Where to start and when to save (``checkpoint.*``); the last and the best checkpoint are always kept."""

    # A file of weights that a new run starts from; checkpoint=PATH for short.
    start: str | None = field(default=None, metadata={"path": "absolute"})
    every_steps: int | None = None
    every_epochs: int | None = 1
    every_minutes: float | None = 30.0
    keep: int = 1  # older checkpoints kept beside the last


@dataclass
class MonitorConfig:
    """The instruments that watch a run (``monitor.*``)."""

    every: int = 200  # optimizer steps between readings of every layer; 0: none
    images: int = 16  # of the batch, that attention and blocks are looked at with
    history: int = 64  # steps in the record that a spike of the loss leaves; 0: no records


@dataclass
class LoggerConfig:
    """Weights & Biases (``logger.*``)."""

    name: str = MISSING  # wandb | none
    mode: str = "offline"  # offline | online | auto: online where an API key is present
    project: str = "coldstart"
    entity: str | None = None
    group: str | None = None


@dataclass
class EvalOptions:
    """Evaluation (``eval.*``)."""

    weights: str = "ema"  # ema (where there are any) | raw
    batch_size: int = 128  # images a process takes at once; changes no result


@dataclass
class RunConfig:
    """What training and evaluation share."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalOptions = field(default_factory=EvalOptions)
    device: str = "auto"  # auto | cpu | cuda
    amp: str = "bf16"  # bf16 | fp16 | fp32
    channels_last: bool = False  # memory layout of convolutional networks
    compile: bool = False  # torch.compile
    max_workers: int | None = None  # data threads or processes for each process; null: its share of the cores


@dataclass
class TrainConfig(RunConfig):
    """Everything that ``train.py`` takes."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = MISSING
    schedule: ScheduleConfig = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    logger: LoggerConfig = MISSING
    name: str | None = None  # of the run; null: the experiment or the model
    output_dir: str | None = field(default=None, metadata={"path": "as typed"})  # null: outputs/<name>
    # auto: go on where the run stopped | never | path of a checkpoint
    resume: str = field(default="auto", metadata={"path": "absolute"})
    epochs: int = 300
    max_steps: int | None = None  # stop early; the schedule stays that of all epochs
    batch_size: int = 1024  # global: over all processes and micro-batches
    micro_batch_size: int | None = None  # most images a process takes at once; null: its whole share
    seed: int = 0
    ema: float | None = None  # decay of the weights' moving average, such as 0.9998; null: none
    sync_bn: bool | None = None  # share BatchNorm's statistics between processes; null: on GPUs, where there is any
    log_every: int = 50  # optimizer steps
    eval_every: int = 1  # epochs
    profile: bool = False  # save a trace of a few steps


@dataclass
class EvalConfig(RunConfig):
    """Everything that ``eval.py`` takes. Null model or data: those the checkpoint was trained with."""

    checkpoint: str | None = field(default=None, metadata={"path": "as typed"})
    sets: EvalSetsConfig = field(default_factory=EvalSetsConfig)  # where any is named, these are evaluated
    benchmark: bool = False  # measure speed on noise instead; needs no checkpoint
    benchmark_runs: int | None = None  # timed passes at each batch size; null: as many as take about 4 seconds
    # Tables of several sets go beside it, with the ending .md.
    output: str = field(default="eval.json", metadata={"path": "as typed"})


def register() -> None:
    """Make the classes known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
    for family, node in FAMILIES.items():
        store.store(group="schema/model", name=family, node=node)
