"""Model folders, run folders and output folders that are refused."""

import numpy as np
from bad_case import Case
from faulty_files import (
    copy,
    cut,
    edit,
    folder,
    forbid,
    image_file,
    noise,
    pickled,
    remove,
    run_folder,
    several,
    spoil,
    write,
)

CONFIG = "denoiser/unet/config.json"
WEIGHTS = "denoiser/unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "denoiser/scheduler/scheduler_config.json"

MODELS = [
    Case("no such folder", "sample", "--model nowhere",
         "nowhere does not exist; name the folder of a model, or of a pipeline with unet/ in it"),
    Case("a folder without a model", "sample", "--model images",
         "images has no config.json; name the folder of a model, or of a pipeline with "
         "unet/ in it"),
    Case("a run's folder where its model is meant", "sample", "--model runs/a",
         "runs/a has no config.json; name the model in it, runs/a/model", folder("runs/a/model")),
    Case("a file", "sample", "--model denoise.yaml",
         "denoise.yaml is damaged or missing (...); copy it again"),
    Case("a segmenter where a denoiser is meant", "sample", "--model segmenter",
         "segmenter/config.json: _class_name 'Segmenter' is not supported; take the folder of "
         "a UNet2DModel or UNet2DConditionModel"),
    Case("a denoiser where a segmenter is meant", "segment", "images --model denoiser",
         "denoiser is a denoiser; train a segmenter from it with --init denoiser"),
    Case("no config.json", "sample", "",
         "denoiser has no config.json; name the folder of a model, or of a pipeline with "
         "unet/ in it", remove(CONFIG)),
    Case("half a config.json", "sample", "",
         "denoiser/unet/config.json: is not readable (...); copy the model again", cut(CONFIG)),
    Case("a list for config.json", "sample", "",
         "denoiser/unet/config.json: holds no settings; copy the model again", write(CONFIG, "[]")),
    Case("a pickle for config.json", "sample", "",
         "denoiser/unet/config.json: is not readable (...); copy the model again", pickled(CONFIG)),
    Case("another class of diffusers", "sample", "",
         "denoiser/unet/config.json: _class_name 'AutoencoderKL' is not supported; take the "
         "folder of a UNet2DModel or UNet2DConditionModel",
         edit(CONFIG, _class_name="AutoencoderKL")),
    Case("an unknown key", "sample", "",
         "denoiser/unet/config.json: unknown key 'magic' of a UNet2DModel; remove it if it "
         "means nothing", edit(CONFIG, magic=1)),
    Case("text for a number", "sample", "",
         "denoiser/unet/config.json: layers_per_block is '2'; it must be a whole number or a "
         "list, each a whole number", edit(CONFIG, layers_per_block="2")),
    Case("a number for a list", "sample", "",
         "denoiser/unet/config.json: down_block_types is 5; it must be a list, each text",
         edit(CONFIG, down_block_types=5)),
    Case("no input channels", "sample", "",
         "denoiser/unet/config.json: in_channels 0: must be between 1 and 65536",
         edit(CONFIG, in_channels=0)),
    Case("weights of another width", "sample", "",
         "denoiser/unet: tensor conv_in.weight has shape [8, 3, 3, 3], not [16, 3, 3, 3]; "
         "take the weights that belong to this configuration",
         edit(CONFIG, block_out_channels=[16])),
    Case("weights of another depth", "sample", "",
         "denoiser/unet: tensor down_blocks.0.resnets.1.norm1.weight is missing; take the "
         "weights that belong to this configuration", edit(CONFIG, layers_per_block=2)),
    Case("weights of grey images", "sample", "",
         "denoiser/unet: tensor conv_in.weight has shape [8, 1, 3, 3], not [8, 3, 3, 3]; take "
         "the weights that belong to this configuration",
         spoil(WEIGHTS, conv_in_weight=lambda w: w[:, :1])),
    Case("weights of another kind", "sample", "",
         "denoiser/unet: tensor conv_in.weight is missing; take the weights that belong to "
         "this configuration", copy("segmenter/head/diffusion_pytorch_model.safetensors", WEIGHTS)),
    Case("weights that are NaN", "sample", "",
         "denoiser/unet/diffusion_pytorch_model.safetensors: conv_in.bias is not finite; take "
         "weights of an earlier step", spoil(WEIGHTS, conv_in_bias=lambda w: w * np.nan)),
    Case("no weights", "sample", "",
         "denoiser/unet has no diffusion_pytorch_model.safetensors; copy it there",
         remove(WEIGHTS)),
    Case("half the weights", "sample", "",
         "denoiser/unet/diffusion_pytorch_model.safetensors is damaged or missing (...); copy "
         "it again", cut(WEIGHTS)),
    Case("a pickle named .safetensors", "sample", "",
         "denoiser/unet/diffusion_pytorch_model.safetensors is damaged or missing (...); copy "
         "it again", pickled(WEIGHTS)),
    Case("a pickle in place of weights", "sample", "",
         "denoiser/unet/diffusion_pytorch_model.bin is a pickle, which is never loaded; "
         "convert it where you trust it: " "diffusers.UNet2DModel.from_pretrained('denoiser/unet', "
         "use_safetensors=False).save_pretrained('denoiser/unet')",
         several(remove(WEIGHTS), pickled("denoiser/unet/diffusion_pytorch_model.bin"))),
    Case("an index without a list of files", "sample", "",
         "denoiser/unet/diffusion_pytorch_model.safetensors.index.json: names no weights; "
         "copy the model again", several(remove(WEIGHTS), write(f"{WEIGHTS}.index.json", "{}"))),
    Case("a missing part of several", "sample", "",
         "denoiser/unet/b is damaged or missing (...); copy it again",
         several(remove(WEIGHTS), write(f"{WEIGHTS}.index.json", '{"weight_map": {"a": "b"}}'))),
    Case("no scheduler", "sample", "",
         "denoiser: has no scheduler/scheduler_config.json; give the model folder of a run, "
         "or a folder that a diffusers pipeline wrote", remove(SCHEDULER)),
    Case("an unknown schedule", "sample", "",
         "denoiser/scheduler/scheduler_config.json: beta_schedule is 'sigmoid'; it must be "
         "one of linear, scaled_linear, squaredcos_cap_v2, logistic",
         edit(SCHEDULER, beta_schedule="sigmoid")),
    Case("a schedule beyond all noise", "sample", "",
         "denoiser/scheduler/scheduler_config.json: beta_start 0.0001, beta_end 2: need 0 < "
         "beta_start <= beta_end < 1", edit(SCHEDULER, beta_end=2)),
    Case("a chain of 1,000,000,000,000 steps", "sample", "",
         "denoiser/scheduler/scheduler_config.json: num_train_timesteps 1000000000000: must "
         "be between 1 and 100000", edit(SCHEDULER, num_train_timesteps=10**12)),
    Case("no head", "segment", "images",
         "segmenter/head has no diffusion_pytorch_model.safetensors; copy it there",
         remove("segmenter/head/diffusion_pytorch_model.safetensors")),
    Case("more classes than the weights have", "segment", "images",
         "segmenter: tensor head.conv.weight has shape [2, 8, 3, 3], not [3, 8, 3, 3]; take "
         "the weights that belong to this configuration",
         edit("segmenter/config.json", num_classes=3)),
    Case("colours of two numbers", "segment", "images",
         "segmenter/config.json: class_colors is [[1, 2], [3, 4]]; it must be a list, each [a "
         "whole number, a whole number, a whole number]",
         edit("segmenter/config.json", class_colors=[[1, 2], [3, 4]])),
    Case("half a preprocessing.json", "segment", "images",
         "segmenter/preprocessing.json: is not readable (...); copy the model again",
         cut("segmenter/preprocessing.json")),
    Case("a preprocessing that scales by 0", "segment", "images",
         "segmenter/preprocessing.json: data.scale 0: must be between 0.001 and 1000",
         edit("segmenter/preprocessing.json", scale=0)),
    Case("grey images for a denoiser of colours", "train_seg", "",
         "denoiser: the U-Net takes images of 3 channels, these have 1; set repeat_grey to "
         "repeat the grey channel, convert the images, or train from scratch",
         several(*[image_file(f"images/{i}.png", noise(24, 24)) for i in range(3)])),
    Case("half a denoiser to start from", "train_seg", "",
         "denoiser/unet has no diffusion_pytorch_model.safetensors; copy it there",
         remove(WEIGHTS)),
]  # fmt: skip

