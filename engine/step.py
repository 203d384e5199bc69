"""One optimizer step: forward, backward, accumulation, clipping, update, moving average."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from timm.models import model_parameters
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from engine.compiling import CUDA_GRAPHS, Compiler, training_mode
from engine.errors import RunStopped
from engine.losses import training_loss
from engine.measuring.span import span
from engine.moving_average import MovingAverage
from engine.options.config import TrainConfig
from engine.runtime import Runtime
from engine.training_batches import TrainBatch
from models import load_weights
from optim import GraphedStep

LEAST_LOSS_SCALE = 2.0**-20

# Makes the context of an update from the number of the step, counted from 1, and its last micro-batch as the model got
# it. Gradients exist at both ends of the context, and at the beginning they are not yet clipped.
UpdateWatcher = Callable[[int, Tensor], AbstractContextManager[None]]


@dataclass(frozen=True)
class StepOutcome:
    """The results of an optimizer step. The tensors stay on the device, so that nothing waits for them here.

    Attributes:
        step: number of the step, counted from 1.
        loss: this process's part of the mean loss over the global batch. The sum over all processes is the mean loss.
        grad_norm: norm of the gradient before clipping.
        lr: learning rate of the step.
        first_batch: this process's first micro-batch of the step.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    lr: float
    first_batch: TrainBatch


