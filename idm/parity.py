"""``python -m idm.parity FILE.safetensors ...``: the published inverse dynamics head against ours.

One JSON line per file; the exit code is 0 only if every error is below 1e-5.
"""

from __future__ import annotations

import sys

from idm.dreams import read_dreams
from pyramid.nn.reference import Reference, run_parity

__all__ = ["main", "measure"]


def measure(reference: Reference) -> tuple[float, float]:
    """Returns the absolute error of the loss, and the largest of the sampled actions."""
    loss, action, _ = read_dreams(reference.config, reference.weights).loss_and_sample(reference.inputs)
    expected = reference.outputs
    return float((loss - expected["loss"]).abs()), float((action - expected["action_pred"]).abs().max())


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_parity("idm.parity", sys.argv[1:] if argv is None else argv, measure)


if __name__ == "__main__":
    sys.exit(main())
