import family
import pytest
import torch


def parameters(key):
    with torch.device("meta"):
        model = family.published(family.Member(key, **family.MEMBERS[key]))
    return sum(p.numel() for p in model.parameters())


def test_members_have_their_published_sizes():
    """For two classes and, but for the first, three colours."""
    assert parameters("unet2015") == 31_030_658 + 2 * 9 * 64
    assert parameters("ternausnet") == 22_927_393 + 33
    larger, smaller = parameters("unet_plus_plus"), parameters("unet3plus")
    assert parameters("unet_as_plus_plus") == pytest.approx(larger, rel=0.03)
    assert parameters("unet_as_3plus") == pytest.approx(smaller, rel=0.03)


def test_all_members_are_trained_alike_and_only_their_networks_differ(tmp_path):
    arguments = family.argparse.Namespace(
        images=tmp_path, masks=tmp_path, out=tmp_path, size="reduced", settings=["--train.steps=7"]
    )
    settings = {}
    for key in ("unet_add", "unet_plus_plus", "diffusion"):
        member = family.Member(key, **family.MEMBERS[key])
        settings[key] = found = family.settings_of(member, 1, arguments)
        assert (found.train.steps, found.seed, found.init) == (7, 1, "scratch")
        assert found.data == settings["unet_add"].data
        assert found.train == settings["unet_add"].train
    assert settings["unet_add"].classic.skip == "add"
    nested = settings["unet_plus_plus"].classic
    assert (nested.decoder, nested.deep_supervision, nested.base_width) == ("nested", True, 8)
    assert settings["diffusion"].architecture == "unet"
    assert settings["diffusion"].model.block_out_channels == (8, 16, 32, 64)


def test_tables_give_the_mean_and_its_deviation():
    result = {"parameters": 1000, "gflop": 0.5, "kept_mb": 2.0, "cpu_seconds": 10.0}
    results = [{"key": "unet", "seed": s, "dice": d, **result} for s, d in ((0, 0.8), (1, 0.9))]
    results[0]["pruned"] = results[1]["pruned"] = {"2": {**result, "dice": 0.5}}
    members = [family.Member(key, **family.MEMBERS[key]) for key in ("unet", "unet_add")]
    cost = {"parameters": 31, "gflop": 7.0, "kept_mb": 3.0, "seconds": 1.0}
    table = family.family_table(members, {"unet": cost, "unet_add": cost}, results)
    assert "| 31 | 7 | 3 | 1.0 | 0.850 ± 0.071 |" in table
    assert "skips added" not in table
    rows = family.side_by_side(members, results).splitlines()
    assert rows[2] == "| U-Net, padded | 1,000 | 500 | 2.0 | 10 | 0.850 ± 0.071 | 2 |"
    assert rows[3] == "| ... its 2 finest levels | 1,000 | 500 | 2.0 |  | 0.500 ± 0.000 | 2 |"
