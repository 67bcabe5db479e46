import math
from dataclasses import replace

import pytest

from ddpm_unet.config import TrainConfig
from ddpm_unet.errors import UserError
from ddpm_unet.training.loop import check_training

ABSURD = {
    "steps": (0, -5),
    "batch_size": (0, -1),
    "micro_batch": (-1,),
    "lr": (0.0, -1e-3, math.nan, math.inf),
    "warmup_steps": (-1,),
    "betas": ((-0.1, 0.9), (0.9, 1.0), (math.nan, 0.9)),
    "weight_decay": (-1.0, math.nan),
    "clip_norm": (-1.0, math.nan),
    "ema_decay": (-0.1, 1.1, math.nan),
    "checkpoint_every": (0, -1),
    "keep_checkpoints": (0, -1),
    "validate_every": (-1,),
    "sample_every": (-1,),
    "log_every": (0, -1),
    "early_stopping_patience": (-1,),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ABSURD.items() for value in values]
)
def test_absurd_settings_are_refused_by_name(name, value):
    with pytest.raises(UserError, match=rf"^train\.{name} .*must be"):
        check_training(replace(TrainConfig(), **{name: value}))
