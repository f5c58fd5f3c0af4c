"""Names and layouts of the weights in published GR00T networks, turned into those of the parts in this package.

Which parts make which network is left to `vla.gr00t` and `idm.dreams`. Facts are those of public Apache-2.0 code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from pyramid.errors import DataError

__all__ = ["rename_weights", "slot_name"]

_BLOCK = {
    "norm1.linear": "modulation",
    "norm1": "attention_norm",
    "norm3": "feed_forward_norm",
    "attn1.to_q": "attention.query",
    "attn1.to_k": "attention.key",
    "attn1.to_v": "attention.value",
    "attn1.to_out.0": "attention.out",
    "ff.net.0.proj": "feed_forward.expand",
    "ff.net.2": "feed_forward.contract",
}
_DIT = {
    "model.timestep_encoder.timestep_embedder.linear_1": "dit.time_embedding.first",
    "model.timestep_encoder.timestep_embedder.linear_2": "dit.time_embedding.second",
    "model.proj_out_1": "dit.out_modulation",
    "model.proj_out_2": "dit.out",
}
_STACKS = {"model": "dit", "vl_self_attention": "context_mixer", "vl_self_attention_model": "context_mixer"}
_SLOTS = {
    "state_encoder.layer1": "state_encoder.slots.for_{}.0",
    "state_encoder.layer2": "state_encoder.slots.for_{}.2",
    "action_decoder.layer1": "action_decoder.slots.for_{}.0",
    "action_decoder.layer2": "action_decoder.slots.for_{}.2",
    "action_encoder.W1": "action_encoder.slots.for_{}.embed",
    "action_encoder.W2": "action_encoder.slots.for_{}.mix",
    "action_encoder.W3": "action_encoder.slots.for_{}.out",
}


def slot_name(index: int) -> str:
    """Returns what a published embodiment slot is called here."""
    return f"slot_{index}"


def rename_weights(
    weights: Mapping[str, Tensor], slots: Sequence[str], others: Mapping[str, str]
) -> Iterator[tuple[str, Tensor]]:
    """Yields published weights under our names.

    Args:
        weights: by published name, without the prefix of the checkpoint.
        slots: our names of the embodiment slots, in the order of the published tables.
        others: further published names, or their beginnings up to a dot, and what stands in their place here.

    Raises:
        DataError: a weight that none of these knows; it is named.
    """
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if stem in _SLOTS:
            # Linear layers per slot are [in, out] there and [out, in] here.
            for i, slot in enumerate(slots):
                here = _SLOTS[stem].format(slot)
                yield (f"{here}.weight", tensor[i].T) if kind == "W" else (f"{here}.bias", tensor[i])
        else:
            yield _renamed(name, stem, kind, others), tensor


def _renamed(name: str, stem: str, kind: str, others: Mapping[str, str]) -> str:
    for theirs, here in others.items():
        if name == theirs or name.startswith(f"{theirs}."):
            return here + name.removeprefix(theirs)
    if stem in _DIT:
        return f"{_DIT[stem]}.{kind}"
    stack, mark, rest = stem.partition(".transformer_blocks.")
    index, _, part = rest.partition(".")
    if not mark or stack not in _STACKS or part not in _BLOCK:
        raise DataError(f"the published weight '{name}' is not known here")
    return f"{_STACKS[stack]}.blocks.{index}.{_BLOCK[part]}.{kind}"
