"""Images that are refused, in training and when they are segmented."""

import numpy as np
from bad_case import Case
from faulty_files import (
    animation,
    cut,
    flip,
    folder,
    forbid,
    image_file,
    link,
    noise,
    pipe,
    png_header,
    remove,
    several,
    tiff,
    tiff_header,
    write,
)

IMAGE, TIFF = "images/1.png", "images/1.tif"
FLOATS = np.ones((24, 24, 3), np.float32)
FIVE = {"photometric": "minisblack", "planarconfig": "contig"}

TRAINING = [
    Case("no such folder", "train_ddpm", "--data.source nowhere",
         "nowhere: no such folder; give a folder of images"),
    Case("a file where a folder is meant", "train_ddpm", "--data.source denoise.yaml",
         "denoise.yaml: is a file, not a folder of images; give a folder of images"),
    Case("no source at all", "train_ddpm", "--data.source=",
         "data.source: is empty; give a built-in set, a folder or a data set's name"),
    Case("an empty folder", "train_ddpm", "--data.source empty",
         "empty: holds nothing, no image (.bmp .czi .gif .jpeg .jpg .nd2 .png .svs .tif .tiff "
         ".webp .zarr); give a "
         "folder of images", folder("empty")),
    Case("a folder without images", "train_ddpm", "--data.source texts",
         "texts: holds only 1 other files, no image (.bmp .czi .gif .jpeg .jpg .nd2 .png .svs .tif "
         ".tiff .webp .zarr); give a folder of images", write("texts/a.txt", "text")),
    Case("a folder that may not be listed", "train_ddpm", "",
         "images: may not be listed; check its permissions", forbid("images"), only="not root"),
    Case("an unknown built-in set", "train_ddpm", "--data.source builtin:cats",
         "data.source builtin:cats: the built-in sets are builtin:histology and "
         "builtin:fashion-mnist"),
    Case("an unknown torchvision set", "train_ddpm", "--data.source torchvision:CIFAR11",
         "source torchvision:CIFAR11: torchvision has no such data set; try CIFAR10"),
    Case("a Hugging Face set without the package", "train_ddpm",
         "--data.source huggingface:nobody/nothing",
         "source huggingface:nobody/nothing: needs `pip install datasets`",
         only="no datasets"),
    Case("an empty file", "train_ddpm", "",
         "images/1.png: is empty (0 bytes); replace or remove the file", write(IMAGE)),
    Case("text named .png", "train_ddpm", "",
         "images/1.png: is not an image in a known format (PNG, JPEG, WebP, TIFF, GIF, "
         "BMP), or its header is damaged; replace or remove the file", write(IMAGE, "text")),
    Case("a PNG cut in its header", "train_ddpm", "",
         "images/1.png: is damaged or truncated (...); replace or remove the file",
         cut(IMAGE, 0.01)),
    Case("a PNG cut in its pixels", "train_ddpm", "",
         "images/1.png: is damaged or truncated (...); replace or remove the file", cut(IMAGE)),
    Case("a PNG with one bit flipped", "train_ddpm", "",
         "images/1.png: is damaged or truncated (...); replace or remove the file",
         flip(IMAGE)),
    Case("a JPEG cut in its pixels", "train_ddpm", "",
         "images/1.jpg: is damaged or truncated (...); replace or remove the file",
         several(remove(IMAGE), image_file("images/1.jpg"), cut("images/1.jpg"))),
    Case("a TIFF cut in its pixels", "train_ddpm", "",
         "images/1.tif: is damaged or truncated (...); replace or remove the file",
         several(remove(IMAGE), tiff(TIFF, noise(24, 24, 3)), cut(TIFF))),
    Case("a TIFF of 8 bytes", "train_ddpm", "",
         "images/1.tif: holds no image; replace or remove the file",
         several(remove(IMAGE), write(TIFF, b"II*\0\x08\0\0\0"))),
    Case("a PNG of 0 x 0 pixels", "train_ddpm", "",
         "images/1.png: is not an image in a known format (PNG, JPEG, WebP, TIFF, GIF, "
         "BMP), or its header is damaged; replace or remove the file", png_header(IMAGE, 0, 0)),
    Case("a TIFF of 0 x 0 pixels", "train_ddpm", "",
         "images/1.tif: is damaged or truncated (...); replace or remove the file",
         several(remove(IMAGE), tiff_header(TIFF, 0, 0))),
    Case("an image of 1 pixel", "train_ddpm", "",
         "images/1.png: 1 x 1 pixels hold no window of 16 x 16; lower size or set fit to "
         "resize", image_file(IMAGE, noise(1, 1, 3))),
    Case("windows larger than the images", "train_ddpm", "--data.size 25",
         "images/0.png: 24 x 24 pixels hold no window of 25 x 25; lower size or set fit to "
         "resize"),
    Case("images that grow beyond the limit", "train_ddpm", "--data.scale 1000",
         "images/0.png: 24000 x 24000 x 3 is 576 million pixels, over the limit of 200; if "
         "the file can be trusted, raise max_pixels"),
    Case("a bomb: a PNG that claims 100,000 x 100,000", "train_ddpm", "",
         "images/1.png: 100000 x 100000 x 3 is 10,000 million pixels, over the limit of "
         "200; if the file can be trusted, raise max_pixels",
         png_header(IMAGE, 100_000, 100_000)),
    Case("a bomb: a TIFF that claims 100,000 x 100,000", "train_ddpm", "",
         "images/1.tif: 100000 x 100000 x 1 is 10,000 million pixels, over the limit of "
         "200; if the file can be trusted, raise max_pixels",
         several(remove(IMAGE), tiff_header(TIFF, 100_000, 100_000))),
    Case("a PNG that claims more than it holds", "train_ddpm", "",
         "images/1.png: is damaged or truncated (...); replace or remove the file",
         png_header(IMAGE, 1000, 1000)),
    Case("a TIFF that claims more than it holds", "train_ddpm", "--data.channels 3",
         "images/1.tif: is damaged or truncated (...); replace or remove the file",
         several(remove(IMAGE), tiff_header(TIFF, 1000, 1000))),
    Case("a CMYK JPEG", "train_ddpm", "",
         "images/1.jpg: its colour space CMYK has no single conversion to RGB; convert the "
         "file to grey, RGB or RGBA first",
         several(remove(IMAGE), image_file("images/1.jpg", mode="CMYK"))),
    Case("a CMYK TIFF", "train_ddpm", "",
         "images/1.tif: its colour space SEPARATED has no single conversion to RGB; convert "
         "the file to grey, RGB or RGBA first",
         several(remove(IMAGE), tiff(TIFF, noise(24, 24, 4), photometric="separated"))),
    Case("a Lab TIFF", "train_ddpm", "",
         "images/1.tif: its colour space CIELAB has no single conversion to RGB; convert "
         "the file to grey, RGB or RGBA first",
         several(remove(IMAGE), image_file(TIFF, mode="LAB"))),
    Case("an animated GIF", "train_ddpm", "",
         "images/1.gif: is animated (2 frames); save the wanted frames as images",
         several(remove(IMAGE), animation("images/1.gif"))),
    Case("an animated PNG", "train_ddpm", "",
         "images/1.png: is animated (2 frames); save the wanted frames as images",
         animation(IMAGE)),
    Case("an animated WebP", "train_ddpm", "",
         "images/1.webp: is animated (2 frames); save the wanted frames as images",
         several(remove(IMAGE), animation("images/1.webp"))),
    Case("a TIFF of two pages", "train_ddpm", "",
         "images/1.tif: has 2 pages; save each as an image of its own, store channels "
         "as samples of one page, or set data.dims 3 for a volume",
         several(remove(IMAGE), tiff(TIFF, noise(2, 24, 24)))),
    Case("a TIFF of pages of different sizes", "train_ddpm", "",
         "images/1.tif: holds 2 images of different shapes; save each as a file of its own",
         several(remove(IMAGE), tiff(TIFF, noise(24, 24), noise(20, 20)))),
    Case("NaN in a float TIFF", "train_ddpm", "--data.source deep",
         "deep/1.tif: 1728 values are NaN or infinite, the first at row 0, column 0; mend or "
         "remove the file", several(folder("deep"), tiff("deep/1.tif", FLOATS * np.nan))),
    Case("floats beyond 0 to 1", "train_ddpm", "--data.source deep",
         "deep/1.tif: float values from 7 to 7, not within 0 to 1; say what is black and "
         "white with data.value_range, for instance [0, 7]",
         several(folder("deep"), tiff("deep/1.tif", FLOATS * 7))),
    Case("complex numbers", "train_ddpm", "",
         "images/1.tif: holds complex64 values; save it as uint8, uint16 or float32",
         several(remove(IMAGE), tiff(TIFF, noise(24, 24, 3, kind=np.complex64)))),
    Case("integers that floats cannot hold", "train_ddpm", "--data.source deep",
         "deep/1.tif: holds int32 values up to 33554432, more than float32 can keep exactly; "
         "save it as uint16 or float32",
         several(folder("deep"), tiff("deep/1.tif", np.full((24, 24), 2**25, np.int32)))),
    Case("a 16-bit image among 8-bit ones", "train_ddpm", "",
         "images/1.tif: depth is uint16, that of images/0.png uint8; convert the files to "
         "one depth or keep them in separate folders",
         several(remove(IMAGE), tiff(TIFF, noise(24, 24, 3, kind=np.uint16)))),
    Case("an interlaced 16-bit colour PNG", "train_ddpm", "--data.source deep",
         "deep/1.png: is an interlaced 16-bit PNG; save it without that",
         several(folder("deep"), png_header("deep/1.png", 24, 24, depth=16, interlaced=1))),
    Case("a grey image among colour ones", "train_ddpm", "",
         "images/1.png: channels are 1, those of images/0.png 3; convert it, or set "
         "channels to 1, 3 or 4", image_file(IMAGE, mode="L")),
    Case("five channels that should become three", "train_ddpm", "--data.channels 3",
         "images/1.tif: has 5 channels that are no colours, 3 are wanted; choose them by "
         "data.channels in training, or save them alone",
         several(remove(IMAGE), tiff(TIFF, noise(24, 24, 5), **FIVE))),
    Case("a link to nothing", "train_ddpm", "",
         "images/9.png: no such file; mend the link or the name",
         link("images/9.png", "nowhere")),
    Case("a link to itself", "train_ddpm", "",
         "images/9.png: is damaged or truncated (...); replace or remove the file",
         link("images/9.png", "9.png")),
    Case("a named pipe", "train_ddpm", "",
         "images/9.png: is empty (0 bytes); replace or remove the file", pipe("images/9.png")),
    Case("a file that may not be read", "train_ddpm", "",
         "images/1.png: may not be read; check its permissions", forbid(IMAGE),
         only="not root"),
    Case("an image outside the class folders", "train_ddpm", "--data.class_labels true",
         "images/0.png: is in no class folder; move it into a sub-folder of images named "
         "after its class, or set class_labels to false"),
]  # fmt: skip

