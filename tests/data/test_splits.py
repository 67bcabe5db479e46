import pytest
from data_files import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_unet.config import SplitConfig
from ddpm_unet.data.splits import split_images


def split(count, **settings):
    names = [f"{i:02}" for i in range(count)]
    return split_images(names, [(64, 64)] * count, SplitConfig(**settings))


def numbers(parts):
    return [int(part["name"]) for part in parts]


@given(
    st.integers(3, 40),
    st.sampled_from(["blocks", "files"]),
    st.floats(0, 0.4),
    st.floats(0, 0.3),
    st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_picture_is_in_one_part(count, by, validation, test, seed):
    made = split(count, by=by, validation=validation, test=test, seed=seed)
    parts = [numbers(made[purpose]) for purpose in ("train", "validation", "test")]
    together = [number for part in parts for number in part]
    assert sorted(together) == list(range(count))
    assert parts == [sorted(part) for part in parts]
    assert len(parts[0]) >= 1
    for part, share in zip(parts[1:], (validation, test), strict=True):
        assert len(part) == (max(1, round(share * count)) if share else 0)
    if by == "blocks":
        assert together == list(range(count))


def test_whole_numbers_count_pictures():
    made = split(30, validation=4, test=6)
    assert numbers(made["train"]) == list(range(20))
    assert numbers(made["validation"]) == [20, 21, 22, 23]
    assert numbers(made["test"]) == list(range(24, 30))
    assert made["how"] == "20 images train, 4 validate, 6 test (in blocks)"


@pytest.mark.parametrize("by", ["blocks", "files"])
def test_folds_validate_every_picture_once_and_never_the_test(by):
    made = [split(23, by=by, folds=5, fold=k, test=3) for k in range(5)]
    test = numbers(made[0]["test"])
    assert all(numbers(one["test"]) == test for one in made)
    validated = [number for one in made for number in numbers(one["validation"])]
    assert sorted(validated + test) == list(range(23))
    for one in made:
        assert not set(numbers(one["train"])) & set(numbers(one["validation"]))
        assert len(one["train"]) + len(one["validation"]) == 20
        if by == "blocks":
            block = numbers(one["validation"])
            assert block == list(range(block[0], block[-1] + 1))


def test_files_are_shuffled_by_the_seed_alone():
    first, again, other = (split(20, by="files", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first["validation"] != other["validation"]
    assert numbers(first["validation"]) != [16, 17, 18, 19]


@pytest.mark.parametrize(("limit", "wanted"), [(1, [12]), (3, [4, 12, 20]), (24, list(range(24)))])
def test_limit_spreads_over_the_training_part_and_leaves_the_others(limit, wanted):
    made = split(30, validation=3, test=3, limit=limit)
    assert numbers(made["train"]) == wanted
    assert numbers(made["validation"] + made["test"]) == [24, 25, 26, 27, 28, 29]
    assert f"training limited to {limit}" in made["how"]


@pytest.mark.parametrize(
    ("size", "along"), [((100, 500), "columns"), ((500, 100), "rows"), ((500, 500), "columns")]
)
def test_one_picture_is_cut_in_strips_with_gaps(size, along):
    config = SplitConfig(validation=0.2, test=0.1, gap=30)
    made = split_images(["only"], [size], config)
    assert made["train"] == [{"name": "only", along: [0, 290]}]
    assert made["validation"] == [{"name": "only", along: [320, 420]}]
    assert made["test"] == [{"name": "only", along: [450, 500]}]
    assert made["how"].startswith("only is the only labelled image")
    assert f"its {along} 320 to 419 validate" in made["how"]


def test_one_picture_without_validation_trains_whole():
    made = split(1, validation=0)
    assert made["train"] == [{"name": "00"}]
    assert made["validation"] == made["test"] == []


@pytest.mark.parametrize(
    ("count", "config", "message"),
    [
        (4, {"validation": 1.5}, "data.split.validation is 1.5"),
        (4, {"test": -0.1}, "data.split.test is -0.1"),
        (4, {"limit": 4}, "data.split.limit is 4: give 1 to 3"),
        (4, {"limit": 0}, "data.split.limit is 0"),
        (4, {"folds": 2, "fold": 2}, "data.split.fold is 2: give 0 to 1"),
        (1, {"folds": 2}, "00 is the only labelled image"),
        (1, {"validation": 1}, "00 is the only labelled image"),
        (1, {"validation": -0.1}, "data.split.validation is -0.1"),
    ],
)
def test_faults_name_the_cure(count, config, message):
    with refused(message):
        split(count, **config)
