"""The scripts of scripts/experiments, smaller than they are meant."""

import sampler_table


def test_the_table_of_samplers_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sampler_table, "PAGE", tmp_path / "samplers.md")
    monkeypatch.setattr(sampler_table, "STEPS", (2, 3))
    monkeypatch.setattr(sampler_table, "SIDE", 4)
    sampler_table.main()
    text = sampler_table.PAGE.read_text()
    assert text.count("| right |") > 20
    assert "| heun | epsilon | yes | | | refused: " in text
    assert "| lcm | epsilon | yes | | | refused: " in text
