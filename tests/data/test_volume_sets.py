"""Sets of volumes: pairs, their check, patches, augmentation, and streams of their positions."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from data_files import save
from PIL import Image
from torchvision import tv_tensors

from ddpm_unet.config import AugmentConfig, ImageDataConfig, PairDataConfig, SplitConfig
from ddpm_unet.data.augment import ElasticDeformation, augmentation, window_margin
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.collection import ArrayCollection
from ddpm_unet.data.folder import Folder
from ddpm_unet.data.image_set import Fit, ImageSet, PackedImages, survey
from ddpm_unet.data.labelled import LabelledSet, pair_stream, split_images
from ddpm_unet.data.pixels import cut_window, normalised, resize, to_unit
from ddpm_unet.data.sources import held_out, open_images, open_stream
from ddpm_unet.data.volumes import Space, in_mm, read_volume, volume_info, volume_space, write_nifti
from ddpm_unet.errors import UserError
from ddpm_unet.randomness import seeded

RNG = np.random.default_rng(0)
PLAIN = AugmentConfig(
    flips=False, rot90=False, elastic_sigma=0, brightness=0, contrast=0, gamma=0, noise=0
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Five volumes of different sizes and units; classes 1 and 2 are where they are bright."""
    root = tmp_path_factory.mktemp("volumes")
    affine = np.diag([1, 1, 2, 1])
    for number in range(5):
        unit = RNG.random((10 + number, 14, 9))
        image = (unit * 250).astype(np.uint8) if number == 3 else (1000 * unit).astype(np.float32)
        save(root / f"images/case_{number}.nii.gz", image, affine)
        mask = ((unit > 0.5).astype(np.uint8) + (unit > 0.8)).astype(np.uint8)
        save(root / f"masks/case_{number}.nii.gz", mask, affine)
    return root


def config(folders: Path, **changes) -> PairDataConfig:
    settings = PairDataConfig(
        dims=3, images=f"{folders}/images", masks=f"{folders}/masks", num_classes=3, size=8,
        value_range="percentiles", augment=PLAIN, split=SplitConfig(validation=0),
    )  # fmt: skip
    return replace(settings, **changes)


def test_the_check_reads_volumes(folders):
    report = check_pairs(config(folders))
    assert report.names == [f"case_{number}" for number in range(5)]
    assert report.sizes == [(9, 14, 10 + number) for number in range(5)]
    text = str(report)
    assert "voxels of 1 x 1 x 2 mm" in text
    assert "images: 10 x 14 x 9 to 14 x 14 x 9 pixels, 1 channel of float32" in text
    assert report.class_pixels.sum() == sum(9 * 14 * (10 + number) for number in range(5))


@pytest.mark.parametrize("codes", ["RAS", "PSL", "LPI", "SAR"])
def test_volumes_of_every_orientation_are_read_in_one_and_written_back(tmp_path, codes):
    array = RNG.integers(0, 250, (5, 6, 7)).astype(np.uint8)
    plain = nibabel.Nifti1Image(array, np.diag([1, 2, 3, 1]))
    stored = plain.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(plain.affine), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    assert "".join(nibabel.aff2axcodes(stored.affine)) == codes
    stored.to_filename(tmp_path / "a.nii.gz")
    volume, space = read_volume(tmp_path / "a.nii.gz"), volume_space(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume[..., 0], array.T)
    assert (space.spacing, space.size) == ((3, 2, 1), (7, 6, 5))
    assert space.agrees(Space(np.diag([1.0, 2, 3, 1]), (5, 6, 7)))
    info = volume_info(tmp_path / "a.nii.gz")
    assert (*info.size, info.channels) == volume.shape
    write_nifti(tmp_path / "b.nii.gz", volume[..., 0], space)
    again = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(again.affine, stored.affine)
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(stored.dataobj))


