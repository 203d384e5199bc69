"""The rules in the metadata of each option, and the walker that reads them."""

from dataclasses import dataclass, field

import pytest

from engine.errors import UserError
from engine.options.config import LoggerConfig, TrainConfig
from engine.options.rules import check, declared
from tests.runs import settings


@dataclass
class Misspelt:
    lr: float = field(default=0.1, metadata={"leest": 0})


def test_a_rule_that_the_walker_does_not_know_is_an_error():
    with pytest.raises(TypeError, match="leest"):
        declared(Misspelt)


@dataclass
class Ruled:
    share: float = field(default=0.5, metadata={"least": 0, "most": 1})
    decay: float = field(default=0.5, metadata={"above": 0, "below": 1})
    tau: float = field(default=1.0, metadata={"above": 0, "infinite": True})
    pair: list[float] = field(default_factory=lambda: [0.1, 0.2], metadata={"length": 2, "least": 0})
    mode: str = field(default="fast", metadata={"choices": ("fast", "exact")})
    free: int | None = None
    count: int | str | None = field(default=None, metadata={"above": 0, "choices": ("auto",)})


def test_defaults_and_null_keep_to_the_rules():
    check(Ruled(tau=float("inf"), free=None))
    check(Ruled(count="auto"))
    check(Ruled(count=1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 1.5}, "share=1.5 must be between 0 and 1"),
        ({"share": float("nan")}, "share=nan is not a number"),
        ({"share": float("inf")}, "share=inf must be finite"),
        ({"decay": 0.0}, "decay=0.0 must be more than 0, and less than 1"),
        ({"decay": 1.0}, "decay=1.0 must be more than 0, and less than 1"),
        ({"tau": -1.0}, "tau=-1.0 must be more than 0"),
        ({"pair": [1.0]}, "pair=[1.0] must be 2 numbers of 0 or more"),
        ({"pair": [1.0, -1.0]}, "pair=[1.0, -1.0] must be 2 numbers of 0 or more"),
        ({"mode": "fats"}, "mode=fats is unknown: did you mean fast?"),
        ({"mode": "x"}, "mode=x is unknown: choose fast, exact"),
        ({"count": 0}, "count=0 must be more than 0"),
        ({"count": "x"}, "count=x is unknown: choose auto, a number more than 0"),
        ({"free": 2**63}, "free=9223372036854775808 must be 9223372036854775807 or less"),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line(values, message):
    with pytest.raises(UserError) as refused:
        check(Ruled(**values))
    assert str(refused.value) == message


def test_a_resume_may_change_how_long_and_where_but_not_what_is_trained():
    options = declared(TrainConfig)
    free = {key for key, option in options.items() if option.rules.may_change}
    groups = {key for key in options if key.startswith(("logger.", "monitor."))}
    assert free == groups | {
        *(
            "epochs",
            "max_steps",
            "log_every",
            "eval_every",
            "eval.batch_size",
            "profile",
            "resume",
            "name",
            "recipe",
            "callbacks",
        ),
        *("compile", "compile_mode", "compile_options", "model.kernels"),
        *("output_dir", "device", "max_workers", "micro_batch_size", "data.root", "data.stage_to", "data.index_dir"),
        *("ddp_bucket_mb", "ddp_timeout"),
        *("data.hw_decoder_load", "data.on_bad_image", "checkpoint.every_steps", "checkpoint.every_epochs"),
        *("checkpoint.every_minutes", "checkpoint.keep"),
    }


def test_rules_over_several_options_are_checked_too():
    with pytest.raises(ValueError, match=r"data\.resize=20 is smaller than data\.crop=28"):
        settings("experiment=quickstart", "data.resize=20")


def test_a_limit_that_follows_from_another_option_belongs_to_what_is_allowed():
    mixed = ("model=deit_tiny", "data.root=.", "augment.mix_group=32")
    assert settings(*mixed, "micro_batch_size=32").micro_batch_size == 32
    with pytest.raises(UserError, match=r"^micro_batch_size=31 is smaller than augment\.mix_group=32"):
        settings(*mixed, "micro_batch_size=31")


def test_a_project_of_weights_and_biases_may_have_128_characters():
    LoggerConfig(project="x" * 128).check()
    with pytest.raises(UserError, match="must have 128 characters at most"):
        LoggerConfig(project="x" * 129).check()


def test_a_seed_has_64_bits():
    assert settings("model=deit_tiny", "data.root=.", f"seed={2**64 - 1}").seed == 2**64 - 1
    with pytest.raises(UserError, match=rf"^seed={2**64} must be {2**64 - 1} or less$"):
        settings("model=deit_tiny", "data.root=.", f"seed={2**64}")
