"""OME-TIFF, OME-Zarr, CZI and ND2: channels by name, sizes of pixels, and no more read than asked.

No ND2 can be written here: a stand-in for its reader, with bioio's interface, takes its place.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from data_files import refused

from ddpm_unet.config import ClassicConfig, ImageDataConfig, PairDataConfig
from ddpm_unet.data.check import check_pairs
from ddpm_unet.data.folder import Folder
from ddpm_unet.data.labelled import LabelledSet
from ddpm_unet.data.preprocessing import Preprocessing
from ddpm_unet.data.reading import Reading, image_info, read_image
from ddpm_unet.data.sources import open_images
from ddpm_unet.inference.overlay import class_colors
from ddpm_unet.inference.predictor import Predictor
from ddpm_unet.inference.readers import open_planes
from ddpm_unet.inference.results import write_masks
from ddpm_unet.models.classic import ClassicUNet

FORMATS = ("ome.tif", "ome.zarr", "czi", "nd2")
NAMES = ("DAPI", "GFP", "Bright field")
SPACING = (2e-3, 5e-4, 2.5e-4)
VALUES = np.random.default_rng(0).integers(0, 4000, (3, 4, 60, 80)).astype(np.uint16)
"""[C, Z, Y, X]"""


def write(path, values=VALUES, spacing=SPACING, names=NAMES):
    """A stack by the ending of its name, with millimetres along planes, rows and columns."""
    z, y, x = (1000 * length for length in spacing)
    if path.name.endswith(".ome.tif"):
        sizes = {"PhysicalSizeZ": z, "PhysicalSizeY": y, "PhysicalSizeX": x}
        units = {f"{n}Unit": "nm" for n in sizes}  # µm is the default
        sizes = {n: 1000 * length for n, length in sizes.items()}
        metadata = {"axes": "CZYX", "Channel": {"Name": list(names)}, **sizes, **units}
        tifffile.imwrite(path, values, ome=True, photometric="minisblack", metadata=metadata)
    elif path.suffix == ".zarr":
        pytest.importorskip("bioio_ome_zarr")
        from bioio_ome_zarr.writers import Channel, OMEZarrWriter

        shape, half = values.shape, [*values.shape[:2], *(n // 2 for n in values.shape[2:])]
        writer = OMEZarrWriter(
            str(path), [list(shape), half], "uint16", chunk_shape=(1, 1, 32, 32),
            channels=[Channel(label=name, color="FFFFFF") for name in names],
            axes_names=list("czyx"), axes_types=["channel", *["space"] * 3],
            axes_units=[None, *["micrometer"] * 3], physical_pixel_size=[1, z, y, x],
        )  # fmt: skip
        writer.write_full_volume(values)
    elif path.suffix == ".czi":
        pytest.importorskip("bioio_czi")
        from pylibCZIrw.czi import create_czi

        with create_czi(str(path)) as file:
            for c, stack in enumerate(values):
                for plane, image in enumerate(stack):
                    file.write(image[..., None], plane={"C": c, "Z": plane})
            metres = {
                f"scale_{axis}": length / 1e6 for axis, length in zip("zyx", (z, y, x), strict=True)
            }
            file.write_metadata("a", channel_names=dict(enumerate(names)), **metres)
    else:
        np.savez(path.with_suffix(".npz"), values=values, sizes=(z, y, x), names=names)
        path.with_suffix(".npz").rename(path)
    return path


@pytest.fixture(autouse=True)
def nd2(monkeypatch):
    """Stands in for bioio_nd2; remembers which planes were read."""
    pytest.importorskip("bioio")
    import dask.array as da
    import xarray as xr
    from bioio_base.dimensions import DimensionNames
    from bioio_base.reader import Reader
    from bioio_base.types import PhysicalPixelSizes

    read = []

    class StandIn(Reader):
        def __init__(self, image, **_):
            self._path = image
            self.held = np.load(image)

        @staticmethod
        def _is_supported_image(fs, path, **_):
            return True

        @property
        def scenes(self):
            return ("Position:0",)

        def _read_delayed(self):
            values = self.held["values"]
            array = da.from_array(values[None], chunks=(1, 1, 1, *values.shape[2:]))

            def seen(block, block_info=None):
                read.append(tuple(block_info[0]["chunk-location"][1:3]))
                return block

            channels = {DimensionNames.Channel: list(self.held["names"])}
            return xr.DataArray(
                array.map_blocks(seen, dtype=array.dtype, meta=np.empty((0,) * 5, array.dtype)),
                dims=list("TCZYX"), coords=channels,
            )  # fmt: skip

        _read_immediate = _read_delayed

        @property
        def physical_pixel_sizes(self):
            return PhysicalPixelSizes(*map(float, self.held["sizes"]))

    monkeypatch.setitem(sys.modules, "bioio_nd2", SimpleNamespace(Reader=StandIn))
    return read


@pytest.mark.parametrize("format", FORMATS)
def test_a_stack_is_read_with_its_channels_and_spacing(tmp_path, format):
    path = write(tmp_path / f"a.{format}")
    expected = np.moveaxis(VALUES, 0, -1)
    np.testing.assert_array_equal(read_image(path, 3), expected)
    info = image_info(path, 3)
    assert (info.size, info.channels, info.dtype) == ((4, 60, 80), 3, np.uint16)
    assert info.along(3) == pytest.approx(SPACING)
    assert info.along(2) == pytest.approx(SPACING[1:])
    chosen = ("Bright field", "DAPI")
    np.testing.assert_array_equal(read_image(path, 3, channels=chosen), expected[..., [2, 0]])
    np.testing.assert_array_equal(read_image(path, 3, channels=("1",)), expected[..., [1]])
    assert image_info(path, 3, channels=chosen).channels == 2
    with refused(r"has the channels DAPI, GFP, Bright field; RFP is not"):
        read_image(path, 3, channels=("RFP",))
    with refused(r"limit of 0\.01"):
        read_image(path, 3, max_pixels=0.01)
    with refused(r"has 4 (pages|planes); save each"):
        image_info(path, 2)
    with open_planes(path, channels=["GFP"]) as planes:
        assert len(planes) == 4
        np.testing.assert_array_equal(planes[1][10:20], VALUES[1, 1, 10:20, :, None])


def test_a_channel_of_one_name_twice_and_files_without_names(tmp_path):
    path = write(tmp_path / "a.ome.tif", names=("DAPI", "DAPI", "GFP"))
    with refused("DAPI is more than one of them"):
        read_image(path, 3, channels=("DAPI",))
    tifffile.imwrite(tmp_path / "b.tif", VALUES[0, 0])
    assert read_image(tmp_path / "b.tif", 2, channels=("DAPI",)).shape == (60, 80, 1)
    with refused("has 1 channels without names; DAPI is not one"):
        read_image(tmp_path / "b.tif", 2, channels=("DAPI", "GFP"))


def test_only_the_planes_that_a_window_needs_are_read(tmp_path, nd2):
    path = write(tmp_path / "a.nd2")
    source = Reading(3, channels=("GFP",))
    assert source.info(path, in_pieces=True).in_pieces
    assert nd2 == []
    window = source.window(path, (1, 20, 30), (2, 16, 16))
    np.testing.assert_array_equal(window, VALUES[1, 1:3, 20:36, 30:46, None])
    assert set(nd2) == {(1, 1), (1, 2)}
    with open_planes(path, stream_above=0.0, channels=["DAPI"]) as planes:
        nd2.clear()
        np.testing.assert_array_equal(planes[3][5:9], VALUES[0, 3, 5:9, :, None])
        assert nd2 == [(0, 3)]


@pytest.mark.parametrize("format", ["ome.zarr", "czi", "nd2"])
def test_windows_of_images_larger_than_what_is_decoded(tmp_path, format):
    write(tmp_path / f"a.{format}", VALUES[:, :1])
    (tmp_path / "notes.txt").write_text("")
    config = ImageDataConfig(
        source=str(tmp_path), size=16, max_pixels=1e-3, memory_limit=0, channels=("GFP", "DAPI")
    )
    images = open_images(config)
    assert images.layout.sizes.tolist() == [[60, 80]]
    np.testing.assert_allclose(images.layout.spacings, [SPACING[1:]])
    window = images.planes(0)[:, 7:23, 9:25]
    np.testing.assert_array_equal(window, VALUES[[1, 0], 0, 7:23, 9:25])


def test_a_level_of_a_zarr_and_what_is_no_image(tmp_path):
    write(tmp_path / "in" / "a.ome.zarr", VALUES[:, :1])
    folder = Folder(tmp_path, Reading(level=1))
    assert [folder.key(i) for i in range(len(folder))] == ["in/a.ome.zarr"]
    assert folder.info(0).size == folder.read(0).shape[:2] == (30, 40)
    assert folder.info(0).along(2) == pytest.approx((1e-3, 5e-4))
    with refused(r"a\.ome\.zarr: has 2 resolutions, no level 2"):
        Folder(tmp_path, Reading(level=2)).info(0)
    (tmp_path / "b.ome.zarr").mkdir()
    with refused(r"b\.ome\.zarr: is damaged or truncated"):
        read_image(tmp_path / "b.ome.zarr", 2)


def test_labels_beside_images_of_such_formats(tmp_path):
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
    labels = (VALUES > 2000).astype(np.uint16)
    write(tmp_path / "images/a.ome.zarr", VALUES[:, :1])
    write(tmp_path / "images/b.ome.tif", VALUES[:, :1])
    write(tmp_path / "masks/a.ome.zarr", labels[:1, :1], names=("labels",))
    tifffile.imwrite(tmp_path / "masks/b.tif", labels[0, 0])
    config = PairDataConfig(
        images=str(tmp_path / "images"), masks=str(tmp_path / "masks"), channels=("GFP",), size=16
    )
    report = check_pairs(config)
    report.stop_at_faults()
    assert report.spacing == pytest.approx(SPACING[1:])
    assert (report.names, report.channels) == (["a", "b"], 1)
    for item in LabelledSet(report):
        assert item["image"].shape == (1, 60, 80)
        np.testing.assert_array_equal(item["mask"], labels[0, 0])


def test_without_bioio_its_name_is_said(tmp_path, monkeypatch):
    path = write(tmp_path / "a.czi")
    monkeypatch.setitem(sys.modules, "bioio_czi", None)
    with refused(r"bioio_czi cannot be imported .*ddpm-unet\[bio\]"):
        read_image(path, 2)


def segmented(path, dims, out):
    """What a network writes that takes bright pixels of the channel GFP for class 1."""
    config = ClassicConfig(dims=dims, depth=2, base_width=2, padding="same", in_channels=1)
    model = ClassicUNet(config).eval()
    model.forward = lambda tiles: torch.cat([torch.zeros_like(tiles), tiles * 100], dim=1)
    seen = Preprocessing(1, value_range=(0.0, 4000.0), dtype="uint16", channel_names=("GFP",))
    predictor = Predictor(model, seen)
    predictor.look(path)
    with predictor.open(path) as source:
        names = ("background", "nucleus")
        write_masks(source, out / "a", class_colors(2), names, probabilities="tiff")
    return VALUES[1] > 2000


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_written_has_the_scale_of_the_input(tmp_path, format, dims):
    """Read back by bioio, as napari's plugin does, and from the tags that Fiji goes by."""
    bioio = pytest.importorskip("bioio")
    reader = pytest.importorskip("bioio_ome_tiff").Reader
    (tmp_path / "out").mkdir()
    path = write(tmp_path / f"a.{format}", VALUES if dims == 3 else VALUES[:, :1])
    expected = segmented(path, dims, tmp_path / "out")[: 4 if dims == 3 else 1]
    for name in ("mask", "probabilities", "objects"):
        file = tmp_path / "out" / f"a_{name}.tif"
        image = bioio.BioImage(file, reader=reader)
        found = image.physical_pixel_sizes
        micrometres = [1000 * length for length in SPACING]
        assert pytest.approx(micrometres[1:]) == (found.Y, found.X)
        assert len(expected) == image.dims.Z
        assert dims == 2 or pytest.approx(micrometres[0]) == found.Z
        with tifffile.TiffFile(file) as tiff:
            assert tiff.pages[0].resolutionunit == 3
            per_cm = [10 / length for length in SPACING[:0:-1]]
            assert tiff.pages[0].resolution == pytest.approx(per_cm, rel=1e-6)
        if name == "probabilities":
            assert image.channel_names == ["background", "nucleus"]
        else:
            np.testing.assert_array_equal(image.data[0, 0] > 0, expected)
    table = (tmp_path / "out" / "a_objects.csv").read_text().splitlines()
    assert f"area_mm{dims}" in table[0]


def test_the_spacing_of_a_file_decides_the_scale_it_is_seen_at(tmp_path):
    path = write(tmp_path / "a.ome.tif", VALUES[:, :1])
    model = ClassicUNet(ClassicConfig(depth=2, base_width=2, padding="same", in_channels=1)).eval()
    own = Preprocessing(1, spacing=(5e-4, 5e-4), channel_names=("GFP",))
    assert Predictor(model, own).spacing_of(path) == pytest.approx(SPACING[1:])
    assert own.scales(SPACING[1:], "a") == pytest.approx((1.0, 0.5))
    said = Predictor(model, own, spacing=5e-4)
    assert said.spacing_of(path) == (5e-4, 5e-4)
    assert "0.00025 x 0.0005 mm, resampled to 0.0005" in Predictor(model, own).changes(path)
