import pytest
import torch
from network_diagram import Block, draw, places, trace

from ddpm_unet.config import ClassicConfig
from ddpm_unet.models.classic import ClassicUNet


def blocks(side: int = 64, **settings) -> list[Block]:
    given = {"in_channels": 3, "base_width": 4, "padding": "same", "depth": 4}
    with torch.device("meta"):
        network = ClassicUNet(ClassicConfig(**given | settings)).eval()
        return trace(network, torch.empty(1, 3, side, side))


def test_the_unet_reads_what_is_below_and_beside():
    found = {block.name: block for block in blocks()}
    assert found["encoder.blocks.0"] == Block("encoder.blocks.0", 4, (64, 64), ("image",))
    assert found["encoder.blocks.3"].sources == ("encoder.blocks.2",)
    below = "encoder.blocks.3"
    for number in range(3):
        up = found[f"decoder.up.{number}"]
        assert up.sources == (f"encoder.blocks.{2 - number}", below)
        assert (up.channels, up.size[0]) == (16 // 2**number, 16 * 2**number)
        below = up.name
    assert found["decoder.head"].sources == ("decoder.up.2",)
    assert list(found)[-1] == "decoder.head"


def test_the_nodes_of_unet_plus_plus_read_their_row_and_the_node_below():
    found = {block.name: set(block.sources) for block in blocks(decoder="nested")}

    def name(i: int, j: int) -> str:
        return f"decoder.nodes.{i}_{j}" if j else f"encoder.blocks.{i}"

    for j in range(1, 4):
        for i in range(4 - j):
            assert found[name(i, j)] == {name(i + 1, j - 1), *(name(i, k) for k in range(j))}


def test_unet_3_plus_reads_every_level():
    found = {block.name: block.sources for block in blocks(decoder="full_scale")}
    assert set(found["decoder.levels.1"]) == {
        "encoder.blocks.0",
        "encoder.blocks.1",
        "decoder.levels.2",
        "encoder.blocks.3",
    }


def test_levels_of_a_backbone_follow_each_other():
    found = blocks(encoder="resnet18", decoder="ternaus")
    names = [f"encoder.network.{level}" for level in range(4)]
    assert [block.name for block in found[:4]] == names
    assert [block.sources for block in found[:4]] == [("image",), *((n,) for n in names[:3])]


@pytest.mark.parametrize("decoder", ["unet", "fcn", "ternaus", "nested", "full_scale"])
def test_every_block_has_a_place_of_its_own_in_its_row(decoder):
    found = blocks(decoder=decoder)
    at = places(found, 64)
    assert len(set(at.values())) == len(at) == len(found) + 1
    for block in found:
        assert 64 // 2 ** at[block.name][1] == block.size[0]
        assert all(at[source][0] < at[block.name][0] for source in block.sources)


def test_drawn(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    axis = Figure().add_subplot()
    found = blocks()
    draw(axis, found, 64, "U-Net")
    assert len(axis.patches) == len(found)
    texts = [text.get_text() for text in axis.texts]
    assert {"4", "8", "16", "32", "2"} < set(texts)
    assert "8x8" in texts
