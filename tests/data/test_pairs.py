import numpy as np
import pytest
import tifffile
from data_files import refused, write
from PIL import Image

from ddpm_unet.config import PairDataConfig
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.pairs import complete_settings, find_pairs
from ddpm_unet.errors import UserError


def put(root, *names, value=0):
    for name in names:
        write(root / name, np.full((4, 5), value, np.uint8))


def pair(root, images="images", masks="masks", **settings):
    return find_pairs(
        PairDataConfig(images=f"{root / images}", masks=f"{root / masks}", **settings)
    )


def files(found, root):
    named = [(p.name, p.image_file, p.mask_file) for p in found.pairs]
    return [tuple(part.removeprefix(f"{root}/") for part in parts) for parts in named]


def test_same_names_whatever_the_ending_in_natural_order_with_subfolders(tmp_path):
    put(tmp_path / "images", "a10.jpg", "a2.png", "x/a2.png")
    put(tmp_path / "masks", "a10.png", "a2.tif", "x/a2.png", value=1)
    found = pair(tmp_path)
    assert files(found, tmp_path) == [
        ("a2", "images/a2.png", "masks/a2.tif"),
        ("a10", "images/a10.jpg", "masks/a10.png"),
        ("x/a2", "images/x/a2.png", "masks/x/a2.png"),
    ]
    assert not found.faults
    assert not found.notes
    for one in found.pairs:
        assert one.read_image().shape == one.read_mask().shape == (4, 5, 1)
        assert (one.read_mask() == 1).all()


def test_patterns(tmp_path):
    put(tmp_path / "images", "img_1.png", "img_2.png", "logo.png")
    put(tmp_path / "masks", "1_mask.png", "2_mask.png")
    found = pair(tmp_path, image_name="img_{}", mask_name="{}_mask")
    assert [p.name for p in found.pairs] == ["1", "2"]
    assert found.notes == [
        f"1 file does not fit data.image_name, such as {tmp_path / 'images/logo.png'}"
    ]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ({"mask_name": "{}_mask"}, ["1", "1_mask", "2", "2_mask"]),
        ({"image_name": "{}_im"}, ["1", "1_im", "2", "2_im"]),
        ({"image_name": "{}_im", "mask_name": "{}_gt"}, ["1_gt", "1_im", "2_gt", "2_im"]),
    ],
)
def test_images_and_masks_in_one_folder(tmp_path, patterns, names):
    put(tmp_path, *[f"{name}.png" for name in names])
    found = pair(tmp_path, "", "", **patterns)
    assert [p.name for p in found.pairs] == ["1", "2"]
    assert not found.faults


@pytest.mark.parametrize(("images", "masks"), [("", "masks"), ("images", "")])
def test_one_folder_inside_the_other(tmp_path, images, masks):
    put(tmp_path / images, "1.png")
    put(tmp_path / masks, "1.png", value=1)
    found = pair(tmp_path, images, masks)
    assert [p.name for p in found.pairs] == ["1"]
    assert (found.pairs[0].read_image() == 0).all()
    assert (found.pairs[0].read_mask() == 1).all()
    assert not found.faults


def test_what_is_alone_is_a_fault_each(tmp_path):
    put(tmp_path / "images", "1.png", "2.png", "3.png")
    put(tmp_path / "masks", "2.png", "4.png")
    found = pair(tmp_path)
    assert [p.name for p in found.pairs] == ["2"]
    starts = ["images/1.png: has no mask", "images/3.png: has no mask", "masks/4.png: has no image"]
    for fault, start in zip(found.faults, starts, strict=True):
        assert fault.startswith(f"{tmp_path}/{start}")
    found = pair(tmp_path, skip_unlabelled=True)
    assert found.notes == ["2 images without a mask are left out"]
    assert len(found.faults) == 1


@pytest.mark.parametrize(
    ("masks", "cure"),
    [
        (["m/1_mask.png", "m/2_mask.png"], "set data.mask_name '{}_mask'"),
        (["m/lab1.png", "m/lab2.png"], "set data.mask_name 'lab{}'"),
        (["m/one.png", "m/two.png"], "give each mask the name of its image"),
    ],
)
def test_where_no_name_fits_the_pattern_is_proposed(tmp_path, masks, cure):
    put(tmp_path, "i/1.png", "i/2.png", *masks)
    found = pair(tmp_path, "i", "m")
    assert not found.pairs
    (fault,) = found.faults
    assert cure in fault
    if "'" in cure:
        assert len(pair(tmp_path, "i", "m", mask_name=cure.split("'")[1]).pairs) == 2


@pytest.mark.parametrize("folders", [False, True])
def test_a_stack_beside_a_stack(tmp_path, folders):
    images = np.arange(12 * 4 * 5, dtype=np.uint16).reshape(12, 4, 5)
    names = ["i/s.tif", "m/s.tif"] if folders else ["i.tif", "m.tif"]
    for name, stack in zip(names, [images, images > 99], strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / name, stack.astype(np.uint16), photometric="minisblack")
    found = pair(tmp_path, *(["i", "m"] if folders else names))
    assert not found.faults
    stem = "s" if folders else "i"
    assert [p.name for p in found.pairs] == [f"{stem}/{page:02}" for page in range(12)]
    for page, one in enumerate(found.pairs):
        np.testing.assert_array_equal(one.read_image()[..., 0], images[page])
        np.testing.assert_array_equal(one.read_mask()[..., 0], images[page] > 99)
        assert one.mask_file == f"{tmp_path / names[1]} page {page:02}"


