"""Clips from video world models, named ``N_instruction_in_words.mp4`` as GR00T-Dreams names them."""

from __future__ import annotations

from pathlib import PurePosixPath

from pyramid.corpora.naming import parse_dreamgen_name
from pyramid.corpora.source import Found, ScanConfig, Source, video_files


def find(root: str, config: ScanConfig) -> Found:
    """Lists generated clips; one whose name holds no instruction is kept without text."""
    del config
    sources = []
    for name, path in video_files(root):
        parsed = parse_dreamgen_name(PurePosixPath(name).stem)
        origin = "file_name" if parsed else ""
        sources.append(Source(name=name, video=path, text=parsed[1] if parsed else "", text_origin=origin))
    return Found(sources=sources, tier="middle", embodiment="generated")
