import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from ddpm_unet.config import AugmentConfig
from ddpm_unet.data.augment import (
    Color,
    Deformation,
    Intensity,
    augmentation,
    window_margin,
)
from ddpm_unet.data.windows import cut_window
from ddpm_unet.randomness import seeded

PLAIN = {"brightness": 0.0, "contrast": 0.0, "gamma": 0.0, "noise": 0.0}
SIZE = 48


def blobs(seed, size):
    """A smooth random picture in [-1, 1], `[1, size, size]`."""
    coarse = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")[0].clamp(-1, 1)


def sample(seed=0, size=SIZE, margin=0, channels=1):
    image = blobs(seed, size + 2 * margin)
    return {
        "image": tv_tensors.Image(image.repeat(channels, 1, 1)),
        "mask": tv_tensors.Mask((image[0] > 0).to(torch.int16)),
        "weight": tv_tensors.Mask(image[0].clone()),
    }


@given(
    st.integers(-40, 60),
    st.integers(-40, 60),
    st.integers(1, 30),
    st.sampled_from([(1, 1), (2, 7), (9, 12), (40, 50)]),
)
@settings(max_examples=80, deadline=None)
def test_windows_are_numpys_reflection(top, left, size, shape):
    planes = np.arange(2 * shape[0] * shape[1]).reshape(2, *shape)
    padded = np.pad(planes, [(0, 0), (100, 100), (100, 100)], mode="reflect")
    wanted = padded[:, 100 + top : 100 + top + size, 100 + left : 100 + left + size]
    np.testing.assert_array_equal(cut_window(planes, (top, left), (size, size)), wanted)
    np.testing.assert_array_equal(cut_window(planes[0], (top, left), (size, size)), wanted[0])


@pytest.mark.parametrize("position", range(12))
@pytest.mark.parametrize(
    ("dims", "size", "bent"),
    [
        (2, SIZE, {"elastic_sigma": 10.0}),
        (2, SIZE, {"elastic_sigma": 4.0, "rotation": 180, "zoom": 0.2}),
        (3, 10, {"elastic_sigma": 1.0}),
        (3, 8, {"elastic_sigma": 0.0, "rotation": 30, "zoom": 0.2}),
    ],
)
def test_image_mask_and_weight_move_together(position, dims, size, bent):
    config = AugmentConfig(**PLAIN, **bent)
    side, base = size + 2 * window_margin(config, size, dims), {2: 180, 3: 30}[dims]
    places = torch.stack(torch.meshgrid(*[torch.arange(side)] * dims, indexing="ij"))
    digits = base ** torch.arange(dims - 1, -1, -1).reshape(-1, *[1] * dims)
    made = {
        "image": tv_tensors.Image(places.float()),
        "mask": tv_tensors.Mask((places * digits).sum(0).to(torch.int16)),
        "weight": tv_tensors.Mask(places[-1].float()),
    }
    with seeded(0, "augment", position):
        made = augmentation(config, size, dims)(made)
    assert isinstance(made["image"], tv_tensors.Image)
    image, mask, weight = (value.as_subclass(torch.Tensor) for value in made.values())
    assert image.shape == (dims, *[size] * dims)
    assert mask.dtype == torch.int16
    torch.testing.assert_close(image[-1], weight)
    nearest = mask // digits % base
    assert (nearest - image).abs().max() < 0.501
    assert not torch.equal(nearest, image)


@pytest.mark.parametrize(("dims", "highest"), [(2, 24.3), (3, 37.7)])
def test_flips_and_turns_give_all_orientations_equally(dims, highest):
    """Eight or sixteen; chi squared of 7 or 15 degrees of freedom, p = 0.001."""
    change = augmentation(AugmentConfig(**PLAIN, elastic_sigma=0.0), 3, dims)
    first = torch.arange(3**dims).reshape([3] * dims)
    wanted = [first.rot90(k, (-2, -1)) for k in range(4)]
    wanted += [one.flip(-1) for one in wanted]
    wanted += [one.flip(0) for one in wanted] * (dims - 2)
    counts = np.zeros(len(wanted))
    for position in range(30 * len(wanted)):
        with seeded(0, "augment", position):
            mask = change({"mask": tv_tensors.Mask(first)})["mask"]
        (which,) = (i for i, one in enumerate(wanted) if torch.equal(mask, one))
        counts[which] += 1
    assert ((counts - 30) ** 2 / 30).sum() < highest


@pytest.mark.parametrize(("dims", "rotation", "zoom"), [(2, 180, 0.0), (2, 0, 0.3), (3, 20, 0.3)])
def test_turns_and_zooms_are_rotations_of_a_size_within_the_margin(dims, rotation, zoom):
    """The gradient of what a window of coordinates becomes is the map, as sampling is linear."""
    size, bent = 8, {"rotation": rotation, "zoom": zoom}
    margin = window_margin(AugmentConfig(elastic_sigma=0.0, **bent), size, dims)
    change, angles, sizes = Deformation(size, **bent, dims=dims), [], []
    places = torch.stack(torch.meshgrid(*[torch.arange(size + 2.0 * margin)] * dims, indexing="ij"))
    middle = torch.full((dims,), margin + (size - 1) / 2)
    for position in range(200):
        with seeded(0, "augment", position):
            made = change(tv_tensors.Image(places)).as_subclass(torch.Tensor)
        torch.testing.assert_close(made.flatten(1).mean(1), middle)
        steps = torch.stack([made.diff(dim=1 + axis).flatten(1).mean(1) for axis in range(dims)])
        sizes.append(steps.det().item() ** (1 / dims))
        turn = steps / sizes[-1]
        torch.testing.assert_close(turn @ turn.T, torch.eye(dims), atol=1e-4, rtol=0)
        angles.append(torch.atan2(turn[0, 1], turn[0, 0]).rad2deg().item())
    for found, most in ((np.log(sizes), zoom), (angles, rotation)):
        assert np.abs(found).max() <= most + 1e-3
        if dims == 2 and most:  # Kolmogorov, p = 0.001
            places = (np.sort(found) / most + 1) / 2
            assert np.abs(places - (np.arange(200) + 0.5) / 200).max() < 0.14


