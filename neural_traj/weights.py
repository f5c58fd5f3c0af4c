"""Digests of the models that decide what is asked for or generated, so that other weights in one folder are noticed."""

from __future__ import annotations

from pyramid import files

__all__ = ["weights_digest"]

_DECIDING = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Endings of files that transformers and diffusers read: weights, configs, vocabularies, chat templates."""


def weights_digest(model: str) -> str:
    """Returns a digest of a model's files; empty for the id of a model on a hub, which stands for itself.

    Every file is read, whatever its size.

    Args:
        model: folder of a model, a file of weights, or an id; may be empty.
    """
    if not model or not files.exists(model):
        return ""
    if not files.is_dir(model):
        return files.sha256_file(model)
    paths = sorted(path for path in files.walk_files(model) if path.endswith(_DECIDING))
    return files.digest([[path.removeprefix(model), files.sha256_file(path)] for path in paths])