def test_stacks_of_different_length(tmp_path):
    for name, pages in (("i.tif", 3), ("m.tif", 2)):
        stack = np.zeros((pages, 4, 5), np.uint8)
        tifffile.imwrite(tmp_path / name, stack, photometric="minisblack")
    found = pair(tmp_path, "i.tif", "m.tif")
    assert found.faults[0].startswith(f"{tmp_path}/m.tif: has 2 pages, {tmp_path}/i.tif 3;")


def test_palette_masks_keep_their_indices_unless_colours_are_wanted(tmp_path):
    put(tmp_path, "i/1.png", "m/1.png")
    mask = Image.fromarray(np.eye(4, 5, dtype=np.uint8))
    mask.putpalette([10, 20, 30, 250, 0, 0])
    mask.save(tmp_path / "m/1.png")
    indices = pair(tmp_path, "i", "m").pairs[0].read_mask()
    np.testing.assert_array_equal(indices[..., 0], np.eye(4, 5))
    colors = pair(tmp_path, "i", "m", mask_kind="colors").pairs[0].read_mask()
    assert colors[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masks": "i"}, "i: is the folder of the images too; set data.mask_name"),
        ({"mask_name": "mask"}, "data.mask_name is 'mask': write {} once"),
        ({"images": "none"}, "none: no such folder"),
    ],
)
def test_nothing_to_pair(tmp_path, settings, message):
    put(tmp_path, "i/1.png", "m/1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        pair(tmp_path, **({"images": "i", "masks": "m"} | settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_built_in_masks_know_what_they_are():
    nucleus = complete_settings(PairDataConfig())
    assert (nucleus.mask_kind, nucleus.class_names) == ("instances", ("background", "nucleus"))
    types = complete_settings(PairDataConfig(masks="builtin:nucleus-type"))
    assert (types.mask_kind, len(types.class_names)) == ("classes", 4)
    own = PairDataConfig(images="a", masks="b", dims=2)
    assert complete_settings(own) == own


@pytest.mark.parametrize(
    "settings", [{"images": "dir"}, {"masks": "dir"}, {"masks": "builtin:cells"}]
)
def test_built_in_images_and_masks_go_together(settings):
    with refused(r"do not go together|there is only builtin:nucleus and"):
        complete_settings(PairDataConfig(**settings))


def test_a_mask_file_for_each_object(tmp_path):
    put(tmp_path / "images", "a.png", "b.png")
    for name, corner in (("a/1", 0), ("a/2", 2), ("a/10", 3), ("b/x", 1)):
        mask = np.zeros((4, 5), np.uint8)
        mask[corner:, corner:] = 255
        write(tmp_path / f"masks/{name}.png", mask)
    found = pair(tmp_path)
    assert (found.faults, found.objects, len(found.pairs)) == ([], True, 2)
    assert "are its objects; where they overlap, the last one counts" in found.notes[0]
    wanted = [[1] * 5, [1] * 5, [1, 1, 2, 2, 2], [1, 1, 2, 3, 3]]
    assert found.pairs[0].read_mask()[..., 0].tolist() == wanted
    report = check_pairs(
        PairDataConfig(images=f"{tmp_path}/images", masks=f"{tmp_path}/masks", size=2)
    )
    assert report.mask_code().kind == "instances"
    assert report.class_pixels.tolist() == [[0, 20], [8, 12]]
    with refused(r"a file per object; set data.mask_kind instances"):
        pair(tmp_path, mask_kind="classes")


def test_files_of_an_image_are_its_channels(tmp_path):
    for number in range(2):
        put(tmp_path / "images", *[f"case_{c}_{number:04}.png" for c in (1, 2)], value=number)
    put(tmp_path / "labels", "case_1.png", "case_2.png")
    found = pair(tmp_path, masks="labels")
    assert (found.faults, [p.name for p in found.pairs]) == ([], ["case_1", "case_2"])
    assert found.notes == ["images of 2 channels, in files _0000, _0001"]
    assert found.pairs[1].read_image()[0, 0].tolist() == [0, 1]
    (tmp_path / "images/case_2_0000.png").unlink()
    assert (
        "case_2_0001.png: the file _0000 of this image is missing"
        in (pair(tmp_path, masks="labels").faults[0])
    )


def test_palette_pages_of_masks_stay_classes(tmp_path):
    for folder in ("images", "masks"):
        put(tmp_path / folder, "a.png")
        (tmp_path / folder / "a.png").unlink()
        frames = [Image.fromarray(np.full((4, 5), v, np.uint8), "P") for v in (1, 2)]
        for frame in frames:
            frame.putpalette([0, 0, 0, 9, 99, 199, 255, 0, 0])
        frames[0].save(tmp_path / folder / "a.tif", save_all=True, append_images=frames[1:])
    found = pair(tmp_path)
    assert [p.read_mask().ravel()[0] for p in found.pairs] == [1, 2]
    assert found.pairs[0].read_image()[0, 0].tolist() == [9, 99, 199]