def test_elastic_is_cubic_between_the_nodes_of_every_axis():
    elastic = Deformation(9, sigma=2.0, grid=3, dims=3)
    torch.manual_seed(0)
    places = elastic.make_params([torch.zeros(9, 9, 9)])["source"][0]
    found = ((places + 1) / 2 * 8).movedim(-1, 0) - elastic.places
    torch.manual_seed(0)
    nodes = 2 * torch.randn(3, 3, 3, 3)
    torch.testing.assert_close(found[:, ::4, ::4, ::4], nodes, atol=1e-5, rtol=0)
    plane = torch.nn.functional.interpolate(
        nodes[:, 0][None], (9, 9), mode="bicubic", align_corners=True
    )
    torch.testing.assert_close(found[:, 0], plane[0], atol=1e-5, rtol=0)
    assert elastic.places[:, 1, 2, 3].tolist() == [3, 2, 1]


def test_elastic_reads_the_margin_where_it_points_outside():
    elastic = Deformation(8, sigma=0.0)
    elastic.sigma = 1.0
    window = torch.arange(14.0).expand(1, 14, 14)
    shifted = {"source": elastic.make_params([window])["source"] * 0}
    columns = (elastic.places[0] + 3 + 2.5) * (2 / 13) - 1  # 2.5 pixels to the right
    rows = (elastic.places[1] + 3) * (2 / 13) - 1
    shifted["source"] = torch.stack([columns, rows], -1)[None]
    made = elastic.transform(tv_tensors.Image(window), shifted)
    torch.testing.assert_close(
        made[0].as_subclass(torch.Tensor), (torch.arange(8.0) + 5.5).expand(8, 8)
    )


@pytest.mark.parametrize(
    ("change", "channels"),
    [(Intensity(0.5, 0.5, 0.5, 0.5), 1), (Intensity(0.5, 0.5, 0.5, 0.5), 7), (Color(0.5), 3)],
)
def test_changes_of_intensity_and_colour_stay_in_range_and_spare_masks(change, channels):
    made = sample(channels=channels)
    before = {key: value.clone() for key, value in made.items()}
    with seeded(0, "x", 0):
        after = change(made)
    assert torch.equal(made["image"], before["image"])
    assert after["image"].abs().max() <= 1
    assert not torch.equal(after["image"], before["image"])
    assert torch.equal(after["mask"], before["mask"])
    assert torch.equal(after["weight"], before["weight"])


@pytest.mark.parametrize("change", ["brightness", "contrast", "gamma", "noise"])
def test_each_intensity_change_is_what_it_says(change):
    image = blobs(0, 200) * 0.4
    intensity = Intensity(**(PLAIN | {change: 0.2}))
    with seeded(0, "x", 3):
        made = intensity(tv_tensors.Image(image)).as_subclass(torch.Tensor)
    with seeded(0, "x", 3):
        strength = intensity.make_params([])[change]
    if change == "noise":
        assert abs((made - image).std() - 2 * strength) < 0.05 * strength
        return
    wanted = {
        "brightness": image + 2 * strength,
        "contrast": image.mean() + strength * (image - image.mean()),
        "gamma": 2 * ((image + 1) / 2) ** strength - 1,
    }
    assert (wanted[change] - image).abs().max() > 0.02
    torch.testing.assert_close(made, wanted[change], atol=1e-5, rtol=1e-5)


def test_the_strengths_are_uniform_in_their_ranges():
    torch.manual_seed(0)
    drawn = [Intensity(0.1, 0.2, 0.3, 0.4).make_params([]) for _ in range(800)]
    ranges = {"brightness": (-0.1, 0.1), "contrast": (0.8, 1.2), "noise": (0.0, 0.4)}
    values = {key: np.array([one[key] for one in drawn]) for key in drawn[0]}
    values["gamma"] = np.log(values["gamma"])
    for key, (low, high) in (ranges | {"gamma": (-0.3, 0.3)}).items():
        places = np.sort((values[key] - low) / (high - low))
        assert np.abs(places - (np.arange(800) + 0.5) / 800).max() < 0.07  # Kolmogorov, p = 0.001


def test_color_scales_what_each_stain_absorbs():
    amounts = torch.rand(3, 6, 7)
    light = (-torch.einsum("sc,shw->chw", Color.absorption, amounts)).exp()
    change = Color(0.2)
    same = {"factors": torch.ones(3), "shifts": torch.zeros(3), "saturation": 1.0, "hue": 0.0}
    image = tv_tensors.Image(2 * light - 1)
    torch.testing.assert_close(change.transform(image, same), image, atol=1e-5, rtol=0)
    factors = torch.tensor([1.2, 0.9, 1.0])
    more = change.transform(image, {**same, "factors": factors, "shifts": torch.full((3,), 0.1)})
    wanted = amounts * factors[:, None, None] + 0.1
    wanted = 2 * (-torch.einsum("sc,shw->chw", Color.absorption, wanted)).exp() - 1
    torch.testing.assert_close(more.as_subclass(torch.Tensor), wanted, atol=1e-5, rtol=0)
    grey = change.transform(image, {**same, "saturation": 0.0})
    assert grey.std(0).max() < 1e-5
