"""The page of a run, or of several beside each other: one HTML file without anything outside it."""

from __future__ import annotations

import base64
import io
import json
import platform
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ddpm_unet.config.jobs import COMMON, SCRIPTS
from ddpm_unet.config.reading import current_names
from ddpm_unet.errors import UserError
from ddpm_unet.evaluation.plots import Panel, panels, plot_panels
from ddpm_unet.files import printable, replace_text

ABOUT = "about.json"
MOST_SAMPLES = 6
MOST_PIXELS = 1400
"""Widest image that is kept as it is."""
PACKAGES = ("ddpm-unet", "torch", "torchvision", "diffusers", "accelerate", "numpy")
STYLE = Path(__file__).with_name("report.css")
WORDS = {"worst": 1.0, "median": 0.5, "best": 0.0}
"""Images of a test that are shown, and where they stand in the order of their scores."""


def versions() -> dict[str, str]:
    """Of Python, the system, and the packages that a run rests on."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # as in a checkout
            continue
    return found


def best_median_worst(images: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Numbers of the images of worst, median and best Dice or PSNR, each image once."""
    for key in ("dice", "psnr"):
        ranked = sorted(
            (i for i, scores in enumerate(images) if key in scores), key=lambda i: -images[i][key]
        )
        if ranked:
            chosen = {ranked[round(at * (len(ranked) - 1))]: word for word, at in WORDS.items()}
            return {word: number for number, word in chosen.items()}
    return {}


@dataclass
class Run:
    """What the folder of a run says.

    Attributes:
        path: The folder.
        config: Its settings.
        records: Lines of metrics.jsonl.
        scores: Of the images kept to test; empty without any.
        split: What trains, validates and tests; empty where no images are divided.
        about: What the training said of data, network and versions when it began.
    """

    path: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    scores: dict[str, Any]
    split: dict[str, Any]
    about: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read a run folder.

        Raises:
            UserError: It is none, or one of its files is damaged.
        """

        def content(name: str) -> Any:
            file = path / name
            if not file.is_file():
                return [] if name.endswith(".jsonl") else {}
            text = file.read_text(encoding="utf-8")
            try:
                if name.endswith(".jsonl"):
                    return [json.loads(line) for line in text.splitlines()]
                return yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
            except (ValueError, yaml.YAMLError) as error:
                raise UserError(f"{file}: is damaged ({error}); mend it or remove it") from error

        if not (path / "config.yaml").is_file():
            raise UserError(f"{path}: is no run folder (it has no config.yaml); give runs/NAME")
        return cls(
            path, current_names(content("config.yaml")), content("metrics.jsonl"),
            content("scores.json"), content("split.yaml"), content(ABOUT),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def script(self) -> str | None:
        """The command that trained it, `train_ddpm` for instance; None for a call of `train`."""
        own = {"train_seg": "task", "train_autoencoder": "kl_weight", "train_ddpm": "preview"}
        return next((script for script, key in own.items() if key in self.config), None)

    @property
    def kind(self) -> str:
        """What was trained: "denoiser", "segmenter", "image predictor", "autoencoder", ..."""
        if self.script == "train_seg":
            return "image predictor" if self.config["task"] == "regress" else "segmenter"
        own = str(self.config.get("model", {}).get("class", "network"))
        known = {"UNet": "denoiser", "Segmenter": "segmenter", "ClassicUNet": "segmenter"}
        return {"train_autoencoder": "autoencoder", "train_ddpm": "denoiser"}.get(
            str(self.script), known.get(own, own)
        )

    @property
    def warnings(self) -> list[str]:
        """What the check of the data found suspicious."""
        lines = self.about.get("data", [])
        return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]

    @property
    def counts(self) -> dict[str, int]:
        """Images, or parts of images, that train, validate and test."""
        parts = ("train", "validation", "test")
        found = {part: len(self.split[part]) for part in parts if part in self.split}
        tested = len(self.scores.get("images", ()))
        return found | ({"test": tested} if tested else {})

    @property
    def averages(self) -> dict[str, Any]:
        """The scores of all images together."""
        return {name: value for name, value in self.scores.items() if name != "images"}

    def last(self, name: str) -> float | None:
        """The newest value of a metric."""
        return next((r[name] for r in reversed(self.records) if r.get(name) is not None), None)

    def headline(self) -> dict[str, str]:
        """The numbers that one looks at first."""
        train = self.config.get("train", {})
        found: dict[str, Any] = {}
        steps, images = self.last("step"), self.last("images")
        if steps is not None and images is not None:
            planned = train.get("steps", steps)
            found["steps"] = f"{steps:,}" + (f" of {planned:,}" if steps < planned else "")
            found["images seen"] = f"{images:,}"
        if self.about.get("parameters"):
            found["parameters"] = f"{self.about['parameters']:,}"
        found |= {"loss": self.last("loss"), "validation loss": self.last("val_loss")}
        for name in ("mean_dice", "mean_iou", "psnr", "gen_fd"):
            values = [r[name] for r in self.records if r.get(name) is not None]
            if values:
                low = name == "gen_fd"
                found[f"best {words(name)}, validation"] = (min if low else max)(values)
        for name in ("mean_dice", "mean_iou", "image_dice", "psnr", "ssim"):
            if name in self.scores:
                found[f"{words(name)}, test"] = self.scores[name]
        return {name: shown(value) for name, value in found.items() if value is not None}

    def commands(self) -> dict[str, str]:
        """What to do next, and how."""
        path, model = shlex.quote(str(self.path)), shlex.quote(str(self.path / "model"))
        found = {}
        if self.script:
            steps = 2 * int(self.config.get("train", {}).get("steps", 1000))
            command = f"ddpm-unet {self.script.replace('_', '-')}"
            found["go on"] = f"{command} --resume {path} --train.steps {steps}"
        if self.script == "train_seg":
            found["predict"] = f"ddpm-unet segment --model {model} IMAGES..."
        if (self.path / "model" / "model_index.json").is_file():
            found["sample"] = f"ddpm-unet sample --model {model} --steps 1000 --num_images 16"
            found["segment from a few masks"] = (
                f"ddpm-unet train-seg --init {model} --data.images DIR --data.masks DIR"
            )
            found["measure"] = f"ddpm-unet evaluate --model {model} --reference DIR"
        if self.script in ("train_seg", "train_ddpm"):
            found["try it in a browser"] = f"ddpm-unet demo --model {model}"
        found["this page anew"] = f"ddpm-unet report {path}"
        return found


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of a run, or of several beside each other.

    Args:
        runs: Run folders.
        out: The file; None takes `report.html` in the folder of a single run, else
            `comparison.html` here.

    Raises:
        UserError: One is no run folder, or one of its files is damaged.
    """
    read = [Run.read(path) for path in runs]
    if len(read) == 1:
        out, text = out or runs[0] / "report.html", page_of(read[0])
    else:
        out, text = out or Path("comparison.html"), comparison_of(read)
    replace_text(out, printable(text))
    return out


