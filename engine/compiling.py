"""Run networks through torch.compile: when to, what the log says about it, and what to do if the compiler fails."""

import logging
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
import torch._functorch.config
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import list_mode_options, list_options
from torch._inductor.runtime.cache_dir_utils import cache_dir

from data import refuse_others
from engine.errors import UserError
from engine.options.config import RunConfig
from engine.options.plain import flatten
from engine.runtime import Runtime
from engine.similar import nearest
from models import family_of
from models.stabilizers import SigmaReparam

log = logging.getLogger(__name__)

# The models of timm that compile=auto compiles, by the beginnings of their names. The tests trace one of each.
TIMM_MODELS = ("vit_", "deit", "swin_")
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes that record CUDA graphs


class Compiler:
    """Decides once for a process whether its networks are compiled, and wraps them.

    ``compile=auto`` compiles on a GPU in bf16 and fp16, if the model is of a family that compiles as one graph. After a
    failure of the compiler, all networks run eagerly.

    Args:
        cfg: the settings.
        device: the device of the networks.

    Raises:
        UserError: if torch's compiler has no such option, or torch has no folder for compiled kernels.
        DataError: if that folder belongs to another user.
    """

    def __init__(self, cfg: RunConfig, device: torch.device):
        self.mode = "default" if cfg.compile_mode == "auto" else cfg.compile_mode
        self.options = flatten(cfg.compile_options)
        self.may_fall_back = cfg.compile == "auto"
        self.is_on = cfg.compile == "true"
        if cfg.compile == "auto" and device.type == "cuda":
            is_known = family_of(cfg.model) != "timm" or cfg.model.name.startswith(TIMM_MODELS)
            # In fp32 the compiler gives attention in windows a bias whose memory layout the kernel refuses.
            self.is_on = is_known and cfg.amp != "fp32"
            if not self.is_on:
                what = f"{cfg.model.name} in fp32" if is_known else cfg.model.name
                log.info("%s runs without torch.compile, as it may not compile well: compile=true tries it", what)
        if self.is_on:
            _refuse_unknown_options(self.options)
            _refuse_kernels_of_others()

    def wrap(self, network: nn.Module, pad_to: int | None = None, mode: str | None = None) -> nn.Module:
        """Return a compiled form of a network with the same weights; the network itself if nothing is compiled.

        Args:
            network: takes a batch of images and returns logits.
            pad_to: number of images to fill smaller batches up to, so that only one batch size is compiled. This
                is for evaluation only.
            mode: torch's mode; None: ``compile_mode``, where ``auto`` means ``default``.
        """
        if not self.is_on:
            return network
        # In training, such a layer waits for the GPU, and the compiler cannot look through it.
        shares_statistics = any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
        if self.may_fall_back and shares_statistics and pad_to is None:
            log.info("the model trains without torch.compile, because of SyncBatchNorm: compile=true tries it")
            return network
        return Compiled(network, self, pad_to, mode or self.mode)

    def give_up(self, error: Exception) -> None:
        """Let all networks run eagerly from now on.

        Raises:
            UserError: if ``compile=true`` and no network has been compiled before.
        """
        cause = getattr(error, "inner_exception", error)  # the compiler wraps errors in longer ones
        why = str(cause).partition("\n")[0]
        if not self.may_fall_back:
            raise UserError(f"the model cannot be compiled ({why}): set compile=false") from error
        self.is_on = False
        log.warning("the model cannot be compiled (%s): it runs without torch.compile, as with compile=false", why)