class TrainStep:
    """Takes optimizer steps. Holds everything that changes in training: model, optimizer, scaler and moving average.

    Args:
        cfg: the settings.
        runtime: processes, device and precision.
        model: the model, already on its device.
        optimizer: the optimizer of the model's parameters.
        schedule: sets the optimizer's learning rate.
        micro_steps: number of micro-batches in a step, the same on every process.

    Attributes:
        evaluated_network: what validation scores: the moving average if there is one and ``eval.weights`` is ``ema``.
        watch_update: makes the context in which every update runs.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        runtime: Runtime,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Scheduler,
        micro_steps: int,
    ):
        self.cfg, self.runtime, self.model = cfg, runtime, model
        self.optimizer, self.schedule, self.micro_steps = optimizer, schedule, micro_steps
        self.loss = training_loss(cfg)
        self.watch_update: UpdateWatcher = lambda step, images: nullcontext()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # The buffers that checkpoints hold, such as running statistics, and a copy from before the current step.
        self.buffers = [v for v in model.state_dict(keep_vars=True).values() if not isinstance(v, nn.Parameter)]
        self.buffers_before = [torch.empty_like(value) for value in self.buffers]
        self.stage = "between steps"  # | "gradients" | "update"
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=cfg.amp == "fp16")
        # A scaler hands the optimizer new tensors in each step, which a graph would not see.
        is_recorded = GraphedStep.suits(optimizer) and not self.scaler.is_enabled()
        self.graphed = GraphedStep(optimizer) if is_recorded else None
        compiler = Compiler(cfg, runtime.device)
        mode = training_mode(cfg, runtime, micro_steps)
        # CUDA graphs of the network have no place for DDP's exchanges in the middle of the backward pass.
        is_whole = cfg.ddp_bucket_mb == 0 or (compiler.is_on and mode in CUDA_GRAPHS)
        # Before the moving average: either one gives all processes the same weights.
        self.ddp = None if is_whole or runtime.world.size == 1 else self._distributed()
        if self.ddp is None:
            runtime.world.broadcast(model.state_dict().values())
        self.ema = MovingAverage(model, cfg.ema) if cfg.ema is not None else None
        self.network = compiler.wrap(self.ddp if self.ddp is not None else model, mode=mode)
        evaluated = self.ema.module if self.ema is not None and cfg.eval.weights == "ema" else model
        self.evaluated_network = compiler.wrap(evaluated, cfg.eval.batch_size)

    def _distributed(self) -> DistributedDataParallel:
        """Wrap the model so that processes sum their gradients during the backward pass."""
        ddp = DistributedDataParallel(
            self.model,
            device_ids=[self.runtime.device.index] if self.runtime.device.type == "cuda" else None,
            bucket_cap_mb=self.cfg.ddp_bucket_mb,
            gradient_as_bucket_view=True,
        )
        # A model whose only buffers are tables, such as indices of relative positions, has nothing to send. Set here,
        # because the argument has another name from torch 2.14 on.
        ddp.broadcast_buffers = any(value.is_floating_point() for value in self.buffers)
        return ddp

    # --- the step -------------------------------------------------------------------------------------------------

    def take(self, step: int, batches: Iterable[TrainBatch]) -> StepOutcome:
        """Take one optimizer step.

        Args:
            step: number of the step, counted from 1. It determines the learning rate and the random numbers.
            batches: this process's micro-batches; the step takes as many as it needs.
        """
        self.model.train()
        if self.buffers:
            torch._foreach_copy_(self.buffers_before, self.buffers)
        self.stage = "gradients"
        self.schedule.step_update(step - 1)
        seed_step(self.cfg.seed, step - 1, self.runtime.world.rank)
        loss = torch.zeros((), device=self.runtime.device)
        first_batch = None
        for micro, batch in enumerate(islice(batches, self.micro_steps)):
            first_batch = first_batch or batch
            with self._exchange(is_last=micro == self.micro_steps - 1):
                loss += self._backward(batch)
        assert first_batch is not None
        if self.ddp is None:
            self.runtime.world.sum_all([p.grad for p in self.parameters if p.grad is not None])
        with span("update"):
            self.stage = "update"
            grad_norm = self._update(step, batch.images)
            if self.ema is not None:
                self.ema.update(self.model, step)
        self.stage = "between steps"
        return StepOutcome(step, loss, grad_norm, self.lr, first_batch)

    def _exchange(self, is_last: bool) -> AbstractContextManager:
        """Return a context in which processes exchange gradients only after the last micro-batch's backward pass."""
        return nullcontext() if is_last or self.ddp is None else self.ddp.no_sync()

    def _backward(self, batch: TrainBatch) -> Tensor:
        """Run forward and backward on a micro-batch. Returns its part of the loss."""
        with span("forward"):
            with self.runtime.autocast():
                logits = self.network(batch.images)
            loss = self.loss(logits, batch.targets) / self.cfg.batch_size  # its part of the global mean
        with span("backward"):
            # DDP averages gradients over the processes. They must be summed instead, so multiply by their number.
            averaged = self.runtime.world.size if self.ddp is not None else 1
            self.scaler.scale(loss * averaged).backward()
        return loss.detach()

    def _update(self, step: int, images: Tensor) -> Tensor:
        """Clip the gradient and update the weights. Returns the gradient's norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        with self.watch_update(step, images):
            grad_norm = self._clip()
            if self.graphed is not None:
                self.graphed()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def _clip(self) -> Tensor:
        """Clip the gradients as ``optim.clip`` and ``optim.clip_mode`` say. Returns their norm before clipping."""
        limit, mode = self.cfg.optim.clip, self.cfg.optim.clip_mode
        if limit is not None and mode == "norm":
            return nn.utils.clip_grad_norm_(self.parameters, limit)
        grad_norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if limit is not None:
            # As in timm, adaptive clipping leaves out the classifier (Brock et al., 2021, section 4.1).
            dispatch_clip_grad(model_parameters(self.model, exclude_head=mode == "agc"), limit, mode)
        return grad_norm

    @torch.no_grad()
    def undo_unfinished(self) -> None:
        """Restore the state from before a step that an error interrupted.

        Raises:
            RuntimeError: if the update had already begun, because then only some of the weights may have changed.
        """
        if self.stage == "update":
            raise RuntimeError("the error came in the middle of an update of the weights")
        if self.stage == "gradients":
            if self.buffers:
                torch._foreach_copy_(self.buffers, self.buffers_before)
            self.optimizer.zero_grad(set_to_none=True)
        self.stage = "between steps"

    # --- metrics and state ----------------------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get("lr_scale", 1)

    def metrics(self) -> dict[str, Any]:
        """Return numbers about the last step for the line of metrics. This may wait for the device.

        An optimizer adds its own with a method ``metrics``, as AdamW² does.

        Raises:
            RunStopped: if gradients overflow in fp16 even at a very small loss scale.
        """
        own = getattr(self.optimizer, "metrics", dict)
        found: dict[str, Any] = {"lr": self.lr} | own()
        if self.scaler.is_enabled():
            found["loss_scale"] = self.scaler.get_scale()
            if found["loss_scale"] < LEAST_LOSS_SCALE:
                raise RunStopped("gradients overflow in fp16 at any scale: set amp=bf16, or a lower optim.lr", 1)
        return found

    def broadcast_buffers(self) -> None:
        """Copy the first process's buffers to all processes, so that all evaluate the model that the first one saves.

        DDP copies buffers only in forward passes, and never those of the moving average.
        """
        self.runtime.world.broadcast(self.model.buffers())
        if self.ema is not None:
            self.runtime.world.broadcast(self.ema.module.buffers())

    def state_dict(self) -> dict[str, Any]:
        """Return the state as checkpoints hold it.

        The schedule has none: its rate depends only on the step and the config.
        """
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "stepper": {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()},
        }

    def load_state_dict(self, state: dict[str, Any], source: str) -> None:
        """Continue from the state in a checkpoint.

        Args:
            state: the content of the checkpoint; it may have other entries, too.
            source: where it is, for error messages.

        Raises:
            ModelError: if the state belongs to another model.
        """
        load_weights(self.model, state["model"], source)
        self.optimizer.load_state_dict(state["stepper"]["optimizer"])
        self.scaler.load_state_dict(state["stepper"]["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one step, so that drop path depends only on (seed, step, rank).

    A resume is therefore exact without the state of a random generator.

    Args:
        seed: seed of the run.
        step: number of the step, counted from 0.
        rank: rank of this process.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))
