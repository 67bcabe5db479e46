"""Sets of volumes: pairs, their check, patches, augmentation, and streams of their positions."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from data_files import AFFINE, refused, save
from PIL import Image

from ddpm_unet.config import AugmentConfig, ImageDataConfig, PairDataConfig, SplitConfig
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.folder import Folder
from ddpm_unet.data.labelled import LabelledSet, pair_stream
from ddpm_unet.data.pixels import Fit, normalised, to_unit
from ddpm_unet.data.reading import Reading, image_info, read_image, volume_space
from ddpm_unet.data.sources import held_out, open_images, open_stream
from ddpm_unet.data.splits import split_images
from ddpm_unet.data.volumes import Space, in_mm, write_nifti
from ddpm_unet.data.windows import cut_window

RNG = np.random.default_rng(0)
PLAIN = AugmentConfig(
    flips=False, rot90=False, elastic_sigma=0, brightness=0, contrast=0, gamma=0, noise=0
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
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


def config(folders, **changes):
    settings = PairDataConfig(
        dims=3, images=f"{folders}/images", masks=f"{folders}/masks", num_classes=3, size=8,
        value_range="percentiles", augment=PLAIN, split=SplitConfig(validation=0),
    )  # fmt: skip
    return replace(settings, **changes)


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
    volume, space = read_image(tmp_path / "a.nii.gz", 3), volume_space(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume[..., 0], array.T)
    assert (space.spacing, space.size) == ((3, 2, 1), (7, 6, 5))
    assert space.agrees(Space(np.diag([1.0, 2, 3, 1]), (5, 6, 7)))
    info = image_info(tmp_path / "a.nii.gz", 3)
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
    assert check_pairs(config(folders, dims=None)).config.dims == 3
    with refused(r"data\.dims 2: .*images holds volumes; set it 3"):
        check_pairs(config(folders, dims=2))
    Image.new("L", (4, 4)).save(folders / "images" / "a.png")
    with refused(r"masks: .*no image .*for volumes set data\.dims 3"):
        check_pairs(config(folders, dims=2))
    (folders / "images" / "a.png").unlink()
    with refused(r"data\.dims 3: builtin:histology is an image"):
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
    folder = Folder(folders / "images", Reading(dims=3))
    fit = Fit(12, mode="resize", value_range="percentiles")
    info = fit.info(folder.info(2), folder.name(2))
    planes = fit.apply(folder.read(2), folder.name(2))
    assert planes.shape == (1, 12, 12, 12) == (info.channels, *info.size)
    assert planes.dtype == info.dtype == np.float32
    with refused(r"10 x 14 x 9 pixels hold no window of 12 x 12 x 12"):
        replace(fit, mode="crop").info(folder.info(0), folder.name(0))
    with refused(r"dims 3: builtin:histology holds images"):
        open_images(ImageDataConfig(dims=3))


def canonical(array):
    """[X, Y, Z] of AFFINE, whose x goes to the front and y to the left, as [D, H, W] of RAS."""
    return array.transpose(2, 0, 1)[:, :, ::-1]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("stored", "read"),
    [("uint8", "uint8"), ("uint16", "uint16"), ("int16", "float32"), ("float64", "float32")],
)
def test_nifti_is_read_slices_first_in_its_own_depth(tmp_path, ending, stored, read):
    array = RNG.integers(0, 200, (4, 5, 6)).astype(stored)
    path = save(tmp_path / f"a{ending}", array)
    volume, info = read_image(path, 3), image_info(path, 3)
    assert (volume.shape, volume.dtype) == ((6, 4, 5, 1), read)
    np.testing.assert_array_equal(volume[..., 0], canonical(array))
    assert (*info.size, info.channels, info.dtype) == (*volume.shape, volume.dtype)
    assert volume_space(path).spacing == (3, 1, 2)


def test_channels_slope_and_flat_files(tmp_path):
    several = save(tmp_path / "a.nii", RNG.random((2, 3, 4, 5)).astype(np.float32))
    assert read_image(several, 3).shape == (4, 2, 3, 5)
    scaled = save(tmp_path / "b.nii", np.full((2, 3, 4), 10, np.int16), scale=(0.5, -2))
    assert image_info(scaled, 3).dtype == read_image(scaled, 3).dtype == np.float32
    raw = nibabel.load(scaled).dataobj.get_unscaled()
    np.testing.assert_allclose(read_image(scaled, 3)[..., 0], canonical(raw) * 0.5 - 2)
    assert read_image(save(tmp_path / "c.nii", np.ones((2, 3), np.uint8)), 3).shape == (1, 2, 3, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no volume" * 99), "a.nii: is damaged or truncated"),
        (lambda path: path.write_bytes(b""), "a.nii: is damaged or truncated"),
        (lambda path: None, "a.nii: no such file"),
        (lambda path: save(path, np.full((2, 2, 2), np.nan)), "8 values are NaN"),
        (lambda path: save(path, np.zeros((200, 200, 30), np.uint8)), "over the limit"),
        (lambda path: save(path, np.zeros((2, 2, 2, 2, 2), np.uint8)), "has 5 axes"),
        (lambda path: save(path, np.zeros((2, 2, 2), np.complex64)), "holds complex64 values"),
        (lambda path: save(path, np.full((2, 2, 2), 2**25, np.int32)), "more than float32"),
    ],
)
def test_faults_are_named(tmp_path, make, message):
    make(tmp_path / "a.nii")
    with refused(message):
        read_image(tmp_path / "a.nii", 3, max_pixels=1)


def test_what_is_written_is_read_again_where_it_lay(tmp_path):
    space = volume_space(save(tmp_path / "a.nii", np.zeros((2, 3, 4), np.int16)))
    volume = RNG.integers(0, 3, (4, 3, 2)).astype(np.uint8)
    for name in ("b.nii.gz", "c.nii.gz"):
        write_nifti(tmp_path / name, volume, space)
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()
    np.testing.assert_array_equal(read_image(tmp_path / "b.nii.gz", 3)[..., 0], volume)
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.affine, AFFINE)
    assert written.get_data_dtype() == np.uint8
    assert written.header["sform_code"] == nibabel.load(tmp_path / "a.nii").header["sform_code"]
    several = RNG.random((5, 4, 3, 2), np.float32)
    write_nifti(tmp_path / "d.nii.gz", several)
    np.testing.assert_array_equal(read_image(tmp_path / "d.nii.gz", 3), np.moveaxis(several, 0, -1))


def test_percentiles_are_those_of_each_channel_of_the_whole():
    volume = RNG.normal(100, 20, (5, 40, 50, 2)).astype(np.float32) * [1, 1000]
    unit = normalised(volume, "percentiles")
    assert (unit.dtype, unit.min(), unit.max()) == (np.float32, 0, 1)
    for channel in range(2):
        low, high = np.percentile(volume[..., channel], [0.5, 99.5])
        wanted = ((volume[..., channel] - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(unit[..., channel], wanted, atol=1e-5)
    np.testing.assert_array_equal(to_unit(unit, "percentiles"), to_unit(unit))
    np.testing.assert_allclose(normalised(volume * 7 + 3, "percentiles"), unit, atol=1e-5)
    assert normalised(volume, (0, 1)) is volume
    assert not normalised(np.full((2, 2, 1), 7, np.uint8), "percentiles").any()
