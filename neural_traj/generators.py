"""Generators of videos: image-to-video pipelines of diffusers, and any program that is run with arguments.

Which videos are wanted, resuming and quarantine are left to `generate`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_traj.generation import GenerateConfig
from neural_traj.requests import Request
from neural_traj.scenes import read_picture
from pyramid import files
from pyramid.errors import ConfigError, MissingDependencyError, SkipItemError, nearest
from pyramid.video.encode import encode_mp4
from pyramid.video.probe import probe

_FIELD = re.compile(r"\{([a-z_]+)\}")
_FIELDS = ("image", "prompt", "instruction", "negative_prompt", "seed", "frames", "rate_hz", "height", "width", "out")
_TOLD_BYTES = 4000
PIPELINES = {"wan": "WanImageToVideoPipeline", "cosmos-predict2": "Cosmos2VideoToWorldPipeline"}
"""Class in diffusers by generator: WAN 2.1 and 2.2 (arXiv 2503.20314), Cosmos-Predict2 (arXiv 2501.03575)."""


class Generator(Protocol):
    """Anything that makes videos of requests."""

    @property
    def name(self) -> str:
        """Such as ``wan``; part of what decides a video."""
        ...

    def generate(self, request: Request, seeds: Sequence[int], outs: Sequence[str]) -> None:
        """Writes a video for each seed under the name given for it.

        Raises:
            SkipItemError: it could not; the job goes on.
        """
        ...


def load_generator(config: GenerateConfig) -> Generator:
    """Loads the generator that a config names.

    Raises:
        ConfigError: a command or a model that is none.
        MissingDependencyError: diffusers is not installed.
    """
    return CommandGenerator(config) if config.generator == "command" else DiffusersGenerator(config)


class CommandGenerator:
    """Runs a program for each video, with its arguments as a list: no shell, no input, a time limit.

    Args:
        config: the command and its limits.
    """

    def __init__(self, config: GenerateConfig) -> None:
        self.config, self.name = config, "command"
        used = [name for part in config.command for name in _FIELD.findall(part)]
        unknown = next((name for name in used if name not in _FIELDS), None)
        if unknown is not None:
            raise ConfigError(
                f"command: unknown field {{{unknown}}}{nearest(unknown, _FIELDS)}; known: {', '.join(_FIELDS)}"
            )
        if "out" not in used:
            raise ConfigError("command: {out}, the MP4 to write, does not stand in it")

    def generate(self, request: Request, seeds: Sequence[int], outs: Sequence[str]) -> None:
        """Runs the program once for each seed."""
        for seed, out in zip(seeds, outs, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                made = str(Path(folder) / "made.mp4")
                self._run(self.arguments(request, seed, made))
                _check(made)
                files.write_bytes(out, files.read_bytes(made))

    def arguments(self, request: Request, seed: int, out: str) -> list[str]:
        """Returns the program and its arguments; what stands in a request is filled in once and never read again."""
        cfg = self.config
        values = {
            "image": str(Path(request.image).resolve()),
            "prompt": request.prompt,
            "instruction": request.instruction,
            "negative_prompt": cfg.negative_prompt,
            "seed": str(seed),
            "frames": str(cfg.frames),
            "rate_hz": f"{cfg.rate_hz:g}",
            "height": str(cfg.height),
            "width": str(cfg.width),
            "out": str(Path(out).resolve()),
        }
        return [_FIELD.sub(lambda match: values[match[1]], part) for part in cfg.command]

    def _run(self, arguments: list[str]) -> None:
        with tempfile.TemporaryFile() as told:
            try:
                process = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=told, stderr=told, start_new_session=True
                )
            except OSError as error:
                raise ConfigError(f"command: '{arguments[0]}' cannot be run: {error}") from error
            try:
                code = process.wait(self.config.timeout_s)
            except subprocess.TimeoutExpired as error:
                raise SkipItemError("timeout", f"not done after {self.config.timeout_s:g} s") from error
            finally:
                # However it ended, nothing that it started goes on.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code:
                raise SkipItemError("command_failed", f"exit code {code}: {_last_line(told)}")


def _last_line(told: Any) -> str:
    told.seek(max(told.seek(0, os.SEEK_END) - _TOLD_BYTES, 0))
    lines = [line.strip() for line in told.read().decode(errors="replace").splitlines() if line.strip()]
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:300] if lines else "it said nothing"


def _check(path: str) -> None:
    if not files.exists(path):
        raise SkipItemError("no_video", "the program ended well and wrote no video")
    try:
        probe(path)
    except SkipItemError as error:
        raise SkipItemError("bad_video", f"the program wrote no video that can be read: {error.detail}") from error


class DiffusersGenerator:
    """Runs an image-to-video pipeline of diffusers.

    Args:
        config: the pipeline, its weights and what it is asked for.
    """

    def __init__(self, config: GenerateConfig) -> None:
        try:
            import diffusers
            import torch
        except ImportError as error:
            raise MissingDependencyError(
                "diffusers is not installed; pip install 'latent-pyramid[dream]', or use --generator command"
            ) from error
        self.config, self.name = config, config.generator
        kind = getattr(diffusers, PIPELINES[config.generator])
        try:
            self.pipe: Any = kind.from_pretrained(
                config.model, dtype=getattr(torch, config.dtype), use_safetensors=True
            )
            if config.lora:
                self.pipe.load_lora_weights(config.lora, adapter_name="lora", use_safetensors=True)
                self.pipe.set_adapters(["lora"], [config.lora_scale])
        except ImportError as error:  # Cosmos-Predict2 does not run without its guardrail.
            raise MissingDependencyError(f"'{config.model}' needs another package: {error}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"'{config.model}' is no pipeline for --generator {config.generator}: {error}") from error
        self.pipe.set_progress_bar_config(disable=True)
        if config.offload:
            self.pipe.enable_model_cpu_offload(device=config.device)
        else:
            self.pipe.to(config.device)

    def generate(self, request: Request, seeds: Sequence[int], outs: Sequence[str]) -> None:
        """Makes all videos in one pass of the pipeline, each from noise of its own seed."""
        for pixels, out in zip(self.sample(request, seeds), outs, strict=True):
            files.write_bytes(out, encode_mp4(pixels, self.config.rate_hz))

    def sample(self, request: Request, seeds: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Returns a video for each seed, uint8 [T, H, W, 3], RGB."""
        import torch

        cfg = self.config
        size = (cfg.width, cfg.height)
        image = Image.fromarray(read_picture(request.image)).resize(size, Image.Resampling.LANCZOS)
        options: dict[str, Any] = {"fps": round(cfg.rate_hz)} if cfg.generator == "cosmos-predict2" else {}
        options |= {
            "prompt": [request.prompt] * len(seeds),
            "negative_prompt": [cfg.negative_prompt] * len(seeds),
            "height": cfg.height,
            "width": cfg.width,
            "num_frames": cfg.frames,
            "num_inference_steps": cfg.steps,
            "guidance_scale": cfg.guidance,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "output_type": "np",
        }
        try:
            with torch.inference_mode():
                made = self.pipe(image=image, **options).frames
        except ValueError as error:
            raise SkipItemError("refused", f"the pipeline refused it: {error}") from error
        if made is None or len(made) != len(seeds):
            raise SkipItemError("no_video", "the pipeline gave no video; its guardrail may have refused it")
        videos = [np.asarray(video, np.float32) for video in made]
        if not all(np.isfinite(video).all() for video in videos):
            raise SkipItemError("bad_video", "the pipeline gave pixels that are not finite; try another dtype")
        return [np.asarray(np.clip(np.round(video * 255), 0, 255), np.uint8) for video in videos]