class Compiled(nn.Module):
    """A network that is compiled at its first batch, and again at the first batch of every other size.

    Args:
        network: the network.
        compiler: how to compile it, and whether to.
        pad_to, mode: see :meth:`Compiler.wrap`.
    """

    def __init__(self, network: nn.Module, compiler: Compiler, pad_to: int | None, mode: str):
        super().__init__()
        self.network, self.compiler, self.pad_to = network, compiler, pad_to
        options = list_mode_options(mode) | compiler.options
        # Every size gets kernels of its own. They are faster than kernels for any size, and there are few sizes.
        self.compiled = torch.compile(network, options=options, dynamic=False)
        self.sizes: set[int] = set()  # the batch sizes that are compiled
        # Under DDP, torch compiles a network in parts, so that it can exchange the gradients of the last part early. If
        # it cuts within the torch.no_grad of a power iteration, all that follows is computed without gradients.
        self.may_be_cut = not any(isinstance(module, SigmaReparam) for module in network.modules())

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(n, classes)`` of ``n`` images."""
        count = len(images)
        if not self.compiler.is_on:
            return self.network(images)
        if self.pad_to is not None and count < self.pad_to:
            images = torch.cat([images] * -(-self.pad_to // count))[: self.pad_to]
        logits = self.compiled(images) if len(images) in self.sizes else self._first(images)
        return logits if len(logits) == count else logits[:count]

    def _first(self, images: Tensor) -> Tensor:
        """Compile the network for this number of images, and run it."""
        log.info("compiling the model for %d images at once: this takes a minute or two", len(images))
        started = time.perf_counter()
        try:
            # Compile the backward pass here too, and not inside the first backward(): a failure comes before any work.
            with (
                torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
                torch._dynamo.config.patch(optimize_ddp=torch._dynamo.config.optimize_ddp and self.may_be_cut),
            ):
                logits = self.compiled(images)
        except Exception as error:
            if not _is_from_compiler(error):
                raise
            self.compiler.give_up(error)
            return self.network(images)
        log.info("compiled in %.0f s", time.perf_counter() - started)
        self.sizes.add(len(images))
        self.compiler.may_fall_back = True  # a later failure must not end a run that has begun
        return logits


def training_mode(cfg: RunConfig, runtime: Runtime, micro_steps: int) -> str:
    """Return the mode in which the network is compiled for training.

    A step of these models has more than a thousand short kernels, and the host is slower than the GPU. With
    ``compile_mode=auto``, a CUDA graph therefore starts them where this was measured: on one GPU, with one
    micro-batch in each step. A CUDA graph writes its gradients to the same memory every time, so those of a second
    micro-batch would overwrite those of the first: https://github.com/pytorch/pytorch/issues/169545

    Raises:
        UserError: if the settings ask for CUDA graphs, and a step has several micro-batches.
    """
    is_gpu = runtime.device.type == "cuda"
    if cfg.compile_mode == "auto":
        return "reduce-overhead" if is_gpu and runtime.world.size == 1 and micro_steps == 1 else "default"
    if is_gpu and micro_steps > 1 and cfg.compile != "false" and cfg.compile_mode in CUDA_GRAPHS:
        raise UserError(
            f"compile_mode={cfg.compile_mode} cannot add the gradients of {micro_steps} micro-batches: set "
            "compile_mode=max-autotune-no-cudagraphs, or a larger micro_batch_size"
        )
    return cfg.compile_mode


def _refuse_unknown_options(options: dict[str, Any]) -> None:
    """Refuse options that torch's compiler does not have, and values of another type.

    Raises:
        UserError: naming the first such option.
    """
    for name, value in options.items():
        if name == "triton.cudagraphs":
            raise UserError(f"compile_options.{name} belongs to the mode: set compile_mode=reduce-overhead")
        if name not in list_options():
            listing = "print(torch._inductor.list_options()) lists all"
            raise UserError(f"torch's compiler has no option '{name}': {nearest(name, list_options(), listing)}")
        try:
            torch.compile(nn.Identity(), options={name: value})  # compiles nothing yet
        except RuntimeError as error:
            raise UserError(f"compile_options.{name}={value} does not suit torch's compiler: {error}") from error


def _refuse_kernels_of_others() -> None:
    """Make torch's folder of compiled kernels, and refuse it if it is another user's: its name in /tmp is known.

    Raises:
        UserError: if it cannot be made.
        DataError: if it belongs to another user.
    """
    advice = "set the environment variable TORCHINDUCTOR_CACHE_DIR to a folder of your own, or compile=false"
    try:
        folder = Path(cache_dir())
    except OSError as error:
        raise UserError(f"torch has no folder for compiled kernels ({error}): {advice}") from error
    refuse_others(folder, advice)


def _is_from_compiler(error: Exception) -> bool:
    """Whether an error comes from the compiler, and not from the network: Triton raises plain errors without a gcc."""
    return isinstance(error, TorchDynamoException | subprocess.CalledProcessError) or "C compiler" in str(error)
