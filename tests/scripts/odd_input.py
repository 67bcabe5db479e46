"""Odd inputs that work."""

import numpy as np
from bad_case import Odd
from faulty_files import copy, image_file, link, move, noise, several, tiff, write

ODD = [
    Odd("spaces and accents in an image's name and folder", "segment", "'zellen ü/bild 1.png'",
        "out/bild 1_mask.png", image_file("zellen ü/bild 1.png")),
    Odd("other scripts in the names of what is written", "segment", "images --out 出力/маски",
        "出力/маски/0_mask.png"),
    Odd("a name in no encoding", "segment", "odd", "out/\udcff_mask.png",
        image_file("odd/\udcff.png")),
    Odd("a training from and to such folders", "train_ddpm",
        "--data.source 'bilder ö' --run 'lauf 日本'", "lauf 日本/model/model_index.json",
        move("images", "bilder ö")),
    Odd("a labelled set with such names", "check", "", "images/ä b.png",
        several(*(move(f"{d}/1.png", f"{d}/ä b.png") for d in ("images", "masks")))),
    Odd("a link to the images", "check", "--data.images linked", "linked",
        link("linked", "images")),
    Odd("hidden and other files among the images", "check", "", "images/notes.txt",
        several(write("images/.hidden.png"), write("images/notes.txt"))),
    Odd("a JPEG named .png", "segment", "a.png", "out/a_mask.png",
        image_file("a.png", format="JPEG")),
    Odd("an image of 1 pixel", "segment", "a.png", "out/a_mask.png",
        image_file("a.png", noise(1, 1, 3))),
    Odd("grey, palette, transparent and 16-bit images for a network of colours", "segment", "odd",
        "out/deep_mask.tif", several(
            image_file("odd/grey.png", mode="L"), image_file("odd/palette.png", mode="P"),
            image_file("odd/alpha.png", mode="RGBA"),
            tiff("odd/deep.tif", noise(24, 24, 3, kind=np.uint16)))),
    Odd("two images of one name and two endings", "segment", "odd", "out/0.bmp_mask.png",
        several(image_file("odd/0.bmp"), copy("images/0.png", "odd/0.png"))),
    Odd("sizes that no power of two divides", "sample", "--size 7 13", "out/00000.png"),
]  # fmt: skip