def page_of(run: Run) -> str:
    """The page of one run."""
    train, scores, samples = run.config.get("train", {}), run.scores, sorted_samples(run)
    rows = scores.get("images", [])
    lines = [x for x in run.about.get("data", []) if not x.startswith("warning: ")]
    said = escape("\n".join(lines))
    data = [f'<pre class="aligned">{said}</pre>' if said else ""]
    data += [f'<p class="warning">{escape(line)}</p>' for line in run.warnings]
    if run.counts:
        data.append(cards({f"in {part}": f"{count:,}" for part, count in run.counts.items()}))
        data.append(folded("The split, image by image", pre_yaml(run.split)))
    names = COMMON.get(SCRIPTS.get(str(run.script), type(None)), ())
    every = dict(flattened(run.config))
    plan = {name: every.get(name) for name in names} or train
    settings = [table({k: shown(v) for k, v in plan.items() if v is not None})]
    settings.append(folded("Every setting", pre_yaml(run.config)))
    shots = [figure(path, f"step {int(path.stem):,}") for path in samples]
    sides = "image under its mask, and under its prediction"
    if run.config.get("task") == "regress":
        sides = "image, prediction, truth"
    predictions = [
        figure(run.path / "predictions" / f"{word}.png", f"{word}: {line(rows[number])}")
        for word, number in best_median_worst(rows).items()
        if (run.path / "predictions" / f"{word}.png").is_file()
    ]
    tested = [table({words(k): shown(v) for k, v in run.averages.items()})]
    if rows:
        each = [{words(key): value for key, value in row.items()} for row in rows]
        tested.append(folded("Each image", matrix(each)))
    begun = f", begun from {run.config['init']}" if run.config.get("init") else ""
    over_time = "Samples over time" if run.script != "train_seg" else "Predictions over time"
    ran = run.about.get("versions", {}) | {
        k: str(run.about[k]) for k in ("device", "processes", "precision") if k in run.about
    }
    return page(
        run.name,
        escape(f"{run.kind.capitalize()}{begun}, in {run.path.resolve()}"),
        [
            ("", cards(run.headline())),
            ("Data", "".join(data)),
            ("Plan", "".join(settings)),
            ("Curves", plots(panels(run.records))),
            (over_time, grid(shots)),
            (f"Images kept to test: {sides}", grid(predictions)),
            ("Scores on the images kept to test", "".join(tested) if scores else ""),
            ("What to do next", commands(run.commands())),
            ("Versions", table(ran)),
        ],
    )


