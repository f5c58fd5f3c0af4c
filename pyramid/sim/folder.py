"""The folder of a simulated data set: whose it is, what it was made with, how it is emptied.

What goes into it is left to `dataset`.
"""

from __future__ import annotations

from dataclasses import replace

from pyramid import files
from pyramid.config import from_dict, provenance, to_dict
from pyramid.errors import ConfigError, DataError
from pyramid.jobs import RECEIPTS
from pyramid.sim.config import SimConfig
from pyramid.sim.plan import PARTS

MARK = "sim.json"
"""Written first: the folder was made here, with this config."""
EPISODES = "episodes.jsonl"
"""Written last: the folder is complete."""
CAPTIONS = "captions.jsonl"
"""In the folder of hand videos: rows ``{"file", "text"}``."""
COUNTS = ("n_hand", "n_generated", "n_robot")
"""Fields of a config that decide how many episodes there are, and nothing about any one of them."""


def claim(out: str, config: SimConfig, versions: dict[str, str], *, resume: bool) -> SimConfig:
    """Returns the config to work with: the one asked for, with as many episodes as the folder has at least.

    Raises:
        ConfigError: the folder holds something else, or, with ``resume``, was made with another config.
    """
    path = files.join(out, MARK)
    if not files.exists(path):
        strange = [part for part in PARTS if files.listdir(files.join(out, part))]
        if strange:
            raise ConfigError(f"'{out}' holds a folder '{strange[0]}' that was not made here; choose another one")
        return config
    if not resume:
        return config
    mark = files.read_json(path)
    if not isinstance(mark, dict) or not isinstance(mark.get("config"), dict):
        raise DataError(f"{path} is damaged; choose another folder, or do not resume")
    found = from_dict(SimConfig, mark["config"], path)
    same = replace(found, **{name: getattr(config, name) for name in COUNTS}) == config
    if not same or mark.get("simulator") != versions:
        raise ConfigError(f"{path}: made with another config or simulator; choose another folder, or do not resume")
    return replace(config, **{name: max(getattr(found, name), getattr(config, name)) for name in COUNTS})


def prepare(out: str, config: SimConfig, versions: dict[str, str], *, resume: bool) -> None:
    """Makes the folders and marks them, removes what a killed run left half-written and, without ``resume``, all."""
    if not resume:
        for folder in (*PARTS, RECEIPTS):
            for path in files.walk_files(files.join(out, folder)):
                files.remove(path)
    files.remove(files.join(out, EPISODES))
    mark = {"config": to_dict(config), "simulator": versions, "provenance": provenance(config=config, inputs={})}
    files.write_json(files.join(out, MARK), mark)
    for part in PARTS:
        files.make_dirs(files.join(out, part))
    _remove_temporaries(out)


def _remove_temporaries(folder: str) -> None:
    files.remove_temporaries(folder)
    for name in files.listdir(folder):
        if files.is_dir(inner := files.join(folder, name)):
            _remove_temporaries(inner)
