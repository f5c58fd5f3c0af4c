"""Trains a tiny latent-action model; a Lightning trainer runs this file again for each further process."""

from __future__ import annotations

import json
import sys

from lam.train import train_lam

if __name__ == "__main__":
    shards, out, options = sys.argv[1:]
    train_lam(shards, out=out, **json.loads(options))
