"""One optimizer step: forward, backward, accumulation, clipping, update, moving average."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from timm.models import model_parameters
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from data import Batch, DeviceAugment, soft_cross_entropy
from engine.config import TrainConfig
from engine.errors import RunStopped
from engine.runtime import Runtime
from engine.span import span
from models import load_weights

LEAST_LOSS_SCALE = 2.0**-20


class Watch(Protocol):
    """Looks at an update from close by."""

    def before_update(self, step: int, images: Tensor) -> None:
        """With the gradients as they came, and the last micro-batch as the model saw it; steps count from 1."""
        ...

    def after_update(self) -> None:
        """With the new weights."""
        ...


@runtime_checkable
class ReportsMetrics(Protocol):
    """An optimizer that has something to say about its last step."""

    def metrics(self) -> dict[str, Any]:
        """Numbers for the line of metrics; may wait for the device."""
        ...


@dataclass(frozen=True)
class StepOutcome:
    """What a step came to. Tensors stay on the device: nobody waits for them here.

    Attributes:
        step: its number, counted from 1.
        loss: this process's part of the mean loss over the global batch; the parts of all processes add up.
        grad_norm: of the gradient before clipping.
        lr: its learning rate.
        first_batch: its first micro-batch on this process, before augmentation.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    lr: float
    first_batch: Batch


class TrainStep:
    """Everything that changes when the model learns.

    Args:
        cfg: the settings.
        runtime: device and precision.
        model: on its device.
        optimizer: of the model's parameters.
        schedule: of the optimizer's learning rate.
        augment: from uint8 batches to what the loss takes.

    Attributes:
        watch: looks at every update, where there is one.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        runtime: Runtime,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Scheduler,
        augment: DeviceAugment,
    ):
        self.cfg, self.runtime, self.model = cfg, runtime, model
        self.optimizer, self.schedule, self.augment = optimizer, schedule, augment
        self.watch: Watch | None = None
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # What forward passes change, such as running statistics; and as it was before the step under way.
        self.statistics = [v for v in model.state_dict(keep_vars=True).values() if not isinstance(v, nn.Parameter)]
        self.statistics_before = [torch.empty_like(value) for value in self.statistics]
        self.stage = "between steps"  # | "gradients" | "update"
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=cfg.amp == "fp16")
        self.ema = ModelEmaV3(model, decay=cfg.ema) if cfg.ema is not None else None
        self.ddp = _distributed(model, runtime)
        network: nn.Module = self.ddp if self.ddp is not None else model
        self.network: Any = torch.compile(network) if cfg.compile else network

    # --- the step -------------------------------------------------------------------------------------------------

    def take(self, step: int, batches: Iterable[Batch], micro_steps: int) -> StepOutcome:
        """Take one optimizer step.

        Args:
            step: its number, counted from 1; the learning rate and the noise follow from it.
            batches: this process's micro-batches of the step, ``micro_steps`` of them.
            micro_steps: the same on every process.
        """
        self.model.train()
        if self.statistics:
            torch._foreach_copy_(self.statistics_before, self.statistics)
        self.stage = "gradients"
        self.schedule.step_update(step - 1)
        seed_step(self.cfg.seed, step - 1, self.runtime.world.rank)
        loss = torch.zeros((), device=self.runtime.device)
        first_batch = None
        for micro, batch in enumerate(batches):
            first_batch = first_batch or batch
            with self._exchange(is_last=micro == micro_steps - 1):
                part, images = self._backward(batch)
                loss += part
        assert first_batch is not None
        with span("update"):
            self.stage = "update"
            grad_norm = self._update(step, images)
            if self.ema is not None:
                self.ema.update(self.model, step=step - 1)
        self.stage = "between steps"
        return StepOutcome(step, loss, grad_norm, self.lr, first_batch)

    def _exchange(self, is_last: bool) -> AbstractContextManager:
        """Processes exchange their gradients in the backward pass of the last micro-batch alone."""
        return nullcontext() if is_last or self.ddp is None else self.ddp.no_sync()

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """This micro-batch's part of the loss, and its images as the model saw them."""
        with span("augment"):
            images, targets = self.augment(batch.images, batch.labels, batch.draws)
            images = self.runtime.laid_out(images)
        with span("forward"):
            with self.runtime.autocast():
                logits = self.network(images)
            loss = soft_cross_entropy(logits, targets) / self.cfg.batch_size  # its share of the global mean
        with span("backward"):
            # DDP divides the sum of gradients by the number of processes, so multiply by it.
            self.scaler.scale(loss * self.runtime.world.size).backward()
        return loss.detach(), images

    def _update(self, step: int, images: Tensor) -> Tensor:
        """Change the weights; the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        if self.watch is not None:
            self.watch.before_update(step, images)
        grad_norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.watch is not None:
            self.watch.after_update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _clip(self) -> Tensor:
        """Clip the gradients as wished; their norm before that."""
        limit, mode = self.cfg.optim.clip, self.cfg.optim.clip_mode
        if limit is None or mode == "norm":
            return nn.utils.clip_grad_norm_(self.parameters, limit if limit is not None else float("inf"))
        grad_norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        # As in timm, the classifier is left out of adaptive clipping (Brock et al., 2021, section 4.1).
        dispatch_clip_grad(model_parameters(self.model, exclude_head=mode == "agc"), limit, mode)
        return grad_norm

    @torch.no_grad()
    def undo_unfinished(self) -> None:
        """Go back to before the step that an error has cut short.

        Raises:
            RuntimeError: if its update had begun: some weights may have changed, and others not.
        """
        if self.stage == "update":
            raise RuntimeError("the error came in the middle of an update of the weights")
        if self.stage == "gradients":
            if self.statistics:
                torch._foreach_copy_(self.statistics, self.statistics_before)
            self.optimizer.zero_grad(set_to_none=True)
        self.stage = "between steps"

    # --- what it came to ------------------------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def metrics(self) -> dict[str, Any]:
        """Numbers about the last step for the line of metrics; may wait for the device.

        Raises:
            RunStopped: if gradients overflow in fp16 at any scale.
        """
        found = {"lr": self.lr}
        if isinstance(self.optimizer, ReportsMetrics):
            found |= self.optimizer.metrics()
        if self.scaler.is_enabled():
            found["loss_scale"] = self.scaler.get_scale()
            if found["loss_scale"] < LEAST_LOSS_SCALE:
                raise RunStopped("gradients overflow in fp16 at any scale: set amp=bf16, or a lower optim.lr", 1)
        return found

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that validation scores: the moving average where there is one and it is wanted."""
        if self.ema is not None and self.cfg.eval.weights == "ema":
            return self.ema.module
        return self.model

    def share_buffers(self) -> None:
        """Give every process the first one's buffers, so that all evaluate the model that is saved.

        DDP does so at forward passes only, and never for the moving average.
        """
        self.runtime.world.share_buffers(self.model)
        if self.ema is not None:
            self.runtime.world.share_buffers(self.ema.module)

    def state_dict(self) -> dict[str, Any]:
        """The state to go on from. The schedule is a function of the step and the config, and has none."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Go on from a state.

        Raises:
            ModelError: if it is of another model.
        """
        load_weights(self.model, state["model"], source)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step: drop path and erase noise are a function of (seed, step, rank), nothing else.

    No generator's state has to be kept for a resume to be exact.

    Args:
        seed: of the run.
        step: counted from 0.
        rank: of this process.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def _distributed(model: nn.Module, runtime: Runtime) -> DistributedDataParallel | None:
    if runtime.world.size == 1:
        return None
    ids = [runtime.device.index] if runtime.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
