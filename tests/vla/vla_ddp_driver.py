"""Trains a tiny policy; a Lightning trainer runs this file again for each further process."""

from __future__ import annotations

import json
import sys

import vla_kill_driver

from vla.train import train_vla

if __name__ == "__main__":
    mixture, out, options = sys.argv[1:]
    train_vla(mixture, out=out, config=vla_kill_driver.config(**json.loads(options)))
