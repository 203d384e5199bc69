"""The loop: steps, readings, evaluations, checkpoints, and the end."""

import logging
import resource
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import torch

from data import Batch, TrainPlan
from engine.beside import LineFile, beside
from engine.checkpoint import Checkpoints
from engine.config import TrainConfig
from engine.data_wait import DataWait
from engine.distributed import World, is_lost_peer
from engine.errors import USER_ERRORS, RunStopped, UserError
from engine.flight_recorder import FlightRecorder
from engine.instruments import Instruments
from engine.json_text import to_json
from engine.loggers import Logger
from engine.meter import Meter, Reading
from engine.plots import draw_batch, draw_curves
from engine.profiler import span, step_profiler
from engine.progress import Progress
from engine.run_dir import RunDirectory
from engine.scoring import Scores
from engine.settings import as_container
from engine.signals import StopRequest, WaitGivenUp
from engine.stepper import Stepper
from models import family_of

log = logging.getLogger(__name__)

SECONDS_TO_NOTICE = 5.0  # between a signal to one process and the others' knowing of it
LEAST_LOSS_SCALE = 2.0**-20


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
        checkpoints: takes the states.
        instruments: look at the model as it trains.
        recorder: writes down what led to a spike of the loss.
        data_wait: says what to change where steps wait for data.
        stop: says whether this process was asked to stop.
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
        batches: Callable[[int, int], Generator[Batch, None, None]],
        stepper: Stepper,
        validate: Callable[[], Scores],
        logger: Logger,
        checkpoints: Checkpoints,
        instruments: Instruments,
        recorder: FlightRecorder,
        data_wait: DataWait,
        stop: StopRequest,
        names: dict[int, str],
        fingerprint: str,
        model_flops: int | None = None,
        peak_flops: float | None = None,
    ):
        self.cfg, self.run, self.world, self.plan, self.batches = cfg, run, world, plan, batches
        self.stepper, self.validate, self.logger, self.names = stepper, validate, logger, names
        self.fingerprint, self.model_flops, self.peak_flops = fingerprint, model_flops, peak_flops
        self.checkpoints, self.instruments, self.recorder = checkpoints, instruments, recorder
        self.data_wait, self.stop = data_wait, stop
        self.metrics = LineFile(run.metrics)
        self.meter = Meter(world, stepper.device, judge_gradient=cfg.amp != "fp16")
        self.per_epoch = plan.steps_per_epoch
        self.total = cfg.epochs * self.per_epoch
        self.stop_at = min(self.total, cfg.max_steps or self.total)
        self.done = 0  # optimizer steps
        self.best: dict[str, Any] | None = None  # the best validation so far: step, top1
        self.validated = 0  # step of the last validation
        self.vote_every = 1  # steps between questions whether to stop
        self.read_at = 0  # step of the last reading
        self.last_scores: Scores | None = None
        self.saved = -1  # step of the last checkpoint
        self.saved_at = time.monotonic()

    # --- going on -------------------------------------------------------------------------------------------------

    def load(self, state: dict[str, Any], source: str) -> None:
        """Go on from a checkpoint's state."""
        self.stepper.load_state_dict(state["stepper"] | {"model": state["model"], "ema": state["ema"]}, source)
        self.done = self.saved = state["step"]
        self.best, self.validated = state["best"], state["validated"]

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
            "validated": self.validated,
            "family": family_of(self.cfg.model),
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
        self.first = self.done
        self.progress = Progress(self.first, self.stop_at, self.world.is_main)
        self.started = time.monotonic()
        with self.stop.listening():
            try:
                self._train_to_the_end()
            except (RunStopped, UserError):  # a state that is saved, or not sound, or that cannot be saved
                raise
            except Exception as error:
                self._save_what_is_whole()
                if said := self._in_one_line(error):
                    raise said from error
                raise
            finally:
                self.progress.close()
                if self.world.is_main:
                    self.instruments.draw()
        return self.last_scores

    def _train_to_the_end(self) -> None:
        if 0 < self.first != self.validated and self._validation_is_due():
            self._validate()  # the run was stopped between a save and its validation
        with (
            step_profiler(self.run.path, self.cfg.profile and self.world.is_main) as after_step,
            closing(self.batches(self.first, self.stop_at)) as batches,
        ):
            self.meter.restart()
            while self.done < self.stop_at:
                self._step(batches)
                after_step()
                self._after_step()

    def _save_what_is_whole(self) -> None:
        """Before an error ends the run, save the steps since the last checkpoint. The other processes may be gone."""
        if not self.world.is_main or self.done <= max(self.saved, self.first):
            return
        with beside("the steps since the last checkpoint cannot be saved"):
            self.stepper.abandon_step()
            if self.meter.is_sound():
                self.checkpoints.save(self._state(), is_best=False)
                self.saved = self.done
                log.warning("the run ends early: step %d is saved", self.done)

    def _in_one_line(self, error: Exception) -> RunStopped | None:
        """What to say in place of an error that ends the run, where it needs no traceback."""
        if isinstance(error, WaitGivenUp):
            return self._stopped_as_asked()
        if self.world.size > 1 and isinstance(error, USER_ERRORS):
            return RunStopped(str(error), 2)  # not the mistake of a command, which all processes would have found
        if self.world.size > 1 and is_lost_peer(error):
            return RunStopped("another process has gone, and says why: run the same command again to go on", 1)
        return None

    def _stopped_as_asked(self) -> RunStopped:
        what = f"after step {self.saved}, which is saved" if self.saved > 0 else "before the first step was done"
        return RunStopped(
            f"stopped as asked {what}: run the same command again to go on", 128 + (self.stop.signal or 15)
        )

    def _step(self, batches: Iterator[Batch]) -> None:
        micro_steps = self.plan.geometry.micro_steps
        waited = 0.0

        def timed() -> Iterator[Batch]:
            nonlocal waited
            for _ in range(micro_steps):
                started = time.perf_counter()
                with span("data wait"):
                    batch = next(batches)
                waited += time.perf_counter() - started
                if self.done == self.first:
                    self._picture_once(batch)
                yield batch

        monitor = self.instruments.at(self.done + 1) if self.world.is_main else None
        loss, norm = self.stepper.step(self.done, timed(), micro_steps, monitor)
        self.done += 1
        self.recorder.add(self.done, loss, norm, self.stepper.lr)
        if monitor is not None and monitor.report is not None:
            self._write(self.instruments.take_down(monitor.report, self._place()))
        self.meter.add(self.done, loss, norm, self.cfg.batch_size, waited)
        self.progress.advance()

    def _after_step(self) -> None:
        validate_now = self._validation_is_due()
        save_now = self.done == self.stop_at or self._save_is_due()
        read_now = self.done % self.cfg.log_every == 0 or self.done == self.first + 1 or validate_now or save_now
        if not read_now and not self._stop_is_wanted():
            return
        reading = self.meter.read(votes=[bool(self.stop), self._minutes_are_over()])
        if said := self.recorder.look(reading.bad_step):
            log.warning("%s", said)
        self._report(reading)
        if said := self.data_wait.look(reading.data_wait):
            log.warning("%s", said)
        stop_wanted, save_wanted = reading.votes
        # The save comes first: nothing that goes wrong in a validation can then cost the steps before it.
        if save_now or save_wanted or stop_wanted:
            self._save(is_best=False)
        if stop_wanted and self.done < self.stop_at:
            raise self._stopped_as_asked()
        if validate_now:
            self._validate()
        self.meter.restart()

    def _stop_is_wanted(self) -> bool:
        """Whether any process was asked to stop; asked every few seconds, for asking waits for the device."""
        if self.world.size > 1 and (self.done - self.read_at) % self.vote_every:
            return False
        return self.world.any(bool(self.stop), self.stepper.device)

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1."""
        return -(-self.done // self.per_epoch)

    def _validation_is_due(self) -> bool:
        epoch_ends = self.done % self.per_epoch == 0
        return self.done == self.stop_at or (epoch_ends and self.epoch % self.cfg.eval_every == 0)

    # --- readings -------------------------------------------------------------------------------------------------

    def _report(self, reading: Reading) -> None:
        if reading.bad_step is not None:
            raise RunStopped(
                f"the loss or gradient was not finite at step {reading.bad_step}: the last good checkpoint "
                f"({f'step {self.saved}' if self.saved >= 0 else 'none yet'}) is kept in {self.run.checkpoints}; "
                "try a lower optim.lr, or optim.clip",
                1,
            )
        self.read_at = self.done
        self.vote_every = max(1, int(SECONDS_TO_NOTICE / reading.seconds_per_step))
        speed = (time.monotonic() - self.started) / max(self.done - self.first, 1)
        line: dict[str, Any] = {
            "split": "train",
            **self._place(),
            "loss": reading.loss,
            "lr": self.stepper.lr,
            "grad_norm": reading.grad_norm,
            "images_per_second": reading.images_per_second,
            "data_wait": reading.data_wait,
            "memory_gb": self._memory(),
            **self.stepper.cap_metrics(),
        }
        if self.cfg.amp == "fp16":
            line["loss_scale"] = self.stepper.scaler.get_scale()
            if line["loss_scale"] < LEAST_LOSS_SCALE:
                raise RunStopped("gradients overflow in fp16 at any scale: set amp=bf16, or a lower optim.lr", 1)
        if self.model_flops and self.peak_flops:
            arithmetic = 3 * self.model_flops * reading.images_per_second  # backward is twice the forward pass
            line["mfu"] = arithmetic / (self.peak_flops * self.world.size)
        self._write(line)
        left = (self.stop_at - self.done) * speed
        self.progress.show(self.epoch, self.cfg.epochs, line, left)

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
        self.metrics.add(to_json(line))
        prefix = line["split"]
        self.logger.log({f"{prefix}/{k}": v for k, v in line.items() if k not in ("split", "step")}, line["step"])

    def _picture_once(self, batch: Batch) -> None:
        """Draw the first batch as the model is about to see it, unless the run has a picture already."""
        path = self.run.plots / "batch.png"
        if not self.world.is_main or path.exists() or batch.draws is None:
            return
        augment = self.stepper.augment
        # The noise drawn for the picture is the noise of the step: drawing it must not use it up.
        device = self.stepper.device
        with beside(f"{path} cannot be drawn"), torch.random.fork_rng([device] if device.type == "cuda" else []):
            images, targets = augment(batch.images, batch.labels, batch.draws)
            draw_batch(augment.denormalise(images).cpu(), targets.cpu(), self.names, path)
            self.logger.picture("batch", path, 0)

    # --- evaluations and checkpoints ------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Score the model, and save it if it is the best so far."""
        scores = self.last_scores = self.validate()
        self.validated = self.done
        is_best = not scores.not_finite and (self.best is None or scores.top1 > self.best["top1"])
        if is_best:
            self.best = {"step": self.done, "top1": scores.top1}
        self._write({"split": "val"} | self._place() | scores.as_dict())
        log.info(
            "epoch %d/%d  top-1 %.2f %%  top-5 %.2f %%  validation loss %.4f%s",
            *(self.epoch, self.cfg.epochs, scores.top1, scores.top5, scores.loss, "  (best)" if is_best else ""),
        )
        if is_best or self.saved == self.done:  # a saved step is saved again, now as validated
            self._save(is_best)
        if self.world.is_main:
            self.logger.summarise({"best_top1": self.best["top1"] if self.best else None})
            curves = self.run.plots / "curves.png"
            with beside(f"{curves} cannot be drawn"):
                draw_curves(self.run.read_metrics(), curves)
            self.instruments.draw()

    def _save_is_due(self) -> bool:
        every = self.cfg.checkpoint
        epoch_ends = self.done % self.per_epoch == 0
        by_steps = every.every_steps is not None and self.done % every.every_steps == 0
        by_epochs = every.every_epochs is not None and epoch_ends and self.epoch % every.every_epochs == 0
        return by_steps or by_epochs

    def _minutes_are_over(self) -> bool:
        minutes = self.cfg.checkpoint.every_minutes
        return self.world.is_main and minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _save(self, is_best: bool) -> None:
        self.stepper.share_buffers()
        if self.world.is_main:
            self.checkpoints.save(self._state(), is_best)
        self.world.barrier()
        self.saved, self.saved_at = self.done, time.monotonic()