def test_volumes_of_mixed_voxels_are_brought_to_one_size(folders, tmp_path):
    """To the median, or to what is said; what differs by 3 % or does not say it stays."""
    assert check_pairs(config(folders)).spacing == (2, 1, 1)
    for name, mm in (("a", 1.0), ("b", 1.02), ("c", 3.0)):
        for kind in ("images", "masks"):
            array = RNG.integers(0, 3, (9, 8, 7)).astype(np.uint8)
            save(tmp_path / f"{kind}/{name}.nii", array, np.diag([mm, mm, 2, 1]))
    for said, spacing, sizes in (
        (None, (2, 1.02, 1.02), [(7, 8, 9), (7, 8, 9), (7, 24, 26)]),
        ((2.0, 3.0, 3.0), (2, 3, 3), [(7, 3, 3), (7, 3, 3), (7, 8, 9)]),
    ):
        report = check_pairs(replace(config(tmp_path), spacing=said))
        assert (report.spacing, report.faults) == (pytest.approx(spacing), [])
        how = "data.spacing" if said else "their median"
        assert f"1 x 1 x 2 to 3 x 3 x 2 mm, resampled to {in_mm(spacing)} ({how})" in str(report)
        pairs = LabelledSet(report)
        assert pairs.sizes.tolist() == list(map(list, sizes))
        assert [pairs[i]["image"].shape[1:] for i in range(3)] == sizes
        assert [pairs[i]["mask"].shape for i in range(3)] == sizes
    (fault, *_) = check_pairs(replace(config(tmp_path), spacing=0.001)).faults
    assert "a.nii: has pixels of 1 x 1 x 2 mm" in fault


def test_a_mask_that_lies_elsewhere_and_turns_that_would_distort(folders, tmp_path):
    good = nibabel.load(folders / "images/case_0.nii.gz")
    save(tmp_path / "images/a.nii", good.get_fdata(), np.diag([1, 2, 2, 1]))
    save(tmp_path / "masks/a.nii", np.ones(good.shape, np.uint8), np.diag([1, 2.1, 2, 1]))
    assert "affines differ" in check_pairs(config(tmp_path)).faults[0]
    save(tmp_path / "masks/a.nii", np.ones(good.shape, np.uint8), np.diag([1, 2, 2, 1]))
    turning = check_pairs(config(tmp_path, augment=replace(PLAIN, rot90=True)))
    assert "set data.augment.rot90 false" in turning.faults[0]
    assert not check_pairs(config(folders, augment=replace(PLAIN, rot90=True))).faults


def test_pictures_in_a_folder_of_volumes_and_the_reverse(folders):
    assert check_pairs(config(folders, dims=2)).config.dims == 3
    Image.new("L", (4, 4)).save(folders / "images" / "a.png")
    with pytest.raises(UserError, match=r"masks: .*no image .*set data\.dims 3 for volumes"):
        check_pairs(config(folders, dims=2))
    (folders / "images" / "a.png").unlink()
    with pytest.raises(UserError, match=r"data\.dims 3: builtin:histology is an image"):
        check_pairs(PairDataConfig(dims=3))


def test_whole_volumes_for_validation(folders):
    volumes = LabelledSet(check_pairs(config(folders)))
    item = volumes[3]
    stored = nibabel.load(folders / "images/case_3.nii.gz").get_fdata().transpose(2, 1, 0)
    wanted = to_unit(normalised(stored[..., None], "percentiles"))[..., 0]
    assert item["image"].shape == (1, 9, 14, 13)
    np.testing.assert_allclose(item["image"][0], wanted, atol=1e-5)
    labels = nibabel.load(folders / "masks/case_3.nii.gz").get_fdata().transpose(2, 1, 0)
    np.testing.assert_array_equal(item["mask"], labels)
    half = LabelledSet(check_pairs(config(folders, scale=0.5)))
    assert half[0]["image"].shape == (1, 4, 7, 5)
    assert half[0]["mask"].shape == (4, 7, 5)


