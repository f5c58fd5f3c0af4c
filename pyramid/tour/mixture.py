"""The demo's data pyramid, as its mixture file has it: three tiers of the demo's own shards and label runs."""

from __future__ import annotations

from typing import Any

HEAD = """\
# The demo's data pyramid: shares of training samples, exact at every prefix.
# Look at it with `pyramid mix show`, change a weight, look again.
"""
MIXTURE: dict[str, Any] = {
    "unit": "samples",
    "horizon": 8,
    "tiers": {
        "base": {
            "weight": 0.4,
            "sources": {
                "human_latent": {"shards": "shards/human", "use": "latent", "labels": "shards/human/labels/lam"},
            },
        },
        "middle": {
            "weight": 0.3,
            "sources": {
                "generated_latent": {
                    "shards": "shards/generated",
                    "use": "latent",
                    "labels": "shards/generated/labels/lam",
                    "weight": 1,
                },
                "generated_pseudo": {
                    "shards": "shards/generated",
                    "use": "pseudo",
                    "labels": "shards/generated/labels/idm",
                    "weight": 2,
                },
            },
        },
        "top": {
            "weight": 0.3,
            "sources": {"robot": {"shards": "shards/robot", "use": "action"}},
        },
    },
}
