"""One of two gloo ranks that train quantisers on data of their own; prints what became of each as one line of JSON."""

from __future__ import annotations

import hashlib
import json
import sys

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from lam.config import QuantizerConfig
from lam.quantizers import Quantizer, build_quantizer


def run(rank: int, store: str, kinds: list[str]) -> dict[str, dict[str, object]]:
    # Built before the ranks know of each other, as under a Lightning trainer.
    built = {kind: build(kind) for kind in kinds}
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        return {kind: train(quantizer, rank) for kind, quantizer in built.items()}
    finally:
        distributed.destroy_process_group()


def build(kind: str) -> Quantizer:
    torch.manual_seed(0)
    config = QuantizerConfig(kind=kind, code_dim=4, decay=0.5, dead_code_share=0.5)
    return build_quantizer(config, vectors_per_step=64)


def train(quantizer: Quantizer, rank: int) -> dict[str, object]:
    trained = [p for p in quantizer.parameters() if p.requires_grad]
    # Buffers are not broadcast: equal state must come from the quantiser itself.
    module = DistributedDataParallel(quantizer, broadcast_buffers=False) if trained else quantizer
    optimizer = torch.optim.SGD(trained, lr=0.01) if trained else None
    own, before, redrawn = torch.Generator().manual_seed(rank), None, 0
    for step in range(12):
        # Ranks see other data, which wanders away from where the codes began.
        e = torch.randn(8, 4, quantizer.input_dim, generator=own) + 3 * step + 100 * rank * (step % 3 == 0)
        out = module(e.requires_grad_())
        (out.z.square().mean() + out.loss).backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        now = codes_of(quantizer)
        if now is not None and before is not None:
            redrawn += int(((now - before).norm(dim=-1) > 2).sum())
        before = now
    state = quantizer.state_dict()
    digest = hashlib.sha256(b"".join(state[k].contiguous().numpy().tobytes() for k in sorted(state))).hexdigest()
    return {"digest": digest, "redrawn": redrawn, "tensors": len(state)}


def codes_of(quantizer: Quantizer) -> torch.Tensor | None:
    if hasattr(quantizer, "codebook"):
        return quantizer.codebook.detach().clone()
    vq = getattr(quantizer, "vq", None)
    if vq is None:
        return None
    return (vq.codebooks[0] if hasattr(vq, "codebooks") else vq.codebook).detach().clone()


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]), sys.argv[2], sys.argv[3:])), flush=True)
