"""Marks of a vision-language model: a tiny one of random weights, made here and loaded as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from neural_traj.judge import judge
from neural_traj.verdict import JudgeConfig
from neural_traj.vlm import FOLLOWS, PHYSICS, TransformersCritic, VLMConfig, marks, shown_frames
from pyramid import parquet
from pyramid.errors import ConfigError

WORDS = ["<pad>", "<unk>", "<image>", "</s>", "0", "1", "push", "the", "cup", "open", "drawer", "physics", "laws"]


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
    )
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=2, vision_feature_select_strategy="full"
    )
    model = LlavaForConditionalGeneration(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    folder = tmp_path_factory.mktemp("vlm")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def pictures(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)


def test_the_mark_is_the_probability_of_one_against_zero(tiny_vlm: str) -> None:
    """Held against what `generate` scores for its first token."""
    critic = TransformersCritic(VLMConfig(model=tiny_vlm))
    question = FOLLOWS.replace("{n}", "3").replace("{text}", "push the cup")
    found = marks(critic, pictures(0), "push the cup")
    text = f"USER: <image> <image> <image> {question} ASSISTANT:"
    inputs = critic.processor(text=[text], images=[Image.fromarray(p) for p in pictures(0)], return_tensors="pt")
    said = critic.model.generate(
        **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    ones = torch.softmax(said.logits[0][0, [WORDS.index("0"), WORDS.index("1")]], -1)[1]
    assert found["follows"] == pytest.approx(float(ones), abs=1e-5)
    assert found["physics"] != found["follows"]
    assert marks(critic, pictures(1), "push the cup")["follows"] != pytest.approx(found["follows"], abs=1e-6)
    assert marks(critic, pictures(0), "open the drawer")["follows"] != pytest.approx(found["follows"], abs=1e-6)
    assert marks(critic, pictures(0), "")["follows"] is None


def test_a_clip_is_judged_by_its_marks(tiny_vlm: str, folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "s.parquet")
    judge(str(folder), out=out, vlm={"model": tiny_vlm, "frames": 3, "size_px": 16}, min_follows=0.0, min_physics=0.0)
    table = pd.read_parquet(out)
    assert table["follows"].between(0, 1).all()
    assert table["physics"].between(0, 1).all()
    assert parquet.metadata(out)["config"]["vlm"]["frames"] == 3
    good = table[table["verdict"] == "keep"].sort_values("rank")
    assert ((good["follows"] + good["physics"]).diff().dropna() <= 0).all()
    between = float(good["follows"].mean())
    judge(str(folder), out=out, vlm={"model": tiny_vlm, "frames": 3, "size_px": 16}, min_follows=between, min_physics=0)
    after = pd.read_parquet(out)
    kept = after[after["verdict"] == "keep"]
    assert len(kept) == 1
    assert (kept["follows"] >= between).all()
    assert sum(reason.startswith("follows ") for reason in after["reason"]) == 1


def test_nobody_is_asked_unless_a_model_is_named(folder: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(judge(str(folder), out=str(tmp_path / "s.parquet")).out)
    assert table["follows"].isna().all()


def test_frames_are_spread_from_first_to_last() -> None:
    assert shown_frames(81, 8) == [0, 11, 23, 34, 46, 57, 69, 80]
    assert shown_frames(3, 8) == [0, 1, 2]
    assert shown_frames(9, 1) == [0]
    assert "{text}" in FOLLOWS
    assert "{text}" not in PHYSICS


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"size_px": 8}, {"dtype": "int8"}])
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VLMConfig(**wrong)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no vision-language model"):
        TransformersCritic(JudgeConfig(vlm=VLMConfig(model=str(tmp_path))).vlm)
