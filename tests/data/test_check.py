import numpy as np
import pytest
import tifffile
from data_files import write
from PIL import Image

from ddpm_unet import cli
from ddpm_unet.config import AugmentConfig, PairDataConfig
from ddpm_unet.data.check import check_pairs
from ddpm_unet.errors import UserError

RNG = np.random.default_rng(0)


def picture(height=40, width=50, channels=None):
    shape = (height, width) if channels is None else (height, width, channels)
    return RNG.integers(0, 256, shape, np.uint8)


def half(low=0, high=255, height=40, width=50, dtype=np.uint8):
    """A mask whose left fifth has one value and the rest another."""
    mask = np.full((height, width), high, dtype)
    mask[:, : width // 5] = low
    return mask


@pytest.fixture
def folders(tmp_path):
    for name in ("1", "2", "3"):
        write(tmp_path / f"images/{name}.png", picture())
        write(tmp_path / f"masks/{name}.png", half())
    return tmp_path


def check(root, **settings):
    settings = {"size": 16} | settings
    config = PairDataConfig(images=f"{root}/images", masks=f"{root}/masks", **settings)
    return check_pairs(config)


def test_the_table_of_a_good_set(folders):
    report = check(folders)
    assert str(report).splitlines() == [
        f"3 pairs of {folders}/images and {folders}/masks",
        "images: 50 x 40 pixels, 1 channel of uint8, values 0 to 255",
        "masks: 0, 255: read as values, as data.mask_kind auto found",
        "  class                       pixels     share  masks",
        "  0   value 0                  1,200   20.000%      3",
        "  1   value 255                4,800   80.000%      3",
    ]
    assert report.names == ["1", "2", "3"]
    assert report.sizes == [(40, 50)] * 3
    np.testing.assert_array_equal(report.class_pixels, [[400, 1600]] * 3)
    assert report.mask_code() == report.code


FAULTS = {
    "masks/2.png: is not an image in a known format": ("masks/2.png", b"PNG?"),
    "images/3.png: has 3 channels of uint8, but {}/images/1.png 1 channel of uint8; convert": (
        "images/3.png", picture(channels=3)
    ),
    "images/3.png: has 1 channel of uint16, but": ("images/3.png", picture().astype(np.uint16)),
    "images/1.tif: float values from 7 to 7, not within 0 to 1": (
        "images/1.tif", np.full((40, 50), 7, np.float32)
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_one_line_with_file_and_cure(folders, message):
    name, content = FAULTS[message]
    path = folders / name
    if path.suffix == ".tif":
        path.with_suffix(".png").unlink()
    if content is None:
        path.write_bytes(path.read_bytes()[:-400])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    report = check(folders)
    matching = [line for line in report.faults if message.format(folders) in line]
    assert len(matching) == 1, report.faults
    assert all("\n" not in line for line in report.faults)
    with pytest.raises(UserError) as error:
        report.stop_at_faults()
    assert matching[0] in str(error.value)


def test_many_faults_are_cut_short(tmp_path):
    for number in range(30):
        write(tmp_path / f"images/{number}.png", picture())
    write(tmp_path / "masks/0.png", half())
    with pytest.raises(UserError) as error:
        check(tmp_path).stop_at_faults()
    lines = str(error.value).splitlines()
    assert lines[0] == "29 faults in the labelled set"
    assert lines[-1] == "... and 9 more"
    assert len(lines) == 22


def test_smooth_masks_are_told_of_threshold(folders):
    smooth = half()
    smooth[:, 9:12] = [40, 128, 200]
    write(folders / "masks/3.png", smooth)
    (fault,) = check(folders).faults
    assert "0, 40, 128, 200, 255" in fault
    assert "data.mask_kind threshold" in fault
    assert fault.endswith(f"(most values: {folders}/masks/3.png)")
    report = check(folders, mask_kind="threshold")
    np.testing.assert_array_equal(report.class_pixels[2], [400, 1600])


def numbered(count):
    """A mask of so many squares with numbers of their own."""
    mask = np.zeros((40, 50), np.uint16)
    for number in range(count):
        row, column = divmod(number, 16)
        mask[3 * row :, 3 * column :][:2, :2] = number + 1
    return mask


def test_numbers_of_many_objects_are_known(folders):
    for name, count in zip("123", (130, 60, 90), strict=True):
        write(folders / f"masks/{name}.png", numbered(count))
    report = check(folders)
    assert report.mask_code().kind == report.config.mask_kind == "instances"
    assert "masks number objects" in str(report)
    np.testing.assert_array_equal(report.class_pixels[:, 1], [520, 240, 360])
    assert check(folders, num_classes=200).mask_code().kind == "classes"


@pytest.mark.parametrize("odd", ["alike", "sparse", "shades", "few"])
def test_other_masks_of_many_values_are_not_taken_for_objects(folders, odd):
    for name, count in zip("123", (130, 60, 90), strict=True):
        mask = numbered({"alike": 130, "few": min(count, 95)}.get(odd, count))
        mask *= 3 if odd == "sparse" else 1
        if odd == "shades":
            mask = RNG.permutation(mask.ravel()).reshape(mask.shape)
        write(folders / f"masks/{name}.png", mask)
    assert "numbers of objects" in check(folders).faults[0]


def test_what_is_suspicious(folders):
    write(folders / "images/2.png", np.asarray(Image.open(folders / "images/1.png")))
    write(folders / "images/3.png", np.full((200, 300), 9, np.uint8))
    stray = np.zeros((200, 300), np.uint8)
    stray[0, 0] = 2
    write(folders / "masks/3.png", stray)
    for name in "12":
        write(folders / f"masks/{name}.png", half(0, 0))
    report = check(folders, num_classes=3, size=64)
    assert not report.faults
    assert report.warnings == [
        f"{folders}/images/1.png and others: 2 files are smaller than the windows of data.size 64, "
        "will be mirrored",
        f"{folders}/images/3.png: is a single value everywhere",
        f"{folders}/images/2.png: is the same as {folders}/images/1.png",
        *(
            f"class {number} (class {number}): too few pixels to learn, or a stray value "
            f"({pixels}, under 0.01% of all)"
            for number, pixels in ((1, 0), (2, 1))
        ),
        f"{folders}/masks/1.png and others: 2 files are of one class only",
    ]
    assert all(f"warning: {line}" in str(report) for line in report.warnings)


def test_dark_16_bit_images_are_told_of_value_range(folders):
    for name in "123":
        write(folders / f"images/{name}.png", picture().astype(np.uint16) * 16)
    (warning,) = check(folders).warnings
    assert "set data.value_range [0, 4080]" in warning
    assert not check(folders, value_range=(0.0, 4095.0)).warnings


def test_any_depth_and_number_of_channels(tmp_path):
    for dtype, channels in ((np.uint16, 5), (np.float32, 2), (np.uint8, 4)):
        image = RNG.random((20, 30, channels))
        image = (image * np.iinfo(dtype).max if dtype != np.float32 else image).astype(dtype)
        write(tmp_path / "images/a.tif", image)
        write(tmp_path / "masks/a.tif", half(0, 1, 20, 30))
        report = check(tmp_path)
        assert (report.channels, report.faults) == (channels, [])
        assert (report.dtype, report.mask_code().num_classes, report.config.dims) == (dtype, 2, 2)
    assert check(tmp_path, channels=(0, 1, 2)).channels == 3
    (fault,) = check(tmp_path, channels=3).faults
    assert "has 4 channels that are no colours, 3 are wanted; choose them by data.channels" in fault


@pytest.mark.parametrize("gone", ["--data.mask_kind=boundaries", "--data.boundary_width=2"])
def test_what_is_no_more_is_refused_by_name(gone, capsys):
    with pytest.raises(SystemExit):
        cli.main(["check", gone])
    assert "objects true tell objects apart" in capsys.readouterr().err


def test_colour_changes_are_for_rgb(folders):
    (fault,) = check(folders, augment=AugmentConfig(color=0.1)).faults
    assert fault.startswith("data.augment.color 0.1: is for RGB images, but ")


def test_threshold_of_masks_of_two_ranges_is_refused(folders):
    for name, high in (("1", 65535), ("2", 255), ("3", 65535)):
        write(folders / f"masks/{name}.tif", half(0, high, dtype=np.uint16))
        (folders / f"masks/{name}.png").unlink()
    (fault,) = check(folders, mask_kind="threshold").faults
    assert "masks/2.tif: holds 0 and 255, and other masks more than twice that" in fault


def test_boolean_masks_as_tifffile_writes_them_are_refused(folders):
    """It says that 0 is white; tifffile alone reads them back as they were."""
    for name in "123":
        tifffile.imwrite(folders / f"masks/{name}.tif", half() > 0)
        (folders / f"masks/{name}.png").unlink()
    fault = check(folders).faults[0]
    assert fault.endswith("which programs read as their opposite; save them as uint8")
