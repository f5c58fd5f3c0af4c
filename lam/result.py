"""What an evaluation of a latent-action model says: its numbers, and whether they are good, weak or broken.

The thresholds are gates for gross failure, set on synthetic clips and small simulator data; what a policy gains is
measured by training one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LAMEvaluation", "Probe", "Verdict", "judge"]

Verdict = Literal["good", "weak", "broken"]

_SHUFFLE_DB = 0.5
_LEAKAGE = 0.5
_CODES_SHARE = 0.25
_PROBE_R2 = 0.1


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How well the mean action over the gap can be read, R² on episodes that the probe was not fitted on."""

    linear: float | None
    """Ridge on the pre-quantisation latent, mean over dimensions."""
    mlp: float | None
    """Small MLP on the same."""
    codes: float | None
    """The same MLP on one-hot codes; None for a continuous bottleneck."""
    per_dimension: list[float | None]
    """Ridge, each action dimension; None where the action is constant."""


@dataclass(frozen=True, kw_only=True)
class LAMEvaluation:
    """What a latent-action model is worth; gaps in dB, the rest without unit. None is "cannot be measured here"."""

    model: str
    """Model folder."""
    pairs: int
    """Held-out pairs measured."""
    clips: int
    """Held-out clips they were drawn from."""
    split: str
    """The split that was measured."""
    perplexity: list[float] | None
    """Effective number of codes at each position, 1 to the codebook's size; None for a continuous bottleneck."""
    n_codes: int
    """Codes per position; 0 for a continuous bottleneck."""
    sequences: int | None
    """Different code sequences seen."""
    sequence_bits: float | None
    """Entropy of whole code sequences, bits."""
    psnr: float
    """PSNR of the predicted second frame, dB."""
    copy_gap: float
    """PSNR over that of the first frame in its place, dB; > 0 or the model predicts nothing."""
    shuffle_gap: float
    """PSNR over that with another pair's tokens, dB; > 0 or the tokens are not used."""
    leakage: float | None
    """Gain on frames of unrelated videos over gain on true pairs; << 1, or the tokens are a picture of the target."""
    probe_r2: float | None
    """Mean of the linear probes over embodiments; None without true actions."""
    probes: dict[str, Probe]
    """The probes of each embodiment with true actions."""
    camera_r2: float | None
    """Ridge R² from the latent to the motion of the whole picture; None where the camera stands still."""
    static_fraction: float | None
    """Share of still pairs that have one "null" sequence; None for a continuous bottleneck."""
    static_share: float
    """Share of held-out pairs without motion."""
    verdict: Verdict
    """What the numbers say together."""
    reasons: list[str]
    """Why, a sentence each."""

    def __repr__(self) -> str:
        codes = "/".join(f"{p:.1f}" for p in self.perplexity or ()) + f" of {self.n_codes}" if self.n_codes else "-"
        return (
            f"lam {self.verdict}: perplexity {codes}, copy gap {self.copy_gap:.2f} dB, shuffle gap "
            f"{self.shuffle_gap:.2f} dB, leakage {_show(self.leakage)}, probe R2 {_show(self.probe_r2)}, camera R2 "
            f"{_show(self.camera_r2)}, still pairs in one sequence {_show(self.static_fraction)}"
            + "".join(f"\n  - {reason}" for reason in self.reasons)
        )


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def judge(e: LAMEvaluation) -> tuple[Verdict, list[str]]:
    """Returns the verdict and its reasons: ``broken`` if the tokens do no work, ``weak`` if one gate fails."""
    broken = []
    if e.copy_gap <= 0:
        broken.append(f"predicts no better than a copy of the first frame (copy gap {e.copy_gap:.2f} dB); train longer")
    if e.shuffle_gap <= 0:
        broken.append(f"another pair's tokens do as well (shuffle gap {e.shuffle_gap:.2f} dB)")
    if e.perplexity is not None and max(e.perplexity) < 1.5:
        broken.append(f"one code at every position (perplexity {max(e.perplexity):.2f}): the codebook has collapsed")
    weak = [reason for reason in _weaknesses(e) if reason] if not broken else []
    return ("broken" if broken else "weak" if weak else "good"), broken or weak


def _weaknesses(e: LAMEvaluation) -> list[str]:
    reasons = []
    if e.shuffle_gap < _SHUFFLE_DB:
        reasons.append(f"tokens hardly matter: shuffle gap {e.shuffle_gap:.2f} dB, wanted {_SHUFFLE_DB}")
    if e.leakage is not None and e.leakage > _LEAKAGE:
        reasons.append(f"tokens also rebuild unrelated frames (leakage {e.leakage:.2f}, wanted below {_LEAKAGE})")
    if e.perplexity is not None and min(e.perplexity) < _CODES_SHARE * e.n_codes:
        reasons.append(
            f"a position uses {min(e.perplexity):.1f} of {e.n_codes} codes; train longer or use a smaller codebook"
        )
    if e.probe_r2 is not None and e.probe_r2 < _PROBE_R2:
        reasons.append(f"true actions are hardly in the latent: probe R2 {e.probe_r2:.2f}, wanted {_PROBE_R2}")
    if e.camera_r2 is not None and e.probe_r2 is not None and e.camera_r2 > max(e.probe_r2, 0) + 0.3:
        reasons.append(f"the latent tells the camera's motion (R2 {e.camera_r2:.2f}) rather than the action's")
    return reasons
