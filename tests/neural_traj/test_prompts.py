"""Request sets: first frames of episodes and pictures, and what is asked for in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import drawing
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neural_traj.instructions import ModelInstructor, clean_answer
from neural_traj.prompts import prompts
from neural_traj.requests import read_requests
from neural_traj.scenes import read_picture, write_png
from neural_traj.tasks import clean_task
from pyramid import convert
from pyramid.errors import ConfigError, DataError, SkipItemError

LINES = ["open the drawer", "close the drawer", "wipe the table", "stack the plates"]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return drawing.write_shards(tmp_path / "shards", [12, 9, 10])


@pytest.fixture
def lines(tmp_path: Path) -> str:
    (tmp_path / "lines.txt").write_text("# what robots do\n" + "\n".join(LINES) + "\n")
    return str(tmp_path / "lines.txt")


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model that says words of a robot's world at random."""
    known = ["<pad>", "</s>", "<unk>", "push", "the", "cup", "to", "wall", "lift", "a", "red", "box", "slowly"]
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(known), eos_token_id=1, **size))
    folder = tmp_path_factory.mktemp("lm")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_packed_episodes_become_requests(shards: str, lines: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given: dict[str, Any] = {"instructions": lines, "variations": 2, "template": "A robot must {instruction}."}
    result = prompts(shards, out=str(out), **given)
    assert (result.requests, result.scenes, result.items) == (9, 3, [])
    rows = rows_of(out)
    assert [row["index"] for row in rows] == list(range(9))
    for clip in range(3):
        own = rows[3 * clip : 3 * clip + 3]
        assert [row["origin"] for row in own] == ["scene", "list", "list"]
        assert own[0]["instruction"] == f"show {clip}"
        assert own[0]["prompt"] == f"A robot must show {clip}."
        assert len({row["instruction"] for row in own}) == 3
        assert {row["scene"] for row in own} == {drawing.key_of(clip)}
        picture = read_picture(str(out / own[0]["image"]))
        assert drawing.read_picture(picture) == drawing.number_of(clip, 0)
    assert len({row["seed"] for row in rows}) == 9
    assert [request.seed for request in read_requests(str(out))] == [row["seed"] for row in rows]
    again = tmp_path / "again"
    prompts(shards, out=str(again), **given)
    assert (again / "requests.jsonl").read_bytes() == (out / "requests.jsonl").read_bytes()
    before = drawing.tree(out)
    assert prompts(shards, out=str(out), **given).skipped_done == 3
    assert drawing.lasting(drawing.tree(out)) == drawing.lasting(before)
    assert prompts(shards, out=str(again), **given, seed=1).skipped_done == 0
    assert rows_of(again) != rows


@pytest.mark.parametrize("version", ["lerobot-v2.1", "lerobot-v3.0"])
def test_episodes_of_a_data_set_begin_with_their_own_first_frame(shards: str, tmp_path: Path, version: str) -> None:
    """In v3.0 they share one video."""
    convert(shards, str(tmp_path / "set"), to=version)
    result = prompts(str(tmp_path / "set"), out=str(tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    assert result.requests == 3
    assert [row["instruction"] for row in rows] == [f"show {clip}" for clip in range(3)]
    numbers = [drawing.read_picture(read_picture(str(tmp_path / "out" / row["image"]))) for row in rows]
    assert numbers == [drawing.number_of(clip, 0) for clip in range(3)]
    with pytest.raises(DataError, match="no camera 'wrist'"):
        prompts(str(tmp_path / "set"), out=str(tmp_path / "out"), camera="wrist")


def test_new_scenes_ask_for_what_their_name_or_a_list_says(lines: str, tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    write_png(str(scenes / "3_fold_the_towel.png"), drawing.picture(5))
    write_png(str(scenes / "kitchen.png"), drawing.picture(6))
    (scenes / "torn.png").write_bytes(b"no picture")
    result = prompts(str(scenes), out=str(tmp_path / "named"))
    assert (result.requests, result.quarantined) == (1, {"no_instruction": 2})
    listed = prompts(str(scenes), out=str(tmp_path / "listed"), instructions=lines, variations=1)
    assert (listed.requests, listed.quarantined) == (3, {"bad_picture": 1})
    rows = rows_of(tmp_path / "listed")
    assert [(row["scene"], row["origin"]) for row in rows] == [
        ("3_fold_the_towel.png", "scene"),
        ("3_fold_the_towel.png", "list"),
        ("kitchen.png", "list"),
    ]
    assert all(row["instruction"] in LINES for row in rows[1:])
    write_png(str(scenes / "torn.png"), drawing.picture(7))
    mended = prompts(str(scenes), out=str(tmp_path / "listed"), instructions=lines, variations=1)
    assert (mended.requests, mended.quarantined) == (4, {})


def test_a_text_model_writes_instructions(shards: str, tiny_lm: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": tiny_lm, "variations": 2, "max_new_tokens": 6, "limit": 2}
    prompts(shards, out=str(tmp_path / "a"), **given)
    rows = rows_of(tmp_path / "a")
    assert [row["origin"] for row in rows] == ["scene", "model", "model"] * 2
    assert all(clean_answer(row["instruction"]) == row["instruction"] for row in rows if row["origin"] == "model")
    torch.manual_seed(123)
    state = torch.get_rng_state()
    prompts(shards, out=str(tmp_path / "b"), **given)
    assert rows_of(tmp_path / "b") == rows
    assert torch.equal(torch.get_rng_state(), state)
    assert prompts(shards, out=str(tmp_path / "b"), **given).skipped_done == 2
    instructor = ModelInstructor(tiny_lm, max_new_tokens=6)
    assert instructor.vary("push the cup", 3, 1) != instructor.vary("push the cup", 3, 2)


def test_other_weights_in_the_same_folder_write_others(shards: str, tiny_lm: str, tmp_path: Path) -> None:
    model, out = tmp_path / "lm", tmp_path / "out"
    shutil.copytree(tiny_lm, model)
    given: dict[str, Any] = {"model": str(model), "variations": 2, "max_new_tokens": 6, "limit": 1}
    prompts(shards, out=str(out), **given)
    before = rows_of(out)
    (model / "README.md").write_text("what the model is")
    assert prompts(shards, out=str(out), **given).skipped_done == 1
    weights = load_file(model / "model.safetensors")
    save_file({name: -value for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert prompts(shards, out=str(out), **given).skipped_done == 0
    assert rows_of(out) != before


def test_mistakes_are_named(shards: str, lines: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out"):
        prompts(shards)
    for wrong in ({"variations": 1}, {"template": "x"}, {"own": False}, {"temperature": 0.0, "instructions": lines}):
        with pytest.raises(ConfigError):
            prompts(shards, out="x", **wrong)
    with pytest.raises(ConfigError, match="no causal language model"):
        prompts(shards, out=str(tmp_path / "out"), variations=1, model=str(tmp_path))
    (tmp_path / "bad.txt").write_text("12345\n")
    with pytest.raises(DataError, match="no instruction"):
        prompts(shards, out="x", variations=1, instructions=str(tmp_path / "bad.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither shards"):
        prompts(str(tmp_path / "empty"), out="x")
    assert prompts(shards, dry_run=True).scenes == 3


@pytest.mark.parametrize(
    ("said", "instruction"),
    [
        ('1. "Push the cup." Then more', "Push the cup"),
        ("\n\n- open the drawer\nclose it", "open the drawer"),
        ("12345 ...", ""),
        ("", ""),
        ("x" * 300, ""),
    ],
)
def test_answers_are_cleaned(said: str, instruction: str) -> None:
    assert clean_answer(said) == instruction


def test_tasks_lose_tags_and_prompts() -> None:
    assert clean_task("<DREAM>  push   the cup") == "push the cup"
    assert clean_task("A robot arm must: push the cup", ["a robot arm must"]) == "push the cup"
    assert clean_task("push the cup. High quality.", ["High quality."]) == "push the cup."
    for text in ("<DREAM>", "push\x00the cup", "x" * 501):
        with pytest.raises(SkipItemError):
            clean_task(text)
