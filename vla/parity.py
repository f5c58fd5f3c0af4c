"""``python -m vla.parity FILE.safetensors ...``: published action heads against ours, on reference vectors.

A file holds ``param.*``, ``input.*`` and ``output.*`` tensors and, under the metadata key ``json``, the model's name
and configuration. One JSON line per file; the exit code is 0 only if every error is below 1e-5.
"""

from __future__ import annotations

import sys

from pyramid.nn.reference import Reference, run_parity
from vla.gr00t import read_head

__all__ = ["main", "measure"]


def measure(reference: Reference) -> tuple[float, float]:
    """Returns the absolute error of the loss, and the largest of the sampled actions."""
    loss, action = read_head(reference.config, reference.weights).loss_and_sample(reference.inputs)
    expected = reference.outputs
    return float((loss - expected["loss"]).abs()), float((action - expected["action_pred"]).abs().max())


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_parity("vla.parity", sys.argv[1:] if argv is None else argv, measure)


if __name__ == "__main__":
    sys.exit(main())