def test_the_only_volume_is_cut_along_its_longest_axis(folders):
    split = split_images(["a"], [(10, 200, 100)], SplitConfig(validation=0.2))
    assert split["train"] == [{"name": "a", "rows": [0, 128]}]
    deep = split_images(["a"], [(200, 20, 100)], SplitConfig(validation=0.2))
    assert deep["validation"] == [{"name": "a", "planes": [160, 200]}]
    parts = LabelledSet(check_pairs(config(folders)), [{"name": "case_1", "planes": [2, 6]}])
    whole = LabelledSet(check_pairs(config(folders)))
    assert torch.equal(parts[0]["mask"], whole[1]["mask"][2:6])


def test_a_patch_is_a_function_of_its_position(folders):
    augment = AugmentConfig(elastic_sigma=1)
    stream = pair_stream(LabelledSet(check_pairs(config(folders, augment=augment))), seed=3)
    batch = stream.__getitems__([5, 812, 6])
    assert batch["image"].shape == (3, 1, 8, 8, 8)
    assert (batch["mask"].shape, batch["mask"].dtype) == ((3, 8, 8, 8), torch.int64)
    again = pair_stream(stream.images, seed=3)[812]
    assert all(torch.equal(again[key], batch[key][1]) for key in again)
    other = pair_stream(stream.images, seed=4)[812]
    assert not torch.equal(other["image"], again["image"])
    assert stream.epoch_length == sum((9 * 14 * (10 + n)) // 512 for n in range(5))


def test_patches_are_windows_and_small_volumes_are_mirrored(folders):
    stream = pair_stream(LabelledSet(check_pairs(config(folders, size=12))), seed=0)
    for position in range(20):
        item, volume = (
            stream[position],
            stream.images[int(stream.numbers([position])[0])],
        )
        padded = np.pad(volume["image"][0], [(2, 2), (0, 0), (2, 2)], mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (12, 12, 12))
        assert (windows == item["image"][0].numpy()).all(axis=(-3, -2, -1)).any()
    corner = cut_window(np.arange(24).reshape(2, 3, 4), (-1, 0, 0), (3, 3, 3))
    np.testing.assert_array_equal(corner[:, 0, 0], [12, 0, 12])


@pytest.mark.parametrize("position", range(4))
def test_image_and_mask_of_a_volume_move_together(position):
    size = 10
    change = AugmentConfig(elastic_sigma=1, brightness=0, contrast=0, gamma=0, noise=0)
    line = torch.arange(size + 2 * window_margin(change))
    places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    mask = (places * torch.tensor([400, 20, 1])[:, None, None, None]).sum(0)
    with seeded(0, "augment", position):
        made = augmentation(change, size, dims=3)(
            {"image": tv_tensors.Image(places.float()), "mask": tv_tensors.Mask(mask.short())}
        )
    image, mask = (value.as_subclass(torch.Tensor) for value in made.values())
    assert image.shape == (3, size, size, size)
    nearest = torch.stack([mask // 400, mask % 400 // 20, mask % 20])
    assert (nearest - image).abs().max() < 0.501
    assert not torch.equal(nearest, image)


def test_flips_and_turns_of_volumes_give_all_sixteen_orientations():
    change = replace(PLAIN, flips=True, rot90=True)
    volume = torch.arange(27).reshape(3, 3, 3)
    wanted = [
        upright.flip(0) if deep else upright
        for turn in range(4)
        for side in (volume, volume.flip(2))
        for deep in (False, True)
        for upright in (side.rot90(turn, (1, 2)),)
    ]
    counts = np.zeros(16)
    for position in range(480):
        with seeded(0, "augment", position):
            made = augmentation(change, 3, dims=3)({"mask": tv_tensors.Mask(volume)})["mask"]
        (which,) = (i for i, one in enumerate(wanted) if torch.equal(made, one))
        counts[which] += 1
    assert ((counts - 30) ** 2 / 30).sum() < 37.7  # chi squared, 15 degrees of freedom, p = 0.001


def test_elastic_is_cubic_between_the_nodes_of_every_axis():
    elastic = ElasticDeformation(9, sigma=2.0, grid=3, dims=3)
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


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_resampling_of_volumes_is_that_of_slices_and_then_across_them(dtype):
    planes = (RNG.random((2, 9, 12, 10)) * 200).astype(dtype)
    found = resize(planes, 4, 6, 15)
    assert (found.shape, found.dtype) == ((2, 4, 6, 15), dtype)
    slices = [resize(planes[:, z].astype(np.float32), 6, 15) for z in range(9)]
    across = np.stack(slices, axis=1).reshape(2, 9, 90)
    wanted = resize(across, 4, 90).reshape(2, 4, 6, 15)
    np.testing.assert_allclose(found, wanted, atol=1e-3 if dtype == "float32" else 0.51)
    np.testing.assert_array_equal(resize(planes, 9, 12, 10), planes)


@pytest.mark.parametrize("kind", [PackedImages, ImageSet])
def test_cutting_volumes_is_slicing(kind):
    volumes = [RNG.integers(0, 255, (*n, 2)).astype(np.uint8) for n in ((4, 9, 5), (6, 4, 7))]
    collection = ArrayCollection(volumes, "a")
    images = kind(collection, Fit(4), survey(collection, Fit(4)))
    index, corner = np.array([0, 1, 1, 0]), np.array([[0, 5, 1], [2, 0, 3], [0, 0, 0], [0, 0, 0]])
    for i, (z, y, x) in zip(index, corner, strict=True):
        window = cut_window(images.item(i)["image"], (z, y, x), (4, 4, 4))
        wanted = volumes[i][z : z + 4, y : y + 4, x : x + 4]
        np.testing.assert_array_equal(window, np.moveaxis(wanted, -1, 0))
    np.testing.assert_array_equal(images[1], np.moveaxis(volumes[1], -1, 0))
    assert "2 volumes, 5 x 4 x 4 to 7 x 9 x 6, 2 channels" in images.describe()


def test_a_denoisers_volumes(folders):
    settings = ImageDataConfig(
        source=f"{folders}/images", size=8, value_range="percentiles"
    )  # dims are those of the files
    images = open_images(settings)
    assert len(images) == 5
    assert held_out(settings) is None
    stream = open_stream(settings, 1, images)
    batch = stream.__getitems__([3, 900])
    assert (batch["image"].shape, batch["image"].dtype) == ((2, 1, 8, 8, 8), torch.float32)
    assert batch["image"].min() >= -1 > batch["image"].max() - 2.01
    assert torch.equal(stream[900]["image"], batch["image"][1])
    windows = stream.windows(np.arange(200))
    assert windows.mirrored.mean(axis=0) == pytest.approx([0.5] * 3, abs=0.15)
    for position in range(12):
        corner, mirrored = windows.corner[position], windows.mirrored[position]
        volume = images[int(windows.image[position])].numpy()[0]
        cut = volume[tuple(slice(start, start + 8) for start in corner)]
        wanted = np.flip(np.rot90(cut, windows.rot90[position], (1, 2)), np.flatnonzero(mirrored))
        np.testing.assert_array_equal(stream[position]["image"][0], wanted)


def test_fitting_volumes(folders):
    folder = Folder(folders / "images", 200, dims=3)
    fit = Fit(12, mode="resize", value_range="percentiles")
    info = fit.info(folder.info(2), folder.name(2))
    planes = fit.apply(folder.read(2), folder.name(2))
    assert planes.shape == (1, 12, 12, 12) == (info.channels, *info.size)
    assert planes.dtype == info.dtype == np.float32
    with pytest.raises(UserError, match=r"10 x 14 x 9 pixels hold no window of 12 x 12 x 12"):
        replace(fit, mode="crop").info(folder.info(0), folder.name(0))
    with pytest.raises(UserError, match=r"dims 3: builtin:histology holds images"):
        open_images(ImageDataConfig(dims=3))
