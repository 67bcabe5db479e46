"""Odd inputs that work."""

import numpy as np
from bad_case import Odd
from faulty_files import copy, link, move, noise, picture, several, tiff, write

ODD = [
    Odd("spaces and accents in a picture's name and folder", "segment", "'zellen ü/bild 1.png'",
        "out/bild 1_mask.png", picture("zellen ü/bild 1.png")),
    Odd("other scripts in the names of what is written", "segment", "pictures --out 出力/маски",
        "出力/маски/0_mask.png"),
    Odd("a name in no encoding", "segment", "odd", "out/\udcff_mask.png",
        picture("odd/\udcff.png")),
    Odd("a training from and to such folders", "train_ddpm",
        "--data.source 'bilder ö' --run 'lauf 日本'", "lauf 日本/model/model_index.json",
        move("pictures", "bilder ö")),
    Odd("a labelled set with such names", "check", "", "pictures/ä b.png",
        several(*(move(f"{d}/1.png", f"{d}/ä b.png") for d in ("pictures", "masks")))),
    Odd("a link to the pictures", "check", "--data.images linked", "linked",
        link("linked", "pictures")),
    Odd("hidden and other files among the pictures", "check", "", "pictures/notes.txt",
        several(write("pictures/.hidden.png"), write("pictures/notes.txt"))),
    Odd("a JPEG named .png", "segment", "a.png", "out/a_mask.png", picture("a.png", format="JPEG")),
    Odd("a picture of 1 pixel", "segment", "a.png", "out/a_mask.png",
        picture("a.png", noise(1, 1, 3))),
    Odd("grey, palette, transparent and 16-bit pictures for a network of colours", "segment", "odd",
        "out/deep_mask.tif", several(
            picture("odd/grey.png", mode="L"), picture("odd/palette.png", mode="P"),
            picture("odd/alpha.png", mode="RGBA"),
            tiff("odd/deep.tif", noise(24, 24, 3, kind=np.uint16)))),
    Odd("two pictures of one name and two endings", "segment", "odd", "out/0.bmp_mask.png",
        several(picture("odd/0.bmp"), copy("pictures/0.png", "odd/0.png"))),
    Odd("sizes that no power of two divides", "sample", "--size 7 13", "out/00000.png"),
]  # fmt: skip