SEGMENTING = [
    Case("no such image", "segment", "nowhere.png", "nowhere.png: no such file or folder"),
    Case("a file that is no image, after good ones", "segment", "images denoise.yaml",
         "denoise.yaml: is not an image in a known format (PNG, JPEG, WebP, TIFF, GIF, BMP), "
         "or its header is damaged; replace or remove the file"),
    Case("a folder without images", "segment", "empty",
         "empty: holds nothing, no image (.bmp .czi .gif .jpeg .jpg .nd2 .png .svs .tif .tiff "
         ".webp .zarr); give a "
         "folder of images", folder("empty")),
    Case("a cut image", "segment", "bad.png",
         "bad.png: is damaged or truncated (...); replace or remove the file",
         several(image_file("bad.png"), cut("bad.png"))),
    Case("an empty file, after good ones", "segment", "images bad.png",
         "bad.png: is empty (0 bytes); replace or remove the file", write("bad.png")),
    Case("a CMYK image, after good ones", "segment", "images bad.jpg",
         "bad.jpg: its colour space CMYK has no single conversion to RGB; convert the file to "
         "grey, RGB or RGBA first", image_file("bad.jpg", mode="CMYK")),
    Case("an animation, after good ones", "segment", "images bad.gif",
         "bad.gif: is animated (2 frames); save the wanted frames as images",
         animation("bad.gif")),
    Case("a bomb: a TIFF that claims 100,000 x 100,000", "segment", "bad.tif",
         "bad.tif: 1 x 100000 x 100000 x 1 is 10,000 million pixels, over the limit of 200; "
         "if the file can be trusted, raise max_pixels",
         tiff_header("bad.tif", 100_000, 100_000)),
    Case("two images whose masks would have one name", "segment", "a b",
         "b/x.png and a/x.png: would be written under one name; segment them into different "
         "folders with --out", several(image_file("a/x.png"), image_file("b/x.png"))),
    Case("images in the output folder", "segment", "images --out images",
         "images/0.png: lies in the output folder images; choose another with --out"),
]  # fmt: skip
