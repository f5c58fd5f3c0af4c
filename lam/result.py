"""What an evaluation of a latent-action model says: its numbers, and what to make of them.

The thresholds are gates for gross failure, set on synthetic clips and small simulator data; what a policy gains is
measured by training one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["LAMEvaluation", "Probe", "Transfer", "Verbs", "Verdict", "judge"]

Verdict = Literal["usable", "weak", "collapsed", "image code", "camera code"]
"""``usable``; ``weak``: does its work, but a gate fails; ``collapsed``: the tokens say nothing; ``image code``: they
are a picture of the second frame; ``camera code``: they say how the camera moved."""

_NOTHING_DB = 0.05
_SHUFFLE_DB = 0.5
_LEAKAGE = 0.5
_IMAGE_R2 = 0.5
_CODES_SHARE = 0.25
_PROBE_R2 = 0.1
_CAMERA_R2 = 0.5
_CAMERA_LEAD = 0.3

Scores = list[float | None]
"""R2 of each dimension of the action; None where it is constant."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How well the mean action over the gap can be read, R2 on episodes that the probe was not fitted on."""

    linear: float | None
    """Ridge on the pre-quantisation latent, mean over the dimensions that vary."""
    mlp: float | None
    """Small MLP on the same."""
    codes_linear: float | None
    """Ridge on one-hot codes; None for a continuous bottleneck."""
    codes: float | None
    """Small MLP on one-hot codes; None for a continuous bottleneck."""
    per_dimension: Scores
    """Ridge on the latent, each dimension."""
    mlp_per_dimension: Scores
    """MLP on the latent, each dimension."""
    codes_linear_per_dimension: Scores | None
    """Ridge on codes, each dimension."""
    codes_per_dimension: Scores | None
    """MLP on codes, each dimension."""


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """How well a probe fitted on one body reads another body's actions; latents centred and scaled per body."""

    fitted_on: str
    """Embodiment of the training pairs."""
    scored_on: str
    """Embodiment of the held-out pairs."""
    linear: float | None
    """Ridge, mean over the dimensions that vary."""
    mlp: float | None
    """Small MLP."""
    per_dimension: Scores
    """Ridge, each dimension."""
    mlp_per_dimension: Scores
    """MLP, each dimension."""


@dataclass(frozen=True, kw_only=True)
class Verbs:
    """Verbs of held-out clips, told by the nearest training clips."""

    accuracy: float
    """Share of clips named rightly."""
    chance: float
    """The same for the commonest verb."""
    verbs: int
    """Verbs of the training clips."""
    clips: int
    """Held-out clips with a verb."""
    unseen: float
    """Share of them whose verb no training clip has."""


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
    usage: list[float] | None
    """Share of the codes that occur at each position."""
    n_codes: int
    """Codes per position; 0 for a continuous bottleneck."""
    sequences: int | None
    """Different code sequences seen."""
    sequence_bits: float | None
    """Entropy of whole code sequences, bits."""
    psnr: float
    """PSNR of the predicted second frame, dB."""
    copy_gap: float
    """PSNR over that of the first frame in its place, dB; well above 0 or the model predicts nothing."""
    shuffle_gap: float
    """PSNR over that with another pair's tokens, dB; well above 0 or the tokens are not used."""
    leakage: float | None
    """Gain on frames of unrelated videos over gain on true pairs; << 1, or the tokens are a picture of the target."""
    image_r2: float | None
    """R2 of the latent when another clip's frame takes the place of the first; near 1 it is a picture of the second
    frame. Leakage alone is also high where all scenes are alike and an action leads from any of them to any other."""
    cycle_r2: float | None
    """R2 of the latent that comes back when tokens act on another clip's frame and the result is encoded again; 1 is
    the same latent. None for models of features."""
    cycle_codes: float | None
    """Share of codes that come back so."""
    cycle_chance: float | None
    """The same share between pairs that have nothing to do with each other."""
    probe_r2: float | None
    """Mean of the linear probes over embodiments; None without true actions."""
    probes: dict[str, Probe]
    """The probes of each embodiment with true actions."""
    transfers: list[Transfer]
    """Probes of one embodiment scored on another; none with fewer than two."""
    camera_r2: float | None
    """Ridge R2 from the latent to the motion of the whole picture; None where the camera stands still."""
    camera_share: float | None
    """Share of the latent's variance that follows from that motion."""
    camera_gap: float | None
    """PSNR of the prediction over that of the first frame moved as the camera moved, dB."""
    verbs: Verbs | None
    """Verbs; None where the corpora name fewer than two."""
    static_fraction: float | None
    """Share of still pairs that have one "null" sequence; None for a continuous bottleneck."""
    static_share: float
    """Share of held-out pairs without motion."""
    pictures: list[str]
    """Pictures written: a contact sheet for each token position, and tokens of some pairs acting on other frames."""
    verdict: Verdict
    """What the numbers say together."""
    reasons: list[str]
    """Why, a sentence each."""

    def __repr__(self) -> str:
        codes = "/".join(f"{p:.1f}" for p in self.perplexity or ()) + f" of {self.n_codes}" if self.n_codes else "-"
        told = (
            f"lam {self.verdict}: perplexity {codes}, copy gap {self.copy_gap:.2f} dB, shuffle gap "
            f"{self.shuffle_gap:.2f} dB, leakage {_show(self.leakage)}, image R2 {_show(self.image_r2)}, probe R2 "
            f"{_show(self.probe_r2)}, camera R2 {_show(self.camera_r2)}, cycle R2 {_show(self.cycle_r2)}, still pairs "
            f"in one sequence {_show(self.static_fraction)}"
        )
        lines = [f"probe R2 on {name}: {_dimensions(p.per_dimension)}" for name, p in self.probes.items()]
        lines += [f"{t.fitted_on} -> {t.scored_on}: {_dimensions(t.per_dimension)}" for t in self.transfers]
        if self.verbs is not None:
            lines.append(
                f"verbs: {self.verbs.accuracy:.2f} of {self.verbs.clips} clips, chance {self.verbs.chance:.2f}"
            )
        return told + "".join(f"\n  {line}" for line in lines) + "".join(f"\n  - {reason}" for reason in self.reasons)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _dimensions(scores: Scores) -> str:
    return " ".join("-" if score is None else f"{score:.2f}" for score in scores)


