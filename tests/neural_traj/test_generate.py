"""Programs and pipelines that make videos of requests."""

from __future__ import annotations

import inspect
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_traj.generate import GenerateConfig, generate, run_requests
from neural_traj.generators import PIPELINES, CommandGenerator, DiffusersGenerator
from neural_traj.ingest import ingest
from neural_traj.requests import Request, read_requests
from neural_traj.scenes import write_png
from pyramid.corpora.manifest import read_manifest
from pyramid.errors import ConfigError, DataError, SkipItemError
from pyramid.video.encode import encode_mp4


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Two requests of one instruction, and one with a sentence that no file name could hold."""
    folder = tmp_path / "requests"
    (folder / "images").mkdir(parents=True)
    rows = []
    for index, text in enumerate(["push the cup", "push the cup", "„Öffne“ drawer no. 3/4, please!"]):
        write_png(str(folder / f"images/{index}.png"), np.full((32, 32, 3), 40 * index + 40, np.uint8))
        rows.append(
            {
                "index": index,
                "image": f"images/{index}.png",
                "instruction": text,
                "prompt": f"A robot must {text}",
                "seed": 7 + index,
            }
        )
    (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def made(tmp_path: Path) -> str:
    clip = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "made.mp4").write_bytes(encode_mp4(clip, 16))
    return str(tmp_path / "made.mp4")


def command(*parts: str, **options: Any) -> dict[str, Any]:
    return {"generator": "command", "command": list(parts), **options}


def test_a_program_makes_videos_that_ingest_reads(asked: Path, made: str, tmp_path: Path) -> None:
    script = tmp_path / "make.sh"
    script.write_text('test -f "$1" || exit 9\necho "$2" >> "$4"\ncp "$3" "$5"\n')
    log = tmp_path / "seeds.txt"
    given = command("sh", str(script), "{image}", "{seed}", made, str(log), "{out}", samples=2)
    out = str(tmp_path / "out")
    result = generate(str(asked), out=out, **given)
    assert (result.requests, result.videos, result.items) == (3, 6, [])
    seeds = log.read_text().split()
    assert len(set(seeds)) == 6
    assert {"7", "8", "9"} < set(seeds)
    # All six hold one content here, which ingest finds; without the copies the texts are as they were asked for.
    taken = ingest(out, out=str(tmp_path / "clips.parquet"))
    assert taken.quarantined == {"duplicate": 5}
    assert [clip.text for clip in read_manifest(taken.out)] == ["push the cup"]
    assert (Path(out) / "labels/5.txt").read_text().strip() == "„Öffne“ drawer no. 3/4, please!"
    again = generate(str(asked), out=out, **given)
    assert (again.videos, again.skipped_done) == (6, 6)
    assert log.read_text().split() == seeds


def test_what_fails_costs_itself_only(asked: Path, made: str, tmp_path: Path) -> None:
    script = tmp_path / "make.sh"
    script.write_text(
        f'case $1 in 7) echo "out of memory" >&2; exit 3;; 8) echo no video > "$2";; 9) cp {made} "$2";; esac\n'
    )
    out = str(tmp_path / "out")
    result = generate(str(asked), out=out, **command("sh", str(script), "{seed}", "{out}"))
    assert result.videos == 1
    assert result.quarantined == {"bad_video": 1, "command_failed": 1}
    assert "exit code 3: out of memory" in result.items[0].detail
    assert sorted(path.name for path in (tmp_path / "out/videos").iterdir()) == ["2.mp4"]
    script.write_text(f'cp {made} "$2"\n')
    more = generate(str(asked), out=out, retry_quarantined=True, **command("sh", str(script), "{seed}", "{out}"))
    assert (more.videos, more.quarantined, more.skipped_done) == (3, {}, 1)


def test_a_program_that_hangs_is_killed_with_its_children(asked: Path, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    script = tmp_path / "hang.sh"
    script.write_text(f'(sleep 3; touch "{alive}") &\nsleep 60\n')
    start = time.monotonic()
    given = command("sh", str(script), "{out}", timeout_s=0.5)
    result = generate(str(asked), out=str(tmp_path / "out"), limit=1, **given)
    assert result.quarantined == {"timeout": 1}
    assert time.monotonic() - start < 30
    time.sleep(max(0, 4 - (time.monotonic() - start)))
    assert not alive.exists()


def test_nothing_in_a_request_is_read_as_a_field_or_by_a_shell() -> None:
    config = GenerateConfig(**command("make", "--prompt={prompt}", "{seed}", "{out}"))
    request = Request(index=0, image="a.png", instruction="x", prompt="$(touch x); {seed} {out}", seed=5)
    arguments = CommandGenerator(config).arguments(request, 6, "/o.mp4")
    assert arguments == ["make", "--prompt=$(touch x); {seed} {out}", "6", "/o.mp4"]


def test_videos_of_other_requests_are_not_overwritten(asked: Path, made: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    generate(str(asked), out=out, **command("cp", made, "{out}"))
    with pytest.raises(ConfigError, match=r"other requests \(videos/1.mp4\)"):
        generate(str(asked), out=out, limit=1, **command("cp", made, "{out}"))


def test_a_generator_of_ones_own_plugs_in(asked: Path, tmp_path: Path) -> None:
    class Painter:
        name = "painter"

        def generate(self, request: Request, seeds: list[int], outs: list[str]) -> None:
            if request.index == 1:
                raise SkipItemError("no_paint", "the pot is empty")
            for seed, out in zip(seeds, outs, strict=True):
                clip = np.random.default_rng(seed).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
                Path(out).write_bytes(encode_mp4(clip, 16))

    config = GenerateConfig(samples=3, batch=2)
    result = run_requests(read_requests(str(asked)), Painter(), out=str(tmp_path / "out"), config=config)
    assert (result.videos, result.quarantined) == (6, {"no_paint": 2})
    assert "request 1 (push the cup): the pot is empty" in result.items[0].detail
    assert ingest(str(tmp_path / "out"), out=str(tmp_path / "c.parquet")).clips == 6


def test_other_weights_in_the_same_file_make_the_videos_anew(asked: Path, made: str, tmp_path: Path) -> None:
    class Copier:
        name = "copier"

        def generate(self, request: Request, seeds: list[int], outs: list[str]) -> None:
            Path(outs[0]).write_bytes(Path(made).read_bytes())

    lora, wanted = tmp_path / "lora.safetensors", read_requests(str(asked))
    done = []
    for weights in (b"one", b"one", b"other"):
        lora.write_bytes(weights)
        config = GenerateConfig(model="the/id-on-a-hub", lora=str(lora))
        done.append(run_requests(wanted, Copier(), out=str(tmp_path / "out"), config=config).skipped_done)
    assert done == [0, 3, 0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "not JSON"),
        ('{"index": 0}', "missing"),
        ('{"index": true, "image": "a", "instruction": "b", "prompt": "c", "seed": 1}', "index"),
        ('{"index": 0, "image": "../a.png", "instruction": "b", "prompt": "c", "seed": 1}', "not below"),
        ('{"index": 0, "image": "a.png", "instruction": " ", "prompt": "c", "seed": 1}', "no printable"),
        ('{"index": 0, "image": "a.png", "instruction": "b", "prompt": "c", "seed": -1}', "out of range"),
    ],
)
def test_lines_that_are_no_requests_are_refused(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "requests.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=f"line 1.*{said}"):
        read_requests(str(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"model": "m", "command": ["x"]},
        {"model": "m", "height": 30},
        {"model": "m", "samples": 0},
        {"generator": "command"},
    ],
)
def test_impossible_options_are_refused(asked: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        generate(str(asked), out="x", **wrong)


def test_commands_that_write_nowhere_are_refused(asked: Path, tmp_path: Path) -> None:
    for parts, said in ((("cp", "a"), "{out}"), (("cp", "{imag}", "{out}"), "image")):
        with pytest.raises(ConfigError, match=said):
            generate(str(asked), out=str(tmp_path / "out"), **command(*parts))


class TestWan:
    """A WAN image-to-video pipeline of random weights."""

    def test_a_pipeline_makes_videos(self, asked: Path, tiny_wan: str, tmp_path: Path) -> None:
        given: dict[str, Any] = {
            "model": tiny_wan,
            "frames": 5,
            "height": 16,
            "width": 16,
            "steps": 2,
            "device": "cpu",
            "dtype": "float32",
        }
        out = tmp_path / "out"
        result = generate(str(asked), out=str(out), limit=1, samples=2, batch=2, **given)
        assert (result.videos, result.items) == (2, [])
        made = [(out / f"videos/{n}.mp4").read_bytes() for n in range(2)]
        assert made[0] != made[1]
        alone = tmp_path / "alone"
        generate(str(asked), out=str(alone), limit=1, samples=1, **given)
        assert (alone / "videos/0.mp4").stat().st_size > 0
        same = tmp_path / "same"
        generate(str(asked), out=str(same), limit=1, samples=1, **given)
        assert (alone / "videos/0.mp4").read_bytes() == (same / "videos/0.mp4").read_bytes()
        assert {clip.text for clip in clips_of(out, tmp_path)} == {"push the cup"}

    def test_a_lora_changes_what_is_made_by_its_scale(self, asked: Path, tiny_wan: str, tmp_path: Path) -> None:
        diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
        pipe = diffusers.WanImageToVideoPipeline.from_pretrained(tiny_wan)
        adapter = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipe.transformer.add_adapter(adapter)
        layers = peft.get_peft_model_state_dict(pipe.transformer)
        pipe.save_lora_weights(str(tmp_path / "lora"), transformer_lora_layers={n: 9 * v for n, v in layers.items()})
        tiny: dict[str, Any] = {"model": tiny_wan, "frames": 5, "height": 16, "width": 16, "steps": 2}
        made = []
        for lora, scale in (("", 1.0), (str(tmp_path / "lora"), 0.0), (str(tmp_path / "lora"), 1.0)):
            config = GenerateConfig(**tiny, device="cpu", dtype="float32", lora=lora, lora_scale=scale)
            made.append(DiffusersGenerator(config).sample(read_requests(str(asked))[0], [3])[0])
        assert np.array_equal(made[0], made[1])
        assert not np.array_equal(made[0], made[2])

    @pytest.mark.parametrize(("name", "pipeline"), PIPELINES.items())
    def test_pipelines_take_what_they_are_given(self, name: str, pipeline: str) -> None:
        diffusers = pytest.importorskip("diffusers", reason="the extra 'dream' is not installed")
        known = inspect.signature(getattr(diffusers, pipeline).__call__).parameters
        given = {"image", "prompt", "negative_prompt", "height", "width", "num_frames", "num_inference_steps"}
        given |= {"guidance_scale", "generator", "output_type", *(["fps"] if name == "cosmos-predict2" else [])}
        assert given <= set(known)

    def test_another_kind_of_folder_is_refused(self, asked: Path, tiny_wan: str, tmp_path: Path) -> None:
        assert tiny_wan
        with pytest.raises(ConfigError, match="no pipeline"):
            generate(str(asked), out=str(tmp_path / "out"), model=str(asked), device="cpu")


def clips_of(out: Path, tmp_path: Path) -> list[Any]:
    return read_manifest(ingest(str(out), out=str(tmp_path / "clips.parquet")).out)


@pytest.fixture(scope="module")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> str:
    diffusers = pytest.importorskip("diffusers", reason="the extra 'dream' is not installed")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "push": 3, "cup": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    pipe = diffusers.WanImageToVideoPipeline(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ).eval(),
        vae=diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=36,
            out_channels=16,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        ),
    )
    folder = tmp_path_factory.mktemp("wan")
    pipe.save_pretrained(str(folder))
    return str(folder)
