"""Captions as sequences of vectors, by a text encoder of transformers (the extra `text`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm_unet.errors import UserError

INSTALL = 'pip install "ddpm-unet[text]"'
BATCH = 64


def encode_texts(folder: str, texts: Sequence[str], names: Sequence[str]) -> list[np.ndarray]:
    """The encoder's last hidden states of each text, a vector a token, `float32 [L, C]`.

    Texts of one length are encoded together, so no padding is ever seen; equal texts once.

    Args:
        folder: Of the encoder (CLIP's, T5's, BERT, ...), with its tokenizer there too or, as in
            the folder of a pipeline, in `tokenizer/` beside it. Nothing is fetched.
        texts: To encode.
        names: Theirs, for messages.

    Raises:
        UserError: transformers is missing, no such encoder, or a text longer than it can read.
    """
    tokenizer, encoder = _open(Path(folder))
    tokens = {text: tuple(tokenizer(text)["input_ids"]) for text in dict.fromkeys(texts)}
    for text, name in zip(texts, names, strict=True):
        if not 0 < len(tokens[text]) <= tokenizer.model_max_length:
            raise UserError(
                f"{name}: is {len(tokens[text])} tokens long, {folder} reads 1 to "
                f"{tokenizer.model_max_length}; change the caption"
            )
    encoded: dict[tuple[int, ...], np.ndarray] = {}
    with torch.inference_mode():
        for _, group in groupby(sorted(set(tokens.values()), key=len), key=len):
            alike = sorted(group)
            for start in range(0, len(alike), BATCH):
                batch = alike[start : start + BATCH]
                states = encoder(input_ids=torch.tensor(batch)).last_hidden_state
                encoded.update(zip(batch, states.float().numpy(), strict=True))
    return [encoded[tokens[text]] for text in texts]


def read_caption(path: str) -> str:
    """The text of a file, without the spaces around it.

    Raises:
        UserError: It cannot be read as UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); save it again") from error


def _open(folder: Path) -> tuple[Any, Any]:
    try:
        from transformers import AutoModelForTextEncoding, AutoTokenizer
    except ImportError:
        raise UserError(f"captions need transformers; run `{INSTALL}`") from None
    if not (folder / "config.json").is_file():
        raise UserError(f"data.text_encoder {folder}: no such folder of a text encoder")
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    local: dict[str, Any] = {"local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder if own else folder.parent / "tokenizer", **local
        )
        encoder = AutoModelForTextEncoding.from_pretrained(folder, use_safetensors=True, **local)
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"data.text_encoder {folder}: cannot be read ({cause})") from error
    return tokenizer, encoder.float().eval()
