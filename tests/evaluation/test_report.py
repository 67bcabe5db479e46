"""The page of a run: what is in it, and that nothing of it lies elsewhere."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.report import best_median_worst, write_report

NASTY = "<script>alert('a&b')</script>"


class Page(HTMLParser):
    """Headings, text by the heading above it, images and links of a page; tags must match."""

    VOID = ("meta", "img", "br")

    def __init__(self, path):
        super().__init__()
        self.open, self.text, self.images, self.outside, self.head = [], {}, [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            kind, _, content = found["src"].partition(";base64,")
            self.images.append((self.head, found["alt"], kind, base64.b64decode(content)))
        self.outside += [found[key] for key in ("href", "srcset", "action") if key in found]
        assert tag != "script"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.head = data
        self.text[self.head] = self.text.get(self.head, "") + data + " "


def write_run(folder, lr=0.1):
    folder.mkdir()
    config = {"run": NASTY, "preview": {"steps": 25}, "data": {"source": NASTY},
              "train": {"steps": 20, "lr": lr}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    records = [
        {"step": s, "images": 4 * s, "loss": 1 / s, "grad_norm": 2.0, "lr": lr} for s in (10, 20)
    ]
    records[1] |= {"val_loss": 0.25, "mean_dice": None}
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    about = {"data": ["7 images", "\udcff.png", f"warning: {NASTY} is dark"], "parameters": 1234567,
             "versions": {"torch": "9.9"}}  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "samples").mkdir()
    for step in range(10):
        array = np.full((8, 8, 3), 20 * step, np.uint8)
        Image.fromarray(array).save(folder / "samples" / f"{step:08d}.png")
    return folder


def test_a_page_holds_the_run_and_needs_nothing_else(tmp_path):
    run = write_run(tmp_path / "run")
    assert write_report([run]) == run / "report.html"
    page = Page(run / "report.html")
    assert page.outside == []
    assert "20 steps 80 images seen" in " ".join(page.text[""].split())
    assert "1,234,567" in page.text[""]
    assert "0.25" in page.text[""]
    assert f"{NASTY} is dark" in page.text["Data"]
    assert "\\udcff.png" in page.text["Data"]
    assert NASTY in page.text["Plan"]
    assert "9.9" in page.text["Versions"]
    assert f"ddpm-unet train-ddpm --resume {run} --train.steps 40" in page.text["What to do next"]
    curves = [(alt, kind) for head, alt, kind, _ in page.images if head == "Curves"]
    assert curves == [("loss", "data:image/svg+xml"), ("grad_norm", "data:image/svg+xml")]
    drawn = [(alt, data) for head, alt, _, data in page.images if head == "Samples over time"]
    assert [alt for alt, _ in drawn] == [f"step {n}" for n in (0, 2, 4, 5, 7, 9)]
    assert np.asarray(Image.open(io.BytesIO(drawn[-1][1])))[0, 0, 0] == 180


def test_a_wide_image_is_made_smaller(tmp_path):
    run = write_run(tmp_path / "run")
    Image.new("RGB", (3000, 300)).save(run / "samples" / "00000020.png")
    write_report([run])
    last = Page(run / "report.html").images[-1][3]
    assert Image.open(io.BytesIO(last)).size == (1400, 140)


def test_runs_beside_each_other_show_what_differs(tmp_path):
    runs = [write_run(tmp_path / name, lr) for name, lr in (("slow", 0.1), ("fast", 0.5))]
    page = Page(write_report(runs, tmp_path / "both.html"))
    assert page.text["Settings that differ"].split() == [
        "Settings", "that", "differ", "slow", "fast", "train.lr", "0.1", "0.5",
    ]  # fmt: skip
    assert [alt for head, alt, *_ in page.images if head == "Curves"] == [
        "loss", "val_loss", "grad_norm",
    ]  # fmt: skip
    assert len([1 for head, *_ in page.images if head == "Last samples"]) == 2


def test_best_median_and_worst_are_each_shown_once():
    scores = [{"dice": d} for d in (0.2, 0.9, 0.5, 0.7)] + [{"name": "empty"}]
    assert best_median_worst(scores) == {"worst": 0, "median": 2, "best": 1}
    assert best_median_worst([{"psnr": 3.0}]) == {"best": 0}
    assert best_median_worst([{"name": "empty"}]) == {}


def test_what_is_no_run_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is no run folder.*give runs/NAME"):
        write_report([tmp_path])
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.jsonl: is damaged"):
        write_report([run])
