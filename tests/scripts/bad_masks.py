"""Masks that are refused, and ways to pair and split them that are."""

import numpy as np
from bad_case import Case
from faulty_files import (
    image_file,
    noise,
    remove,
    several,
    tiff,
)

IMAGE, MASK, TIFF = "images/1.png", "masks/1.png", "images/1.tif"
CELLS = noise(24, 24) % 2
FIVE = {"photometric": "minisblack", "planarconfig": "contig"}

MASKS = [
    Case("no such folder", "check", "--data.masks nowhere",
         "nowhere: no such folder; give a folder of images"),
    Case("an image without its mask", "check", "",
         "images/1.png: has no mask in masks; add its mask, move it away, or set "
         "data.skip_unlabelled true", remove(MASK)),
    Case("a mask without its image", "check", "",
         "masks/1.png: has no image in images; add its image or move it away", remove(IMAGE)),
    Case("a.png and a.tif, two masks for one image", "check", "",
         "masks/1.tif: has the name of masks/1.png; keep one of the two",
         tiff("masks/1.tif", CELLS)),
    Case("a.png and a.tif, two images for one mask", "check", "",
         "images/1.tif: has the name of images/1.png; keep one of the two",
         tiff(TIFF, noise(24, 24, 3))),
    Case("one folder for both", "check", "--data.masks images",
         "images: is the folder of the images too; set data.mask_name, such as '{}_mask', "
         "to tell the masks from them"),
    Case("a pattern without {}", "check", "--data.image_name image",
         "data.image_name is 'image': write {} once, for instance '{}_image'"),
    Case("a folder of images, one file of masks", "check", "--data.masks masks/1.png",
         "masks/1.png: is a file, not a folder of images; give a folder of images"),
    Case("built-in images with other masks", "check", "--data.images builtin:histology",
         "data.images builtin:histology and data.masks masks do not go together: give your "
         "own folders for both, or builtin:histology with builtin:nucleus or "
         "builtin:nucleus-type"),
    Case("unknown built-in masks", "check",
         "--data.images builtin:histology --data.masks builtin:cells",
         "data.masks builtin:cells: there is only builtin:nucleus and builtin:nucleus-type"),
    Case("a stack where an image is meant", "check", "",
         "masks/1.tif: has 2 pages, images/1.png 1; make them the same",
         several(remove(MASK), tiff("masks/1.tif", np.stack([CELLS, CELLS])))),
    Case("stacks of different lengths", "check", "--data.images images.tif --data.masks masks.tif",
         "masks.tif: has 2 pages, images.tif 5; make them the same",
         several(tiff("images.tif", noise(5, 24, 24)), tiff("masks.tif", noise(2, 24, 24)))),
    Case("a mask of another size", "check", "",
         "masks/1.png: is 24 x 20 but its image is 24 x 24 (images/1.png); save the mask at "
         "the size of the image, without smoothing", image_file(MASK, CELLS[:20])),
    Case("a mask turned by 90 degrees", "check", "",
         "masks/1.png: is 24 x 30 but its image is 30 x 24 (images/1.png); turn one of the "
         "two by 90 degrees",
         several(image_file(IMAGE, noise(24, 30, 3)), image_file(MASK, noise(30, 24) % 2))),
    Case("the image itself as its mask", "check", "",
         "masks/1.png: is the same image as images/1.png; see data.masks",
         several(*[image_file(f"{d}/1.png", CELLS) for d in ("images", "masks")])),
    Case("a coloured mask", "check", "",
         "masks/1.png: is coloured; set data.mask_kind colors and data.class_colors to the "
         "colour of each class, in order; it holds [0, 0, 0], [200, 0, 0]",
         image_file(MASK, CELLS[..., None] * np.uint8([200, 0, 0]))),
    Case("a colour that is not in the table", "check",
         "--data.mask_kind colors --data.class_colors [[0,0,0],[1,1,1]]",
         "masks/1.png: [200, 0, 0] not in data.class_colors; add the colour there, mend the "
         "file, or set data.nearest_color true if it was saved as JPEG",
         image_file(MASK, CELLS[..., None] * np.uint8([200, 0, 0]))),
    Case("transparency that varies", "check", "",
         "masks/1.png: its transparency varies; save the mask without alpha",
         image_file(MASK, noise(24, 24, 4))),
    Case("five channels", "check", "", "masks/1.tif: has 5 channels; save the mask with 1 or 3",
         several(remove(MASK), tiff("masks/1.tif", noise(24, 24, 5), **FIVE))),
    Case("fractions", "check", "",
         "masks: the masks hold the values 0.0, 0.5, 1.0; say what they mean: data.mask_kind "
         "threshold takes what is over half (most values: masks/0.png)",
         several(remove(MASK), tiff("masks/1.tif", CELLS * np.float32(0.5)))),
    Case("NaN", "check", "",
         "masks/1.tif: 576 values are NaN or infinite, the first at row 0, column 0; mend or "
         "remove the file",
         several(remove(MASK), tiff("masks/1.tif", np.full((24, 24), np.nan, np.float32)))),
    Case("values 0, 1, 255", "check", "",
         "masks: the masks hold the values 0, 1, 255: set data.ignore_value 255 if that is "
         "unlabelled, or list the value of each class in data.mask_values [0, 1, 255], or set "
         "data.mask_kind threshold for masks with smooth edges, instances for numbers of "
         "objects (most values: masks/0.png)", image_file(MASK, CELLS * 255)),
    Case("values 0, 1, 7", "check", "",
         "masks: the masks hold the values 0, 1, 7: list the value of each class in "
         "data.mask_values [0, 1, 7], or set data.mask_kind threshold for masks with smooth "
         "edges, instances for numbers of objects (most values: masks/0.png)",
         image_file(MASK, CELLS * 7)),
    Case("a stray value for two classes", "check", "--data.num_classes 2",
         "masks: the masks hold the values 0, 1, 7: list the value of each class in "
         "data.mask_values [0, 1, 7], or set data.mask_kind threshold for masks with smooth "
         "edges, instances for numbers of objects (most values: masks/0.png)",
         image_file(MASK, CELLS * 7)),
    Case("one value everywhere", "check", "",
         "masks: the masks hold the value 0 and no other, so there is nothing to learn; see "
         "data.masks (most values: masks/0.png)",
         several(*[image_file(f"masks/{i}.png", CELLS * 0) for i in range(3)])),
    Case("numbers of objects read as classes", "check", "--data.mask_kind classes",
         "masks: value 999 is no class index below 256; list data.mask_values, or set "
         "data.mask_kind instances if the masks number objects (most values: masks/0.png)",
         several(remove(MASK), tiff("masks/1.tif", CELLS * np.uint16(999)))),
    Case("names for two classes of three", "check", "--data.num_classes 3 --data.class_names [a,b]",
         "masks: data.class_names is for 2 classes, but masks of kind classes give 3 (most "
         "values: masks/0.png)"),
    Case("colours without a table", "check", "--data.mask_kind colors",
         "masks: data.mask_kind colors: list each class's colour in data.class_colors (most "
         "values: masks/0.png)"),
    Case("two classes of one value", "check", "--data.mask_values [1,1]",
         "masks: data.mask_kind values: two classes have the same value in its table (most "
         "values: masks/0.png)"),
    Case("mask_values for another kind", "check",
         "--data.mask_kind classes --data.mask_values [0,1]",
         "masks: data.mask_values is for data.mask_kind values, not for classes (most values: "
         "masks/0.png)"),
    Case("a border around a class that is not there", "check", "--data.border_classes [7]",
         "masks: data.border_classes 7: the classes are numbered 0 to 1 (most values: "
         "masks/0.png)"),
    Case("every image held out", "train_seg", "--data.split.validation 3",
         "no image of 3 is left to train on: lower data.split.validation and .test"),
    Case("a share above 1", "train_seg", "--data.split.test 1.5",
         "data.split.test is 1.5: give a share from 0 to 1, or a whole number"),
    Case("more folds than images", "train_seg", "--data.split.folds 9",
         "data.split.folds is 9: give 2 to 3, or 0"),
    Case("one image too small to be cut", "train_seg", "",
         "0 (24 x 24 pixels) is too small to hold parts of it out: label another image, lower "
         "data.split.gap, or set data.split.validation 0",
         remove(*(f"{d}/{i}.png" for d in ("images", "masks") for i in (1, 2)))),
]  # fmt: skip