FOLDERS = [
    Case("a file where the run folder is meant", "train_ddpm", "--run denoise.yaml",
         "denoise.yaml: cannot be written (...); choose another --run folder"),
    Case("a run folder in a read-only one", "train_ddpm", "--run locked/run",
         "locked/run: cannot be written (...); choose another --run folder",
         several(folder("locked"), forbid("locked", 0o555)), only="not root"),
    Case("a run with other settings", "train_ddpm", "--seed 1",
         "run: holds a run with seed = 0, not 1; choose another --run folder or the old value",
         run_folder()),
    Case("a used run folder, not to be resumed", "train_ddpm", "--resume never",
         "run: holds a run already; choose another --run or --resume auto", run_folder()),
    Case("a run folder with a broken config.yaml", "train_ddpm", "",
         "run/config.yaml: not a run's settings; choose another --run folder",
         several(run_folder(), write("run/config.yaml", "{"))),
    Case("a file in the way of the model", "train_ddpm", "",
         "run/model: is a file where the run needs a folder; move it away",
         several(run_folder(), write("run/model"))),
    Case("a checkpoint of another version", "train_ddpm", "",
         "run/checkpoints/00000001: has no loss_steps, so another version of this program wrote "
         "it; go on with that one, or choose another --run folder", run_folder()),
    Case("a file where the output folder is meant", "sample", "--out denoise.yaml",
         "denoise.yaml: cannot be written to (...); choose another with --out"),
    Case("an output folder in a read-only one", "sample", "--out locked/out",
         "locked/out: cannot be written to (...); choose another with --out",
         several(folder("locked"), forbid("locked", 0o555)), only="not root"),
    Case("a folder where a PNG is meant", "compare", "a=generated --out images",
         "images: is no name of a PNG; give one with --out"),
    Case("a JPEG where a PNG is meant", "compare", "a=generated --out a.jpg",
         "a.jpg: is no name of a PNG; give one with --out"),
    Case("a column without a title", "compare", "generated",
         "generated: give title=folder, a folder that sample.py wrote"),
    Case("a column without a folder", "compare", "a=nowhere",
         "a=nowhere: give title=folder, a folder that sample.py wrote"),
    Case("fewer images than columns are long", "compare", "a=generated --num_images 9",
         "generated: has 3 images; give --num_images 3"),
    Case("generated images of two sizes", "compare", "a=generated",
         "generated/00001.png: is no 8-bit image of the size of 00000.png",
         image_file("generated/00001.png", noise(20, 20, 3))),
    Case("a cut generated image", "compare", "a=generated",
         "generated/00001.png: is damaged or truncated (...); replace or remove the file",
         cut("generated/00001.png")),
]  # fmt: skip