def comparison_of(runs: Sequence[Run]) -> str:
    """The page of several runs."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]

    def beside(columns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        keys = dict.fromkeys(key for column in columns for key in column)
        return [
            {"": key, **{n: c.get(key) for n, c in zip(names, columns, strict=True)}}
            for key in keys
        ]

    settings = beside([dict(flattened(run.config)) for run in runs])
    changed = [
        row for row in settings if len({repr(row[n]) for n in names}) > 1 and row[""] != "run"
    ]
    curves: dict[str, Panel] = {}
    for name, run in zip(names, runs, strict=True):
        for panel in panels(run.records).values():
            for metric, points in panel.items():
                if not metric.startswith(("dice_", "iou_")):
                    curves.setdefault(metric, {})[name] = points
    shots = [
        figure(s[-1], f"{n}, step {int(s[-1].stem):,}")
        for n, run in zip(names, runs, strict=True)
        if (s := sorted_samples(run))
    ]
    return page(
        ", ".join(names),
        f"{len(runs)} runs beside each other",
        [
            ("Numbers", matrix(beside([run.headline() for run in runs]))),
            ("Settings that differ", matrix(changed) if changed else "<p>None.</p>"),
            ("Curves", plots(curves)),
            ("Last samples", grid(shots)),
        ],
    )


def sorted_samples(run: Run) -> list[Path]:
    """Some of the images drawn in training, from the first to the last."""
    found = sorted(p for p in (run.path / "samples").glob("*.png") if p.stem.isdigit())
    if len(found) <= MOST_SAMPLES:
        return found
    last = len(found) - 1
    return [found[round(i * last / (MOST_SAMPLES - 1))] for i in range(MOST_SAMPLES)]


def flattened(values: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Settings by dotted name."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """A value for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def words(name: str) -> str:
    """The name of a score for people."""
    said = {"dice": "Dice", "iou": "IoU", "hd95": "HD95", "psnr": "PSNR", "ssim": "SSIM",
            "mae": "MAE", "fd": "FD", "kid": "KID", "f": "F", "val": "validation"}  # fmt: skip
    return " ".join(said.get(word, word) for word in name.split("_"))


def line(row: dict[str, Any]) -> str:
    """An image's scores in a line."""
    return ", ".join(shown(v) if k == "name" else f"{words(k)} {shown(v)}" for k, v in row.items())


def data_of(content: bytes, kind: str) -> str:
    """The source of an image that is in the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def figure(path: Path, caption: str) -> str:
    """An image file with a caption, in the page."""
    content = path.read_bytes()
    with Image.open(path) as image:
        width, height = image.size
        if max(image.size) > MOST_PIXELS:
            image.thumbnail((MOST_PIXELS, MOST_PIXELS))
            image.save(buffer := io.BytesIO(), "PNG")
            content = buffer.getvalue()
    small = ' class="small"' if width < 300 else ""
    across = ' class="across"' if width > 2.5 * height else ""
    return (
        f'<figure{across}><img{small} alt="{escape(caption)}" width="{width}" height="{height}" '
        f'src="{data_of(content, "png")}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def plots(curves: dict[str, Panel]) -> str:
    """Curves, a plot each."""
    figures = []
    for title, panel in curves.items():
        if any(panel.values()):
            plot_panels({title: panel}, buffer := io.BytesIO(), "svg")
            source = data_of(buffer.getvalue(), "svg+xml")
            figures.append(f'<figure><img alt="{escape(title)}" src="{source}"></figure>')
    return grid(figures)


def grid(figures: Sequence[str]) -> str:
    """Figures side by side, as many as fit."""
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def cards(values: dict[str, str]) -> str:
    """Numbers in large type."""
    parts = (f"<div><b>{escape(v)}</b>{escape(k)}</div>" for k, v in values.items())
    return f'<div class="cards">{"".join(parts)}</div>'


def table(values: dict[str, str]) -> str:
    """Names and values."""
    rows = (f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in values.items())
    return f"<dl>{''.join(rows)}</dl>" if values else ""


def matrix(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a head, a row a dict."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(c)}</th>" for c in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(shown(row.get(c)))}</td>" for c in columns) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table class="matrix"><tr>{head}</tr>{body}</table></div>'


def commands(lines: dict[str, str]) -> str:
    """Commands and what they do."""
    return "".join(f"<p>{escape(k)}</p><pre>{escape(v)}</pre>" for k, v in lines.items())


def folded(title: str, content: str) -> str:
    """What a reader opens when it is wanted."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def pre_yaml(values: Any) -> str:
    """Values as YAML."""
    return f"<pre>{escape(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))}</pre>"


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page; sections without content are left out."""
    body = "".join(
        f"<section>{f'<h2>{escape(head)}</h2>' if head else ''}{content}</section>\n"
        for head, content in sections
        if content
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE.read_text("utf-8")}</style></head>
<body><main><header><h1>{escape(title)}</h1><p>{lead}</p></header>
{body}</main></body></html>
"""
