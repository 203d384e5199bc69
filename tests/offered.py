"""The optimizers that ``optim/`` offers, each with the options in torch's own test cases of that kind of optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from timm.optim import Lamb, Lion, Muon
from torch import Tensor
from torch.optim import Optimizer

from optim import AdamW2
from optim.fused import FusedAdamW, FusedSGD

with pytest.MonkeyPatch.context() as patch:
    # torch's cases would forbid to set cuDNN's options in this process, and other tests run commands that set them.
    patch.setattr(torch.backends, "disable_global_flags", lambda: None)
    from torch.testing._internal import common_optimizers as cases


@dataclass(frozen=True)
class Offered:
    """An optimizer, the options to test, and the errors that it must raise."""

    name: str
    make: Callable[..., Optimizer]
    options: tuple[dict[str, Any], ...]
    errors: tuple[cases.ErrorOptimizerInput, ...]


def _options(make: Callable[..., Optimizer], inputs: Iterable[cases.OptimizerInput]) -> tuple[dict[str, Any], ...]:
    """torch's options that an optimizer has, but no tensor betas: only torch's own CUDA graphs take them."""
    has = signature(make).parameters.keys()
    every = [case.kwargs for case in inputs if case.kwargs.keys() <= has]
    return tuple(options for options in every if not any(isinstance(b, Tensor) for b in options.get("betas", ())))


def _errors(inputs: Iterable[cases.ErrorOptimizerInput]) -> tuple[cases.ErrorOptimizerInput, ...]:
    """All error cases except those that choose another kernel."""
    return tuple(case for case in inputs if "foreach" not in case.optimizer_error_input.kwargs)


_CPU = ("cpu", torch.float32)
_ADAMW, _ADAMW_ERRORS = cases.optim_inputs_func_adamw("cpu"), _errors(cases.optim_error_inputs_func_adamw(*_CPU))
_SGD = [case for case in cases.optim_inputs_func_sgd("cpu") if "dampening" not in case.kwargs]
_SGD_ERRORS = _errors(cases.optim_error_inputs_func_sgd(*_CPU))
_ANY_ERRORS = _errors(cases.get_error_inputs_for_all_optims(*_CPU))
_ADAMW2 = (*_options(AdamW2, _ADAMW), {"lr": torch.tensor(1e-3)}, {"tau": float("inf")}, {"tau": 1e9})
_MUON = [case for case in cases.optim_inputs_func_muon("cpu") if "adjust_lr_fn" not in case.kwargs]  # named otherwise
_RADAM = tuple(
    case.kwargs for case in cases.optim_inputs_func_radam("cpu") if "decoupled_weight_decay" not in case.kwargs
)
_RADAM_ERRORS = _errors(cases.optim_error_inputs_func_radam(*_CPU))
_LAMB = partial(Lamb, max_grad_norm=None)

OFFERED = (
    Offered("adamw", FusedAdamW, _options(torch.optim.AdamW, _ADAMW), _ADAMW_ERRORS),
    Offered("adamw2", AdamW2, _ADAMW2, _ADAMW_ERRORS),
    Offered(
        "sgd",
        partial(FusedSGD, momentum=0.9),
        tuple(c.kwargs for c in _SGD if "dampening" not in c.kwargs),
        _SGD_ERRORS,
    ),
    Offered("lion", Lion, _options(Lion, _ADAMW), _ANY_ERRORS),
    Offered("lamb", _LAMB, _options(Lamb, _ADAMW), _ANY_ERRORS),
    Offered("radam", partial(torch.optim.RAdam, decoupled_weight_decay=True), _RADAM, _RADAM_ERRORS),
    Offered("muon", Muon, _options(Muon, _MUON), _ANY_ERRORS),
    Offered("adamuon", partial(Muon, algo="adamuon"), _options(Muon, _MUON), _ANY_ERRORS),
    Offered("nadamuon", partial(Muon, algo="adamuon", nesterov=True), _options(Muon, _MUON), _ANY_ERRORS),
)


def every_optimizer(**known: str) -> pytest.MarkDecorator:
    """Run a test with each optimizer. ``known`` names those that are expected to fail, each with the reason."""
    return pytest.mark.parametrize("offered", [_param(o, (o,), o.name, known) for o in OFFERED])


def every_option(**known: str) -> pytest.MarkDecorator:
    """Run a test with each optimizer and each set of its options; ``known`` as in :func:`every_optimizer`."""
    found = [
        _param(o, (o, options), f"{o.name}-{'-'.join(options) or 'default'}-{i}", known)
        for o in OFFERED
        for i, options in enumerate(o.options)
    ]
    return pytest.mark.parametrize(("offered", "options"), found)


def _param(offered: Offered, values: tuple[Any, ...], label: str, known: dict[str, str]) -> Any:
    kind = "muon" if offered.name.endswith("muon") else offered.name  # adamuon and nadamuon are options of timm's Muon
    reason = known.get(kind)
    marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
    return pytest.param(*values, id=label, marks=marks)
