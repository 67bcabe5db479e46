"""Every setting of every job: one dataclass a topic, one line of help each.

The same names are the keys of `configs/*.yaml`, the dotted flags of the scripts and the
content of a run folder's `config.yaml`. Nothing here imports torch, so `--help` is quick.
"""

from ddpm_unet.config.data import (
    AugmentConfig,
    DataConfig,
    ExtraPairsConfig,
    ImageDataConfig,
    LatentConfig,
    MaskKind,
    PairDataConfig,
    SplitConfig,
    ValueRange,
)
from ddpm_unet.config.jobs import AutoencodeConfig, CheckConfig, DenoiseConfig, SegmentConfig
from ddpm_unet.config.network import (
    AutoencoderConfig,
    ClassicConfig,
    HeadConfig,
    UNetConfig,
    UNetSettings,
)
from ddpm_unet.config.training import (
    BetaSchedule,
    CheckpointHints,
    DiffusionConfig,
    ImageLoss,
    LossName,
    PredictConfig,
    PredictionType,
    PreviewConfig,
    ProcessHints,
    RegressionConfig,
    SegmentLossConfig,
    TrainConfig,
    VarianceType,
)

__all__ = [
    "AugmentConfig", "AutoencodeConfig", "AutoencoderConfig", "BetaSchedule", "CheckConfig",
    "CheckpointHints", "ClassicConfig", "DataConfig", "DenoiseConfig", "DiffusionConfig",
    "ExtraPairsConfig", "HeadConfig", "ImageDataConfig", "ImageLoss", "LatentConfig", "LossName",
    "MaskKind", "PairDataConfig", "PredictConfig", "PredictionType", "PreviewConfig",
    "ProcessHints", "RegressionConfig", "SegmentConfig", "SegmentLossConfig", "SplitConfig",
    "TrainConfig", "UNetConfig", "UNetSettings", "ValueRange", "VarianceType",
]  # fmt: skip