def judge(e: LAMEvaluation) -> tuple[Verdict, list[str]]:
    """Returns the verdict and its reasons; what is worst decides, in the order collapsed, image, camera, weak."""
    grave: list[tuple[Verdict, list[str]]] = [
        ("collapsed", _collapsed(e)),
        ("image code", _image(e)),
        ("camera code", _camera(e)),
        ("weak", _weaknesses(e)),
    ]
    for verdict, reasons in grave:
        if reasons:
            return verdict, reasons
    return "usable", _praise(e)


def _collapsed(e: LAMEvaluation) -> list[str]:
    reasons = []
    if e.copy_gap <= _NOTHING_DB:
        reasons.append(f"predicts no better than a copy of the first frame (copy gap {e.copy_gap:.2f} dB)")
    if e.shuffle_gap <= _NOTHING_DB:
        reasons.append(f"another pair's tokens do as well (shuffle gap {e.shuffle_gap:.2f} dB)")
    if e.perplexity is not None and max(e.perplexity) < 1.5:
        reasons.append(f"one code at every position (perplexity {max(e.perplexity):.2f})")
    return reasons


def _image(e: LAMEvaluation) -> list[str]:
    if e.leakage is None or e.leakage <= _LEAKAGE or e.image_r2 is None or e.image_r2 <= _IMAGE_R2:
        return []
    return [
        f"the tokens also rebuild unrelated frames (leakage {e.leakage:.2f}) and hardly depend on the first frame "
        f"(R2 {e.image_r2:.2f} with another one)"
    ]


def _camera(e: LAMEvaluation) -> list[str]:
    if e.camera_r2 is None or e.camera_r2 < _CAMERA_R2:
        return []
    reasons = []
    if e.camera_share is not None and e.camera_share > _CAMERA_R2:
        reasons.append(f"{e.camera_share:.0%} of the latent's variance follows from the camera's motion")
    if e.probe_r2 is not None and e.camera_r2 > max(e.probe_r2, 0) + _CAMERA_LEAD:
        reasons.append(
            f"the latent tells the camera's motion (R2 {e.camera_r2:.2f}) better than the action (R2 {e.probe_r2:.2f})"
        )
    return reasons


def _weaknesses(e: LAMEvaluation) -> list[str]:
    reasons = []
    if e.shuffle_gap < _SHUFFLE_DB:
        reasons.append(f"tokens hardly matter: shuffle gap {e.shuffle_gap:.2f} dB, wanted {_SHUFFLE_DB}")
    if e.perplexity is not None and min(e.perplexity) < _CODES_SHARE * e.n_codes:
        reasons.append(
            f"a position uses {min(e.perplexity):.1f} of {e.n_codes} codes; train longer or use a smaller codebook"
        )
    if e.probe_r2 is not None and e.probe_r2 < _PROBE_R2:
        reasons.append(f"true actions are hardly in the latent: probe R2 {e.probe_r2:.2f}, wanted {_PROBE_R2}")
    return reasons


def _praise(e: LAMEvaluation) -> list[str]:
    reasons = [f"the tokens improve on a copy by {e.copy_gap:.2f} dB, {e.shuffle_gap:.2f} dB of it their own"]
    if e.probe_r2 is not None:
        reasons.append(f"true actions can be read from the latent (R2 {e.probe_r2:.2f})")
    return reasons
