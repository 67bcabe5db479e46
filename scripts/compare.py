"""Put generated images beside real ones: `python scripts/compare.py samples=generated`."""

from __future__ import annotations

from pathlib import Path

from ddpm_unet.cli import ArgumentParser, read_settings, user_errors, whole
from ddpm_unet.commands.evaluate import read_folder
from ddpm_unet.commands.shared import recipe
from ddpm_unet.config import DenoiseConfig
from ddpm_unet.errors import UserError


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("columns", nargs="+", help="title=folder that sample.py wrote")
    default = recipe("histology64.yaml")
    add("--config", type=Path, default=default, help="whose data the real images are")
    add("--num_images", type=whole(1, 64), default=16, help="images per column (default 16)")
    add("--out", type=Path, default=Path("compare.png"), help="PNG written (default compare.png)")
    args = parser.parse_args()

    from ddpm_unet.data.sources import open_stream
    from ddpm_unet.data.stream import to_model_range
    from ddpm_unet.evaluation.plots import save_side_by_side
    from ddpm_unet.inference.writers import output_folder

    columns = []
    for column in args.columns:
        title, _, folder = column.partition("=")
        if not folder or not Path(folder).is_dir():
            raise UserError(f"{column}: give title=folder, a folder that sample.py wrote")
        columns.append((title, to_model_range(read_folder(Path(folder), 1, args.num_images))))
    data = read_settings(DenoiseConfig, args.config, [])[0].data
    real = open_stream(data, seed=0).__getitems__(range(args.num_images))
    columns.append(("real", to_model_range(real["image"])))
    if args.out.is_dir() or args.out.suffix.lower() != ".png":
        raise UserError(f"{args.out}: is no name of a PNG; give one with --out")
    with output_folder(args.out.parent):
        save_side_by_side(columns, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    with user_errors():
        main()
