"""Tiny frozen models, saved as Hugging Face folders: real architectures with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

VISION = ("dinov2", "dinov2_with_registers", "dinov3_vit", "siglip", "vjepa2")
WORDS = ("[PAD]", "[UNK]", "push", "pull", "the", "button")


def save_vision(kind: str, folder: Path) -> str:
    """Saves a vision model with patches of 8 px and 16 channels for frames of 32 px; returns its folder."""
    import transformers as hf

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "dinov2":
            model = hf.Dinov2Model(hf.Dinov2Config(**small))
        elif kind == "dinov2_with_registers":
            model = hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**small))
        elif kind == "dinov3_vit":
            model = hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**small, intermediate_size=32, num_register_tokens=2))
        elif kind == "siglip":
            text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
            config = hf.SiglipConfig(
                vision_config={**small, "intermediate_size": 32}, text_config={**text, "vocab_size": 8}
            )
            model = hf.SiglipModel(config)
        else:
            config = hf.VJEPA2Config(
                **{k: v for k, v in small.items() if k != "image_size"},
                crop_size=32,
                frames_per_clip=4,
                tubelet_size=2,
                pred_hidden_size=12,
                pred_num_attention_heads=2,
                pred_num_hidden_layers=1,
            )
            model = hf.VJEPA2Model(config)
    model.save_pretrained(str(folder))
    return str(folder)


def save_text(folder: Path) -> str:
    """Saves a T5 encoder-decoder of width 12 that knows four words, with its tokenizer; returns its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5Model

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    fast.save_pretrained(str(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        T5Model(T5Config(vocab_size=8, d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
            str(folder)
        )
    return str(folder)
