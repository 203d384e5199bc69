"""Which label a class folder gets."""

import numpy as np
import pytest
from timm.data import ImageNetInfo

from data.errors import DataError
from data.sets.labels import _say_once, class_labels, class_names, label_space, refuse_different_classes

WNIDS = ImageNetInfo().label_names()


def test_all_wordnet_ids_get_their_ilsvrc_index() -> None:
    assert class_labels(sorted(WNIDS), 1000).tolist() == list(range(1000))
    assert (WNIDS[0], WNIDS[207], WNIDS[999]) == ("n01440764", "n02099601", "n15075141")


@pytest.mark.parametrize("num_classes", [None, 1000])
def test_some_wordnet_ids_keep_their_ilsvrc_index(num_classes: int | None) -> None:
    classes = ["n01440764", "n02099601", "n15075141"]  # tench, golden retriever, toilet tissue
    assert class_labels(classes, num_classes).tolist() == [0, 207, 999]
    assert label_space(classes, class_labels(classes, num_classes)) == 1000


def test_wordnet_ids_of_a_model_with_as_many_classes_are_in_sorted_order() -> None:
    classes = ["n01440764", "n02099601", "n15075141"]
    assert class_labels(classes, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("num_classes", "labels"), [(11821, [216, 1505]), (21841, [359, 2264]), (21842, [0, 207]), (21843, [359, 2264])]
)
def test_wordnet_ids_get_the_labels_of_the_relative_of_imagenet(num_classes, labels, caplog) -> None:
    _say_once.cache_clear()
    with caplog.at_level("INFO"):
        for _ in ("train", "val"):
            assert class_labels(["n01440764", "n02099601"], num_classes).tolist() == labels
    assert caplog.text.count("class folders get the labels of timm's imagenet-") == 1


def test_wordnet_ids_whose_place_is_unknown_are_refused() -> None:
    with pytest.raises(DataError, match=r"'n04399382' is not one of the 21841 classes of timm's imagenet-22k"):
        class_labels(["n01440764", "n04399382"], 21841)  # a teddy bear, which is not in ImageNet-22k
    for num_classes in (500, 5000):
        with pytest.raises(DataError, match=rf"the order of the model's {num_classes} classes is unknown"):
            class_labels(["n01440764", "n01443537"], num_classes)


def test_wordnet_ids_are_a_part_of_all_even_where_they_are_the_first() -> None:
    assert label_space(WNIDS[:10], class_labels(WNIDS[:10])) == 1000


def test_integers_from_0_on_are_labels_whatever_their_order() -> None:
    names = sorted(map(str, range(12)))
    for num_classes in (None, 12, 1000):
        assert class_labels(names, num_classes).tolist() == [int(name) for name in names]
    assert label_space(names, class_labels(names)) == 12


