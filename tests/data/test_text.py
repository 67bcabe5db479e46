"""Captions through a tiny random text encoder of transformers."""

import numpy as np
import pytest
import torch
from data_files import refused
from PIL import Image

from ddpm_unet.config import ImageDataConfig
from ddpm_unet.data.conditioning import encode_texts
from ddpm_unet.data.sources import open_images

transformers = pytest.importorskip("transformers")
WORDS = ["<end>", "a", "dark", "bright", "blob", "of", "tissue"]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A pipeline's folder: text_encoder/ with a CLIPTextModel, tokenizer/ beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("pipeline")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 0)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=8, eos_token="<end>"
    ).save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
        )
    ).save_pretrained(folder / "text_encoder")
    return folder / "text_encoder"


TEXTS = ["a dark blob", "tissue", "a bright blob", "tissue", "blob of tissue of a blob"]


def test_a_text_is_its_hidden_states_whatever_stands_beside_it(encoder):
    found = encode_texts(str(encoder), TEXTS, TEXTS)
    assert [states.shape for states in found] == [(n, 16) for n in (4, 2, 4, 2, 7)]
    model = transformers.CLIPTextModel.from_pretrained(encoder).eval()
    for text, states in zip(TEXTS, found, strict=True):
        tokens = torch.tensor([[WORDS.index(word) for word in [*text.split(), "<end>"]]])
        with torch.inference_mode():
            wanted = model(input_ids=tokens).last_hidden_state[0]
        np.testing.assert_allclose(states, wanted, rtol=1e-5, atol=1e-6)


def test_captions_beside_pictures_become_their_context(encoder, tmp_path):
    for number, text in enumerate(TEXTS):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"{text}\n")
    config = ImageDataConfig(
        source=str(tmp_path), size=8, context=str(tmp_path), text_encoder=str(encoder)
    )
    images = open_images(config)
    context, mask = images.context.take(range(5))
    assert context.shape == (5, 7, 16)
    assert mask.sum(1).tolist() == [4, 2, 4, 2, 7]
    for row, kept, states in zip(
        context, mask, encode_texts(str(encoder), TEXTS, TEXTS), strict=True
    ):
        np.testing.assert_array_equal(row[kept], states)

    (tmp_path / "3.txt").write_text("a blob of a blob of a blob")
    with refused(r"3\.txt: is 9 tokens long, .*text_encoder reads 1 to 8"):
        open_images(config)
    (tmp_path / "3.txt").unlink()
    with refused(r"3\.png: has no context; add \S+/3 as \.txt"):
        open_images(config)


def test_what_is_no_encoder(tmp_path):
    with refused("no such folder of a text encoder"):
        encode_texts(str(tmp_path), ["a"], ["a"])
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with refused("cannot be read"):
        encode_texts(str(tmp_path), ["a"], ["a"])
