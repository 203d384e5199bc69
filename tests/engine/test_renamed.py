"""Files of older versions: their options are read under today's names."""

from dataclasses import asdict

from data import AugmentConfig
from engine.options.renamed import RENAMED, translated

# What the options of an older file mean today.
MEANT = {
    "auto": "auto_augment",
    "erase": "random_erasing",
    "smoothing": "label_smoothing",
    "mix_prob": "mixup_prob",
    "mix_switch": "mixup_switch_prob",
}


def test_every_option_of_an_older_file_has_its_new_name():
    values = {"auto": "3a", "erase": 0.1, "smoothing": 0.2, "mix_prob": 0.3, "mix_switch": 0.4}
    old = {"seed": 3, "augment": values | {"mixup": 0.8}, "logger": {"name": "wandb", "mode": "online"}}
    found = translated(old)
    assert found == {
        "seed": 3,
        "augment": {MEANT[name]: value for name, value in values.items()} | {"mixup": 0.8},
        "logger": {"mode": "online"},
    }
    assert asdict(AugmentConfig(**found["augment"])).items() >= found["augment"].items()
    assert old["augment"] == values | {"mixup": 0.8}, "what was given stays as it was"
    assert translated(found) == found
    assert {f"augment.{name}": f"augment.{new}" for name, new in MEANT.items()} == RENAMED, "a pair that is not tested"


def test_what_somebody_put_in_the_place_of_a_group_stays():
    for value in (5, "auto", [1], None):
        assert translated({"augment": value, "logger": value}) == {"augment": value, "logger": value}
