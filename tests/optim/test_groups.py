"""Our parameter groups against timm's own: the same weights decay."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

import models  # noqa: F401  (registers the models)
from optim import param_groups
from optim.build import build_optimizer
from optim.config import OptimConfig, ScheduleConfig
from optim.errors import OptimError
from optim.schedules import Schedule

# Small models of families that list tables, tokens and temperatures in no_weight_decay(), in different ways.
SMALL = (
    *("xcit_nano_12_p16_224", "test_vit", "test_vit_relpos", "test_maxvit", "levit_128s", "tiny_vit_5m_224"),
    *("convit_tiny", "pit_ti_224", "crossvit_tiny_240", "lipsformer_swin_mini", "deit_tiny_distilled_patch16_224"),
)


def undecayed_by_timm(model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=exempt)
    return {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}


def assert_the_same_decay(name: str) -> None:
    """The same parameters decay as in timm. Tables and tokens that timm does not decay are not capped either."""
    with torch.device("meta"):
        model = timm.create_model(name)
    theirs = undecayed_by_timm(model)
    for group in param_groups(model, 0.05, 0.0):
        for member, parameter in group["params"]:
            assert (group["weight_decay"] == 0) == (member in theirs), f"{name}: {member}"
            assert not (group["cap"] and member in theirs and parameter.ndim >= 2), f"{name}: {member}"


@pytest.mark.parametrize("name", SMALL)
def test_decay_is_timm_s(name):
    assert_the_same_decay(name)


def small_one_of(names: list[str]) -> str:
    sizes = ("test_", "atto", "femto", "pico", "nano", "xx", "tiny", "050", "18", "_s", "small")
    return min(names, key=lambda name: next((i for i, size in enumerate(sizes) if size in name), len(sizes)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_decay_is_timm_s_for_a_model_of_each_family():
    families = [timm.list_models(module=module) for module in timm.list_modules()]
    for names in filter(None, families):
        assert_the_same_decay(small_one_of(names))


def test_a_pattern_covers_all_it_matches_and_a_name_itself_alone():
    class Patterned(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)
            self.header = nn.Linear(2, 2)
            self.header.bias = nn.Parameter(torch.zeros(1, 2))

        def no_weight_decay(self) -> set[str]:
            return {"table.*", "head", "head.weight"}

    decay = {
        name: group["weight_decay"] for group in param_groups(Patterned(), 0.1, 0.0) for name, _ in group["params"]
    }
    assert {name for name, value in decay.items() if value} == {"header.weight"}


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "data-parallel": nn.DataParallel,
    "with a head": lambda model: nn.Sequential(model, nn.Linear(10, 3)),
    "deep": lambda model: nn.ModuleDict({"[a]": nn.DataParallel(model)}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["lipsformer_swin_mini", "test_vit"])
def test_a_wrapped_model_decays_as_it_does_alone(name, wrapper):
    model = timm.create_model(name)
    wrapped = WRAPPERS[wrapper](model)

    def options(members: nn.Module) -> dict[int, tuple]:
        groups = param_groups(members, 0.1, 0.0)
        return {id(p): (g["weight_decay"], g["cap"], g["splits"]) for g in groups for _, p in g["params"]}

    assert options(model).items() <= options(wrapped).items()


@pytest.mark.parametrize("name", ["lipsformer_swin_mini", "deit_tiny"])
def test_features_decay_as_the_model_does(name):
    groups = param_groups(timm.create_model(name, features_only=True), 0.1, 0.0)
    tables = [
        g["weight_decay"]
        for g in groups
        for member, _ in g["params"]
        if "pos_embed" in member or "_bias_table" in member
    ]
    assert tables and not any(tables)


def test_fused_queries_keys_and_values_are_three_matrices():
    splits = {name: g["splits"] for g in param_groups(nn.MultiheadAttention(8, 2)) for name, _ in g["params"]}
    assert splits["in_proj_weight"] == 3 and splits["out_proj.weight"] == 1


# --- layer-wise decay of the learning rate ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["lipsformer_swin_tiny", "lipsformer_cswin_tiny", "cswin_tiny", "deit_small", "resnet18"]
)
def test_layer_decay_is_timm_s(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    theirs = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.7) for p in group["params"]
    }
    ours = {id(p): group["lr_scale"] for group in param_groups(model, layer_decay=0.7) for _, p in group["params"]}
    assert ours == theirs
    assert max(ours.values()) == 1 and len(set(ours.values())) > 5
    assert not any("lr_scale" in group for group in param_groups(model))


def test_the_schedule_multiplies_each_layers_rate():
    model = timm.create_model("lipsformer_swin_mini")
    optimizer = build_optimizer(OptimConfig(name="adamw", lr=1e-2, layer_decay=0.5), model, 64)
    schedule = Schedule(ScheduleConfig(name="constant"), optimizer, 0.0, 10, 5)
    schedule.step_update(0)
    rates = {round(group["lr"], 12) for group in optimizer.param_groups}
    assert rates == {round(1e-2 * 0.5**layer, 12) for layer in range(len(rates))} and len(rates) > 3


def test_a_model_without_layers_is_refused():
    with pytest.raises(OptimError, match=r"Linear does not say what its layers are: leave optim\.layer_decay out"):
        param_groups(nn.Linear(2, 2), layer_decay=0.5)
