"""The loop: steps, readings, evaluations, checkpoints, and the end."""

import contextlib
import json
import logging
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from data import Batch, TrainPlan
from engine.checkpoint import Checkpoints
from engine.config import TrainConfig
from engine.distributed import World
from engine.errors import RunStopped
from engine.loggers import Logger
from engine.meter import Meter, Reading
from engine.plots import draw_batch, draw_curves
from engine.profiler import step_profiler
from engine.progress import Progress
from engine.run_dir import RunDirectory
from engine.scoring import Scores
from engine.settings import as_container
from engine.signals import StopRequest
from engine.stepper import Stepper

log = logging.getLogger(__name__)


class Trainer:
    """Trains one model from wherever its run stands to its end.

    Args:
        cfg: the settings.
        run: the run's directory.
        world: this process among all.
        plan: what comes in which step.
        batches: this process's micro-batches from a step to another.
        stepper: takes the optimizer steps.
        validate: scores the model on the validation split.
        logger: takes the metrics beside the run's own file.
        names: name of each class, for pictures.
        fingerprint: of the training images.
        model_flops: of the forward pass of one image.
        peak_flops: of one device, where known.
    """

    def __init__(
        self,
        cfg: TrainConfig,
        run: RunDirectory,
        world: World,
        plan: TrainPlan,
        batches: Callable[[int, int], Iterator[Batch]],
        stepper: Stepper,
        validate: Callable[[], Scores],
        logger: Logger,
        names: dict[int, str],
        fingerprint: str,
        model_flops: int | None = None,
        peak_flops: float | None = None,
    ):
        self.cfg, self.run, self.world, self.plan, self.batches = cfg, run, world, plan, batches
        self.stepper, self.validate, self.logger, self.names = stepper, validate, logger, names
        self.fingerprint, self.model_flops, self.peak_flops = fingerprint, model_flops, peak_flops
        self.checkpoints = Checkpoints(run.checkpoints, cfg.checkpoint.keep)
        self.meter = Meter(world, stepper.device, judge_gradient=cfg.amp != "fp16")
        self.per_epoch = plan.steps_per_epoch
        self.total = cfg.epochs * self.per_epoch
        self.stop_at = min(self.total, cfg.max_steps or self.total)
        self.done = 0  # optimizer steps
        self.best: dict[str, Any] | None = None  # the best validation so far: step, top1
        self.last_scores: Scores | None = None
        self.saved = -1  # step of the last checkpoint
        self.saved_at = time.monotonic()

    # --- going on -------------------------------------------------------------------------------------------------

    def load(self, state: dict[str, Any], source: str) -> None:
        """Go on from a checkpoint's state."""
        self.stepper.load_state_dict(state["stepper"] | {"model": state["model"], "ema": state["ema"]}, source)
        self.done = self.saved = state["step"]
        self.best = state["best"]

    def _state(self) -> dict[str, Any]:
        """All that a resume or an evaluation needs. Random numbers are functions of seed and step: nothing to keep."""
        state = self.stepper.state_dict()
        return {
            "step": self.done,
            "epoch": self.done // self.per_epoch,
            "step_in_epoch": self.done % self.per_epoch,
            "model": state.pop("model"),
            "ema": state.pop("ema"),
            "stepper": state,
            "best": self.best,
            "config": as_container(self.cfg),
            "classes": [self.names[label] for label in sorted(self.names)],
            "fingerprint": self.fingerprint,
            "wandb_id": self.logger.run_id,
        }

    # --- the loop -------------------------------------------------------------------------------------------------

    def fit(self) -> Scores | None:
        """Train to the end; the scores of the last evaluation, or None where the run had ended before.

        Raises:
            RunStopped: if a loss was not finite, or the process was asked to stop.
        """
        first = self.done
        stop = StopRequest()
        self.progress = Progress(first, self.stop_at, self.world.is_main)
        self.started = time.monotonic()
        try:
            with step_profiler(self.run.path, self.cfg.profile and self.world.is_main) as after_step:
                batches = self.batches(first, self.stop_at)
                self.meter.restart()
                while self.done < self.stop_at:
                    self._step(batches)
                    after_step()
                    self._after_step(stop, first)
        finally:
            self.progress.close()
            stop.restore()
        return self.last_scores

    def _step(self, batches: Iterator[Batch]) -> None:
        micro_steps = self.plan.geometry.micro_steps
        waited = 0.0

        def timed() -> Iterator[Batch]:
            nonlocal waited
            for _ in range(micro_steps):
                started = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - started
                if self.done == 0:
                    self._picture_once(batch)
                yield batch

        loss, norm = self.stepper.step(self.done, timed(), micro_steps)
        self.done += 1
        self.meter.add(self.done, loss, norm, self.cfg.batch_size, waited)
        self.progress.advance()

    def _after_step(self, stop: StopRequest, first: int) -> None:
        at_end = self.done == self.stop_at
        epoch_ends = self.done % self.per_epoch == 0
        epoch = -(-self.done // self.per_epoch)
        validate_now = at_end or (epoch_ends and epoch % self.cfg.eval_every == 0)
        save_now = validate_now or self._save_is_due(epoch_ends, epoch)
        alone_and_stopped = self.world.size == 1 and bool(stop)
        if not (self.done % self.cfg.log_every == 0 or self.done == first + 1 or save_now or alone_and_stopped):
            return
        reading = self.meter.read(votes=[bool(stop), self._minutes_are_over()])
        self._report(reading, epoch, first)
        stop_wanted, save_wanted = reading.votes
        is_best = self._validate(epoch) if validate_now else False
        if save_now or save_wanted or stop_wanted:
            self._save(is_best)
        self.meter.restart()
        if stop_wanted and not at_end:
            raise RunStopped(
                f"stopped as asked after step {self.done}, which is saved: run the same command again to go on",
                128 + (stop.signal or 15),
            )

    # --- readings -------------------------------------------------------------------------------------------------

    def _report(self, reading: Reading, epoch: int, first: int) -> None:
        if reading.bad_step is not None:
            raise RunStopped(
                f"the loss or gradient was not finite at step {reading.bad_step}: the last good checkpoint "
                f"({f'step {self.saved}' if self.saved >= 0 else 'none yet'}) is kept in {self.run.checkpoints}; "
                "try a lower optim.lr, or optim.clip",
                1,
            )
        speed = (time.monotonic() - self.started) / max(self.done - first, 1)
        line: dict[str, Any] = {
            "split": "train",
            **self._place(),
            "loss": reading.loss,
            "lr": self.stepper.lr,
            "grad_norm": reading.grad_norm,
            "images_per_second": reading.images_per_second,
            "data_wait": reading.data_wait,
            "memory_gb": self._memory(),
        }
        if self.cfg.amp == "fp16":
            line["loss_scale"] = self.stepper.scaler.get_scale()
        if self.model_flops and self.peak_flops:
            arithmetic = 3 * self.model_flops * reading.images_per_second  # backward is twice the forward pass
            line["mfu"] = arithmetic / (self.peak_flops * self.world.size)
        self._write(line)
        left = (self.stop_at - self.done) * speed
        self.progress.show(epoch, self.cfg.epochs, line | {"seconds_left": left})

    def _place(self) -> dict[str, float]:
        return {"step": self.done, "epoch": round(self.done / self.per_epoch, 4)}

    def _memory(self) -> float:
        """Most memory used so far in GiB: of the GPU, or of this process on a CPU."""
        if self.stepper.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.stepper.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _write(self, line: dict[str, Any]) -> None:
        if not self.world.is_main:
            return
        with open(self.run.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")
        prefix = line["split"]
        self.logger.log({f"{prefix}/{k}": v for k, v in line.items() if k not in ("split", "step")}, line["step"])

    def _picture_once(self, batch: Batch) -> None:
        """Draw the run's very first batch as the model is about to see it."""
        path = self.run.plots / "batch.png"
        if not self.world.is_main or path.exists() or batch.draws is None:
            return
        augment = self.stepper.augment
        # The noise drawn for the picture is the noise of the step: drawing it must not use it up.
        device = self.stepper.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            images, targets = augment(batch.images, batch.labels, batch.draws)
        draw_batch(augment.denormalise(images).cpu(), targets.cpu(), self.names, path)
        self.logger.picture("batch", path, 0)

    # --- evaluations and checkpoints ------------------------------------------------------------------------------

    def _validate(self, epoch: int) -> bool:
        """Score the model; whether it is the best so far."""
        scores = self.last_scores = self.validate()
        is_best = self.best is None or scores.top1 > self.best["top1"]
        if is_best:
            self.best = {"step": self.done, "top1": scores.top1}
        self._write(
            {"split": "val", "step": self.done, "epoch": round(self.done / self.per_epoch, 4)} | scores.as_dict()
        )
        log.info(
            "epoch %d/%d  top-1 %.2f %%  top-5 %.2f %%  validation loss %.4f%s",
            *(epoch, self.cfg.epochs, scores.top1, scores.top5, scores.loss, "  (best)" if is_best else ""),
        )
        if self.world.is_main:
            self.logger.summarise({"best_top1": self.best["top1"] if self.best else None})
            draw_curves(self.run.read_metrics(), self.run.plots / "curves.png")
        return is_best

    def _save_is_due(self, epoch_ends: bool, epoch: int) -> bool:
        every = self.cfg.checkpoint
        by_steps = every.every_steps is not None and self.done % every.every_steps == 0
        by_epochs = every.every_epochs is not None and epoch_ends and epoch % every.every_epochs == 0
        return by_steps or by_epochs

    def _minutes_are_over(self) -> bool:
        minutes = self.cfg.checkpoint.every_minutes
        return self.world.is_main and minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _save(self, is_best: bool) -> None:
        with contextlib.ExitStack() as after:
            after.callback(self.world.barrier)
            if self.world.is_main:
                self.checkpoints.save(self._state(), is_best)
        self.saved, self.saved_at = self.done, time.monotonic()