def test_integers_are_labels_of_a_model_with_more_classes() -> None:
    assert class_labels(["0", "1", "10", "2"], 11).tolist() == [0, 1, 10, 2]
    assert class_labels(["00007", "00012"], 1000).tolist() == [7, 12]
    assert class_labels(sorted(map(str, range(5, 900))), 1000).tolist() == sorted(range(5, 900), key=str)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (["1", "2", "3"], [0, 1, 2]),
        (["1", "10", "2"], [0, 2, 1]),
        (["0", "10", "2"], [0, 2, 1]),
        (["007", "1000", "42"], [0, 2, 1]),
        (sorted(map(str, range(1, 103))), [int(name) - 1 for name in sorted(map(str, range(1, 103)))]),
        (sorted(map(str, range(1, 1001))), [int(name) - 1 for name in sorted(map(str, range(1, 1001)))]),
    ],
)
def test_other_integers_are_in_numeric_order(
    classes: list[str], labels: list[int], known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _say_once.cache_clear()
    with caplog.at_level("INFO"):
        for _ in ("train", "val"):
            assert class_labels(classes, len(classes) if known else None).tolist() == labels
    assert caplog.text.count("and so on, in numeric order") == 1
    assert label_space(classes, np.array(labels)) == len(classes)


def test_a_model_trained_on_integers_finds_them_by_their_value() -> None:
    trained_on = ["1", "2", "3", "10"]
    assert class_labels(["10", "2"], 4, trained_on).tolist() == [3, 1]
    assert class_labels(["02", "03"], 4, trained_on).tolist() == [1, 2]
    with pytest.raises(DataError, match=r"'0' is not one of the 4 classes"):
        class_labels(["0"], 4, trained_on)


def test_integers_are_labels_of_a_model_trained_on_names() -> None:
    assert class_labels(["0", "2"], 3, ["cat", "dog", "otter"]).tolist() == [0, 2]
    with pytest.raises(DataError, match=r"'3' has label 3, but the model has 3 classes"):
        class_labels(["1", "2", "3"], 3, ["cat", "dog", "otter"])


@pytest.mark.parametrize("classes", [["cat", "dog", "otter"], ["1", "2", "cat"], ["cat", "n01440764"]])
def test_other_names_are_in_sorted_order(classes: list[str]) -> None:
    assert class_labels(classes).tolist() == list(range(len(classes)))
    assert class_labels(classes, len(classes)).tolist() == list(range(len(classes)))
    assert class_labels(classes, 1000).tolist() == list(range(len(classes)))


def test_names_the_model_was_trained_on_get_its_labels() -> None:
    trained_on = ["zebra", "cat", "7", "n02099601"]
    assert class_labels(["7", "cat"], 4, trained_on).tolist() == [2, 1]
    assert class_labels(sorted(trained_on), 4, trained_on).tolist() == [2, 1, 3, 0]


def test_a_name_the_model_was_not_trained_on_is_refused() -> None:
    with pytest.raises(DataError, match=r"'dog' is not one of the 2 classes"):
        class_labels(["cat", "dog"], 2, ["cat", "zebra"])


@pytest.mark.parametrize(
    ("classes", "num_classes", "name"),
    [(["1", "2", "5"], 4, "5"), (["cat", "dog", "otter"], 2, "otter"), (["n01440764", "n15075141"], 999, "n15075141")],
)
def test_more_labels_than_the_model_has_are_refused(classes: list[str], num_classes: int, name: str) -> None:
    with pytest.raises(DataError, match=rf"'{name}' has label \d+, but the model has {num_classes} classes"):
        class_labels(classes, num_classes)


def test_same_classes_in_both_splits_pass() -> None:
    refuse_different_classes(["a", "b"], ["b", "a"])


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["a", "b", "c", "d"], ["a", "d"], r"'b' and 1 more only in the training folder"),
        (["a"], ["a", "b"], r"'b' only in the validation folder"),
    ],
)
def test_different_classes_are_refused_by_name(train: list[str], val: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        refuse_different_classes(train, val)


def test_two_folders_of_one_label_are_refused() -> None:
    with pytest.raises(DataError, match="same label"):
        class_labels(["01", "1", "2"])


def test_a_model_of_imagenet_has_its_names_even_where_the_folders_are_few() -> None:
    folders = {0: WNIDS[0], 207: WNIDS[207]}
    assert class_names(1000, folders) == class_names(1000, {}) == WNIDS
    assert class_names(1000, {0: "0", 1: "1"})[:3] == ["0", "1", "2"], "the folders have other names"
    assert class_names(1000, {0: WNIDS[1]})[:2] == [WNIDS[1], "1"], "another order"
    assert class_names(3, {0: "cat", 2: "dog"}) == ["cat", "1", "dog"]


@pytest.mark.parametrize("known", [{}, {"trained_on": ["0", "1"]}])
def test_endless_numbers_are_names(known: dict[str, list[str]]) -> None:
    """An index that came with the images may hold them, and Python refuses to convert them."""
    with pytest.raises(DataError, match=r"'9{5000}'"):
        class_labels(["0", "9" * 5000], 1, **known)


def test_labels_without_a_folder_count() -> None:
    assert label_space(["0", "7"], np.array([0, 7])) == 8
