"""A page to try a model on, in a browser: `ddpm-unet demo --model runs/x/model`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from ddpm_unet.cli import ArgumentParser, whole
from ddpm_unet.commands.shared import best_device, prepare
from ddpm_unet.errors import UserError

MOST_PIXELS = 512 * 512
"""Of an image that is begun from."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model folder, of any task")
    here = "address served (default 127.0.0.1: this machine only)"
    parser.add_argument("--host", default="127.0.0.1", help=here)
    parser.add_argument("--port", type=whole(1, 65_535), default=7860, help="default 7860")
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        page = page_of(args.model, Path(folder))
        page.queue(default_concurrency_limit=1)
        page.launch(server_name=args.host, server_port=args.port, prevent_thread_lock=True)
        page.block_thread()


def page_of(model: Path, folder: Path) -> Any:
    """The page, a `gradio.Blocks`, for the kind of model that a folder, or a run, holds.

    Results are written to `folder`.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            f'demo: gradio cannot be imported ({error}); pip install "ddpm-unet[demo]"'
        ) from error
    model = model / "model" if (model / "model").is_dir() else model
    draws = (model / "model_index.json").is_file()
    with gradio.Blocks(title=f"{model}", analytics_enabled=False) as page:
        gradio.Markdown(f"### {'Generate with' if draws else 'Segment with'} `{model}`")
        (_denoiser if draws else _predictor)(gradio, model, folder)
    return page


def _shown_errors(gradio: Any, act: Callable[..., Any]) -> Callable[..., Any]:
    """`act`, whose errors of the user are shown on the page."""

    def guarded(*values: Any) -> Any:
        try:
            return act(*values)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return guarded


def _predictor(gradio: Any, model: Path, folder: Path) -> None:
    """An image in; what is seen in it, its objects and their counts, and the files to download."""
    import csv

    import torch

    from ddpm_unet.commands.segment import write_results
    from ddpm_unet.inference.predictor import Predictor

    device = best_device()
    predictor = Predictor.from_pretrained(model, device=device)
    prepare(predictor.model, device)

    def segment(file: str | None) -> tuple[Any, str, Any, list[str]]:
        if file is None:
            raise UserError("no image is given; drop one into the field")
        path, out = Path(file), Path(mkdtemp(dir=folder))
        predictor.look(path)
        with torch.inference_mode():
            totals = write_results(predictor, path, out / path.stem, format="png")
        files = sorted(out.iterdir())
        tables = [f for f in files if f.suffix == ".csv"]
        rows = list(csv.reader(tables[0].open(newline=""))) if tables else [[""]]
        said = ""
        if not predictor.preprocessing.targets:
            names = predictor.class_names or [f"class {k}" for k in range(len(totals))]
            column = rows[0].index("class") if tables else 0
            said = "\n".join(
                ["| class | objects | share of the image |", "|---|---|---|"]
                + [
                    f"| {name} | {sum(r[column] == str(k) for r in rows[1:]) if k else ''} | "
                    f"{share:.1%} |"
                    for k, (name, share) in enumerate(
                        zip(names, totals / max(1, totals.sum()), strict=True)
                    )
                ]
            )
        return _shown(files), said, {"headers": rows[0], "data": rows[1:]}, [str(f) for f in files]

    with gradio.Row():
        with gradio.Column():
            image = gradio.File(
                label="An image, of any format that is read: drop it here", type="filepath",
                height=140,
            )  # fmt: skip
            button = gradio.Button("Segment", variant="primary")
            counts = gradio.Markdown()
            files = gradio.Files(label="Download", interactive=False, height=180)
        seen = gradio.Image(label="What is seen in it", **_output())
    objects = gradio.Dataframe(label="Objects", interactive=False)
    shown = [seen, counts, objects, files]
    button.click(_shown_errors(gradio, segment), image, shown, api_name="segment")
    image.upload(_shown_errors(gradio, segment), image, shown, api_visibility="private")


def _denoiser(gradio: Any, model: Path, folder: Path) -> None:
    """Images drawn, also from one that is given, or into a hole painted in it."""
    import numpy as np
    import torch

    from ddpm_unet.evaluation.plots import grid
    from ddpm_unet.inference.denoiser import Denoiser

    device = best_device()
    denoiser = Denoiser.from_pretrained(model).to(device)
    prepare(denoiser.unet, device, denoiser.codec)
    own, seen_in_training = denoiser.conditioning, denoiser.preprocessing
    editable = denoiser.unet.config.dims == 2 and seen_in_training.dtype in (None, "uint8")

    def generate(
        count: float, steps: float, seed: float, label: str | None, guidance: float,
        edited: dict[str, Any] | None, strength: float,
    ) -> tuple[Any, list[str]]:  # fmt: skip
        start, hole = _painted(edited, seen_in_training)
        options: dict[str, Any] = {}
        if hole is not None:
            options["mask"] = hole
        elif start is not None:
            options["strength"] = strength
        job = denoiser.job(
            int(count), steps=int(steps), seed=int(seed), init_image=start,
            class_labels=None if label in (None, "in turn") else label,
            guidance=guidance if own.cond_dropout and guidance != 1 else None,
            sampler=None if steps > 200 or start is not None else "ddim", **options,
        )  # fmt: skip
        images = torch.cat([drawn.cpu() for _, drawn, _ in job])
        out = Path(mkdtemp(dir=folder))
        for number, one in enumerate(images):
            grid(one[None]).save(out / f"{number:05d}.png")
        return _enlarged(np.asarray(grid(images))), [str(file) for file in sorted(out.iterdir())]

    with gradio.Row():
        with gradio.Column():
            count = gradio.Slider(1, 16, 4, step=1, label="Images")
            steps = gradio.Slider(5, 1000, 50, step=1, label="Steps (up to 200 by DDIM)")
            seed = gradio.Number(0, label="Seed", precision=0)
            classes = ["in turn", *own.class_names]
            label = gradio.Dropdown(classes, label="Class", visible=bool(own.class_names))
            guidance = gradio.Slider(
                0, 10, 1, label="Guidance (1 for none)", visible=own.cond_dropout
            )
            button = gradio.Button("Generate", variant="primary")
            files = gradio.Files(label="Download", interactive=False, height=140)
        with gradio.Column():
            seen = gradio.Image(label="Drawn", **_output())
            edited = gradio.ImageEditor(
                label="Begin from an image; what you paint over is made anew", type="numpy",
                image_mode="RGBA", visible=editable, sources=["upload", "clipboard"], height=420,
                brush=gradio.Brush(10, colors=["#ff00ff"], color_mode="fixed"),
            )  # fmt: skip
            strength = gradio.Slider(
                0.05, 1, 0.5, label="Strength: share of the steps taken from it", visible=editable
            )
    given = [count, steps, seed, label, guidance, edited, strength]
    button.click(_shown_errors(gradio, generate), given, [seen, files], api_name="generate")


def _painted(edited: dict[str, Any] | None, seen: Any) -> tuple[Any, Any]:
    """The image of an editor `float32 [1, C, H, W]` in [-1, 1], and the hole `bool [1, 1, H, W]`.

    None for what is not there.
    """
    import numpy as np
    import torch

    if edited is None or edited["background"] is None or not edited["background"].any():
        return None, None
    background = edited["background"]
    height, width = background.shape[:2]
    if height * width > MOST_PIXELS:
        raise UserError(
            f"the image: has {width} x {height} pixels; cut out at most {MOST_PIXELS:,} with the "
            "tool at its left, or take `ddpm-unet sample --init_image`"
        )
    unit = seen.to_unit(np.ascontiguousarray(background[..., :3]), "the image")
    hole = np.zeros((height, width), bool)
    for layer in edited["layers"]:
        hole |= layer[..., 3] > 0
    image = torch.from_numpy(unit).movedim(-1, 0)[None]
    return image, torch.from_numpy(hole)[None, None] if hole.any() else None


def _shown(files: Sequence[Path]) -> Any:
    """The overlay, or else the image, among the files that were written; of many its middle one."""
    import tifffile

    from ddpm_unet.data.reading import read_image
    from ddpm_unet.inference.overlay import displayable

    images = [f for f in files if f.suffix in (".png", ".tif")]
    images.sort(key=lambda f: "overlay" not in f.name)
    if not images:
        return None
    if images[0].suffix == ".png":
        return _enlarged(displayable(read_image(images[0])))
    pages = tifffile.imread(images[0])
    return _enlarged(displayable(pages[len(pages) // 2] if pages.ndim > 3 else pages))


def _output() -> dict[str, Any]:
    return {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}


def _enlarged(image: Any) -> Any:
    """An image `[H, W, C]` a whole number of times larger, where it is small."""
    factor = max(1, 560 // image.shape[1])
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
