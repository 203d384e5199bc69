"""One optimizer step: forward, backward, accumulation, clipping, update, moving average."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

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
from engine.device import AMP_DTYPES
from engine.distributed import World
from engine.profiler import span
from models import load_weights
from optim import AdamW2


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """The context in which the model computes in the wanted precision."""
    return torch.autocast(device.type, AMP_DTYPES[amp]) if amp != "fp32" else nullcontext()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step: drop path and erase noise are a function of (seed, step, rank), nothing else.

    No generator's state has to be kept for a resume to be exact.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


class Watch(Protocol):
    """Looks at one update."""

    def before_update(self, images: Tensor) -> None:
        """With the gradients as they came, and the images as the model saw them."""
        ...

    def after_update(self) -> None:
        """With the new weights."""
        ...


class Stepper:
    """Everything that changes when the model learns.

    Args:
        model: on its device.
        optimizer: of the model's parameters.
        schedule: of the optimizer's learning rate.
        augment: from uint8 batches to what the loss takes.
        cfg: precision, clipping, moving average, compilation.
        world: this process among all.
        device: the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Scheduler,
        augment: DeviceAugment,
        cfg: TrainConfig,
        world: World,
        device: torch.device,
    ):
        self.model, self.optimizer, self.schedule, self.augment = model, optimizer, schedule, augment
        self.cfg, self.world, self.device = cfg, world, device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # What forward passes change, such as running statistics; as it was before the step that is under way.
        self.statistics = [v for v in model.state_dict(keep_vars=True).values() if not isinstance(v, nn.Parameter)]
        self.statistics_before = [torch.empty_like(value) for value in self.statistics]
        self.stage = "between steps"  # | "gradients" | "update"
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.amp == "fp16")
        self.ema = ModelEmaV3(model, decay=cfg.ema) if cfg.ema is not None else None
        self.memory_format = torch.channels_last if cfg.channels_last else torch.contiguous_format
        self.ddp = self._distribute(model)
        network: nn.Module = self.ddp if self.ddp is not None else model
        self.network: Any = torch.compile(network) if cfg.compile else network

    def _distribute(self, model: nn.Module) -> DistributedDataParallel | None:
        if self.world.size == 1:
            return None
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def step(
        self, step: int, batches: Iterable[Batch], micro_steps: int, monitor: Watch | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take the optimizer step number ``step``, counted from 0.

        Args:
            step: decides the learning rate and the noise.
            batches: this process's micro-batches of the step, ``micro_steps`` of them.
            micro_steps: the same on every process.
            monitor: watches the update, for a reading.

        Returns:
            This process's part of the mean loss over the global batch (the parts of all processes add up), and the
            gradient's norm before clipping; both on the device, not waited for.
        """
        self.model.train()
        if self.statistics:
            torch._foreach_copy_(self.statistics_before, self.statistics)
        self.stage = "gradients"
        self.schedule.step_update(step)
        seed_step(self.cfg.seed, step, self.world.rank)
        loss = torch.zeros((), device=self.device)
        for micro, batch in enumerate(batches):
            is_last = micro == micro_steps - 1
            with nullcontext() if is_last or self.ddp is None else self.ddp.no_sync():
                part, images = self._backward(batch)
                loss += part
        with span("update"):
            self.stage = "update"
            norm = self._update(images, monitor)
            if self.ema is not None:
                self.ema.update(self.model, step=step)
        self.stage = "between steps"
        return loss, norm

    @torch.no_grad()
    def abandon_step(self) -> None:
        """Be as before the step that an error has cut short.

        Raises:
            RuntimeError: if its update had begun: weights may have changed, and others not.
        """
        if self.stage == "update":
            raise RuntimeError("the error came in the middle of an update of the weights")
        if self.stage == "gradients":
            if self.statistics:
                torch._foreach_copy_(self.statistics, self.statistics_before)
            self.optimizer.zero_grad(set_to_none=True)
        self.stage = "between steps"

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """This micro-batch's part of the loss, and its images as the model saw them."""
        with span("augment"):
            images, targets = self.augment(batch.images, batch.labels, batch.draws)
            images = images.contiguous(memory_format=self.memory_format)
        with span("forward"):
            with autocast(self.device, self.cfg.amp):
                logits = self.network(images)
            # A share of the global mean. DDP divides the sum of gradients by the world size, so multiply by it.
            loss = soft_cross_entropy(logits, targets) / self.cfg.batch_size
        with span("backward"):
            self.scaler.scale(loss * self.world.size).backward()
        return loss.detach(), images

    def _update(self, images: Tensor, monitor: Watch | None) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        if monitor is not None:
            monitor.before_update(images)
        norm = self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if monitor is not None:
            monitor.after_update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _clip(self) -> Tensor:
        """Clip the gradients as wished; their norm before that."""
        limit, mode = self.cfg.optim.clip, self.cfg.optim.clip_mode
        if limit is None or mode == "norm":
            return nn.utils.clip_grad_norm_(self.parameters, limit if limit is not None else float("inf"))
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        # As in timm, the classifier is left out of adaptive clipping (Brock et al., 2021, section 4.1).
        dispatch_clip_grad(model_parameters(self.model, exclude_head=mode == "agc"), limit, mode)
        return norm

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def cap_metrics(self) -> dict[str, Any]:
        """What AdamW²'s cap did in the last step, for the metrics; nothing for other optimizers."""
        return self.optimizer.metrics() if isinstance(self.optimizer, AdamW2) else {}

    @property
    def best_network(self) -> nn.Module:
        """What is evaluated: the moving average where there is one and it is wanted, else the model itself."""
        use_ema = self.ema is not None and self.cfg.eval.weights == "ema"
        return self.ema.module if use_ema and self.ema is not None else self.model

    def share_buffers(self) -> None:
        """Give every process the first one's buffers, so that all evaluate the model that is saved.

        DDP does so at forward passes only, and never for the moving average.
        """
        self.world.share_buffers(self.model)
        if self.ema is not None:
            self.world.share_buffers(self.ema.module)

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
