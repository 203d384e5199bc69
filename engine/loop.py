"""The training loop: take steps, report metrics, save, stop, validate."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from typing import Any

from data import BatchGeometry
from engine.callbacks import Callbacks, is_long_work_due
from engine.device import peak_memory_gb
from engine.errors import USER_ERRORS, RunStopped, UserError, lacks_memory
from engine.evaluation.scoring import Scores, score
from engine.measuring.meter import Meter, Reading
from engine.options.plain import as_container
from engine.processes.lockstep import PeerFailed
from engine.processes.signals import StopRequest, WaitGivenUp
from engine.run import Run
from engine.training_batches import TrainBatch
from engine.warn_on_failure import warn_on_failure
from models import family_of

log = logging.getLogger(__name__)

SECONDS_TO_NOTICE = 5.0  # one process gets a signal: the others learn of it within this time


class TrainLoop:
    """Trains a model from the current step of its run to the last one.

    Args:
        run: the parts of the run.
        callbacks: get every step, line of metrics and picture.
        stop: says whether this process was asked to stop.
        seconds_at_peak: seconds that one training image takes at the device's peak FLOP/s, for the metric ``mfu``; None
            if the peak is unknown.
    """

    def __init__(self, run: Run, callbacks: Callbacks, stop: StopRequest, seconds_at_peak: float | None = None):
        self.run, self.callbacks, self.stop, self.seconds_at_peak = run, callbacks, stop, seconds_at_peak
        self.cfg, self.world, self.length = run.cfg, run.runtime.world, run.length
        self.meter = Meter(run.runtime, run.cfg.batch_size)
        self.done = run.first  # optimizer steps
        self.best: dict[str, Any] | None = None  # the best validation so far: step, top1
        self.validated = 0  # step of the last validation
        self.last_scores: Scores | None = None
        self.saved = -1  # step of the last checkpoint
        self.saved_at = time.monotonic()
        self.vote_every = 1  # steps after which the processes ask each other whether to stop
        self.read_at = 0  # step of the last reading

    # --- the state of the run -------------------------------------------------------------------------------------

    def load(self, state: dict[str, Any]) -> None:
        """Load the state of the checkpoint that the run continues from."""
        self.run.step.load_state_dict(state, str(self.run.directory.checkpoints))
        self.saved, self.best, self.validated = self.done, state["best"], state["validated"]

    def _state(self) -> dict[str, Any]:
        """Return everything that a resume or an evaluation needs.

        It holds no state of random generators, because all random numbers are functions of the seed and the position.
        """
        return {
            "step": self.done,
            "epoch": self.done // self.length.steps_per_epoch,
            "step_in_epoch": self.done % self.length.steps_per_epoch,
            **self.run.step.state_dict(),
            "family": family_of(self.cfg.model),
            "config": as_container(self.cfg),
            "classes": self.run.data.classes,
            "fingerprint": self.run.data.fingerprint(),
        } | self._changed_by_validation()

    def _changed_by_validation(self) -> dict[str, Any]:
        return {"best": self.best, "validated": self.validated, "callbacks": self.callbacks.state_dict()}

    # --- the loop -------------------------------------------------------------------------------------------------

    def fit(self) -> Scores | None:
        """Train to the end.

        Returns:
            The scores of the last validation; None if there was none because the run had already ended.

        Raises:
            RunStopped: if a loss or gradient was not finite, the process was asked to stop, or another one is missing.
            UserError: if a checkpoint cannot be saved.
        """
        with self.stop.listening():  # until all is done: a signal must not end the last save, nor what callbacks finish
            try:
                self._train_and_wait()
            except (RunStopped, UserError):  # the state is saved already, is not finite, or cannot be saved
                raise
            except Exception as error:
                if instead := self._end_early(error):
                    raise instead from error
                raise
            finally:
                self.callbacks.on_end()
        return self.last_scores

    def _train_and_wait(self) -> None:
        try:
            self._train_to_the_end()
        finally:  # whatever ends the run, the checkpoint that is being written must be complete
            self.run.checkpoints.wait()

    def _train_to_the_end(self) -> None:
        if self.run.first > 0 and self.run.first != self.validated and self._validation_is_due():
            self._validate()  # the run was stopped between a save and its validation
        with (
            closing(self.run.data.training_batches(self.run.first, self.length.stop_at)) as batches,
            closing(self.world.in_step(batches, self.stop.look)) as batches_in_step,
        ):
            self.meter.restart()
            while self.done < self.length.stop_at:
                self._step(batches_in_step, batches.pop_waited)
                self._after_step()
        self._finish_saving()

    def _step(self, batches: Iterator[TrainBatch], pop_waited: Callable[[], float]) -> None:
        outcome = self.run.step.take(self.done + 1, batches)
        self.done += 1
        self.meter.add(outcome, pop_waited())
        is_long = is_long_work_due(self.cfg, self.done, self.run.first)
        with self.world.first_works_alone(self.cfg.ddp_timeout) if is_long else nullcontext():
            self.callbacks.after_step(outcome)

    def _after_step(self) -> None:
        self.run.checkpoints.raise_if_failed()
        validate_now = self._validation_is_due()
        save_now = self.done == self.length.stop_at or self._save_is_due()
        read_now = self.done % self.cfg.log_every == 0 or self.done == self.run.first + 1 or validate_now or save_now
        if not read_now and not self._stop_is_wanted():
            return
        reading = self.meter.read(votes=[bool(self.stop), self._minutes_are_over()])
        # Until the first reading, processes wait 30 minutes for each other, because the first step compiles. Leaving
        # this context sets the usual time-out.
        with self.world.first_works_alone(self.cfg.ddp_timeout):
            self._report(reading)
            stop_wanted, save_wanted = reading.votes
            # Save before validating, so that a failure in the validation cannot lose these steps.
            if save_now or save_wanted or stop_wanted:
                self.run.step.broadcast_buffers()
                self._save(is_best=False)
            if stop_wanted and self.done < self.length.stop_at:
                self._finish_saving()
                raise self._stopped_by_signal()
            if validate_now:
                self._validate()
        self.meter.restart()

    def _report(self, reading: Reading) -> None:
        """Send a reading, and its line of metrics, to the callbacks.

        Raises:
            RunStopped: if the loss or gradient of a step was not finite.
        """
        self.callbacks.on_reading(reading)
        if reading.bad_step is not None:
            self._finish_saving()
            raise self._stopped_by_bad_step(reading.bad_step)
        self.read_at = self.done
        self.vote_every = max(1, int(SECONDS_TO_NOTICE / reading.seconds_per_step))
        line = {"split": "train"} | self.length.place(self.done) | reading.numbers() | self.run.step.metrics()
        line["memory_gb"] = peak_memory_gb(self.run.runtime.device)
        if self.seconds_at_peak:
            line["mfu"] = reading.images_per_second / self.world.size * self.seconds_at_peak
        self.callbacks.on_line(line)

    def _validate(self) -> None:
        """Score the model on the validation images, and save it if it is the best so far."""
        step, runtime = self.run.step, self.run.runtime
        step.broadcast_buffers()
        scores = score(step.evaluated_network, self.run.data.validation_batches(), self.run.data.augment, runtime)
        self.last_scores, self.validated = scores, self.done
        is_best = not scores.not_finite and (self.best is None or scores.top1 > self.best["top1"])
        if is_best:
            self.best = {"step": self.done, "top1": scores.top1}
        log.info(
            "epoch %d/%d  top-1 %.2f %%  top-5 %.2f %%  validation loss %.4f%s",
            *(self.length.epoch_of(self.done), self.cfg.epochs, scores.top1, scores.top5, scores.loss),
            "  (best)" if is_best else "",
        )
        self.callbacks.on_line({"split": "val"} | self.length.place(self.done) | scores.as_dict())
        if self.world.is_main and self.run.checkpoints.is_last(self.done):
            self.run.checkpoints.add_validation(self._changed_by_validation(), is_best)
        elif is_best or self.saved == self.done:  # last.pt is not of this step, or this is not the first process
            self._save(is_best)

    def _save(self, is_best: bool) -> None:
        """Begin to save the state of this step. The first process's buffers are broadcast already."""
        if self.world.is_main:
            self.run.checkpoints.save(self._state(), is_best)
        self.saved, self.saved_at = self.done, time.monotonic()

    def _finish_saving(self) -> None:
        """Wait until the checkpoint is complete. All processes wait: when one exits, torchrun ends the others."""
        with self.world.first_works_alone(self.cfg.ddp_timeout):  # it ends with a barrier
            self.run.checkpoints.wait()

    # --- what is due ----------------------------------------------------------------------------------------------

    def _validation_is_due(self) -> bool:
        return self.length.ends_epoch(self.done, self.cfg.eval_every) or self.done == self.length.stop_at

    def _save_is_due(self) -> bool:
        steps, epochs = self.cfg.checkpoint.every_steps, self.cfg.checkpoint.every_epochs
        return (steps is not None and self.done % steps == 0) or (
            epochs is not None and self.length.ends_epoch(self.done, epochs)
        )

    def _minutes_are_over(self) -> bool:
        minutes = self.cfg.checkpoint.every_minutes
        return self.world.is_main and minutes is not None and time.monotonic() - self.saved_at > 60 * minutes

    def _stop_is_wanted(self) -> bool:
        """Whether any process was asked to stop. Processes exchange this only every few seconds, to keep it cheap."""
        if self.world.size > 1 and (self.done - self.read_at) % self.vote_every:
            return False
        return self.world.any(bool(self.stop), self.run.runtime.device)

    # --- an early end ---------------------------------------------------------------------------------------------

    def _end_early(self, error: Exception) -> RunStopped | None:
        """Save what can be saved after an error. Returns the error to raise instead, if one line explains it."""
        is_within_step = self.run.step.stage != "between steps"
        lost = self.world.lost(error)  # before a save, because the other processes wait only seconds for this one
        self._save_whole_steps()
        self.world.leave()
        return self._in_one_line(error, is_within_step) or lost

    def _save_whole_steps(self) -> None:
        """Save and report the last steps before an error ends the run, without contacting other processes."""
        if not self.world.is_main or self.done <= max(self.saved, self.run.first):
            return
        with warn_on_failure("the steps since the last checkpoint cannot be saved", "they are lost"):
            self.run.step.undo_unfinished()
            if self.meter.is_sound():
                self.run.checkpoints.save(self._state(), is_best=False)
                self.run.checkpoints.wait()
                self.saved = self.done
                log.warning("the run ends early: step %d is saved", self.done)
                if self.meter.unread:
                    self._report(self.meter.read_alone(self.run.data.geometry.share))

    def _in_one_line(self, error: Exception, is_within_step: bool) -> RunStopped | None:
        """Return the error to raise instead, if one line explains it; None if the traceback is needed."""
        if isinstance(error, WaitGivenUp) or (isinstance(error, PeerFailed) and self.stop):
            return self._stopped_by_signal()
        if is_within_step and lacks_memory(error):
            return RunStopped(too_many_at_once(self.run.data.geometry), 1)
        if self.world.size > 1 and isinstance(error, USER_ERRORS):
            return RunStopped(str(error), 2)  # only this process has the error, so it must not wait to say so
        return None

    def _stopped_by_bad_step(self, step: int) -> RunStopped:
        kept = f"step {self.saved}" if self.saved >= 0 else "none yet"
        return RunStopped(
            f"the loss or gradient was not finite at step {step}: the last good checkpoint ({kept}) is kept in "
            f"{self.run.directory.checkpoints}; try a lower optim.lr, or optim.clip",
            1,
        )

    def _stopped_by_signal(self) -> RunStopped:
        what = f"after step {self.saved}, which is saved" if self.saved > 0 else "before a step was saved"
        return RunStopped(
            f"stopped by a signal {what}: run the same command again to continue", 128 + (self.stop.signal or 15)
        )


def too_many_at_once(geometry: BatchGeometry) -> str:
    """Return the message for a training step that needs more memory than the device has.

    It suggests the next smaller power of two in whole mix groups. How much would fit is unknown after such an error.
    """
    images, group = geometry.largest_micro_batch, geometry.mix_group
    power = 1 << (images - 1).bit_length() >> 1  # the largest power of two below
    smaller = max(power // group * group, group)
    what = f"micro_batch_size={smaller}" if smaller < images else "model.grad_checkpointing=true, or use more GPUs"
    return f"the GPU has too little memory for {images} images at once: set {what}"
