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
