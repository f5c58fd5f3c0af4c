"""One pass for many clips gives what a pass for each gives, and decodes no frame twice."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import drawing
import pytest

from pyramid.errors import SkipItemError
from pyramid.video.backends import with_pyav
from pyramid.video.decode import DecodeRequest, decode_source
from pyramid.video.passes import decode_clips
from pyramid.video.scale import Picture


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of all frames that decoders gave, or passed over."""
    seen: list[float] = []
    plain = with_pyav._said

    def counted(*arguments: object) -> object:
        for time_s, frame in plain(*arguments):
            seen.append(time_s)
            yield time_s, frame

    monkeypatch.setattr(with_pyav, "_said", counted)
    return seen


def collect(path: Path, requests: list[DecodeRequest]) -> tuple[dict[int, list[int]], dict[int, object]]:
    """Returns the numbers shown in each stretch, and its end: times or a reason."""
    shown: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, object] = {}
    for number, event in decode_clips(str(path), requests):
        assert number not in ends
        if isinstance(event, Picture):
            shown[number].append(drawing.read_picture(event.rgb))
        else:
            ends[number] = event.reason if isinstance(event, SkipItemError) else list(event)
    return shown, ends


STRETCHES = [(0.0, 1.0), (0.5, 2.0), (0.5, 0.6), (1.0, 1.0 + 1 / 30), (1.9, 9.0), (0.0, 4.0)]


@pytest.mark.parametrize("rate_hz", [None, 5.0, 7.0, 30.0])
def test_overlapping_clips_are_what_each_alone_is_and_cost_one_decode(
    tmp_path: Path, decoded: list[float], rate_hz: float | None
) -> None:
    path = drawing.write_video(tmp_path / "a.mp4", range(120), rate=30, options={"bf": "3"}, gop=50)
    requests = [DecodeRequest(start_s=a, end_s=b, rate_hz=rate_hz) for a, b in STRETCHES]
    shown, ends = collect(path, requests)
    assert len(decoded) == 120
    for number, request in enumerate(requests):
        alone = decode_source(str(path), request)
        assert shown[number] == drawing.read_pictures(alone.pixels)
        assert ends[number] == alone.times_s.tolist()


def test_a_stretch_that_nobody_wants_is_jumped_over(tmp_path: Path, decoded: list[float]) -> None:
    path = drawing.write_video(tmp_path / "a.mp4", range(600), rate=10, gop=20, size=(32, 32))
    shown, _ = collect(path, [DecodeRequest(start_s=50, end_s=51), DecodeRequest(start_s=2, end_s=3)])
    assert shown == {0: list(range(500, 510)), 1: list(range(20, 30))}
    assert len(decoded) < 100


def test_a_container_without_an_index_is_decoded_once_from_its_beginning(tmp_path: Path, decoded: list[float]) -> None:
    path = drawing.write_video(tmp_path / "a.ts", range(600), rate=10, gop=100, size=(32, 32))
    shown, _ = collect(path, [DecodeRequest(start_s=50, end_s=51), DecodeRequest(start_s=2, end_s=3)])
    assert shown == {0: list(range(500, 510)), 1: list(range(20, 30))}
    assert decoded == sorted(decoded)
    assert len(decoded) <= 511


def test_a_clip_without_frames_does_not_end_the_others(tmp_path: Path) -> None:
    path = drawing.write_video(tmp_path / "a.mp4", range(20), rate=10)
    stretches = [(0.02, 0.05), (0.0, 1.0), (5.0, 6.0)]
    shown, ends = collect(path, [DecodeRequest(start_s=a, end_s=b) for a, b in stretches])
    assert shown == {1: list(range(10))}
    assert (ends[0], ends[2]) == ("no_frames", "no_frames")
    too_many = [DecodeRequest(max_frames=5), DecodeRequest(max_frames=20)]
    shown, ends = collect(path, too_many)
    assert ends[0] == "too_many_frames"
    assert shown[1] == list(range(20))


def test_damage_costs_the_clips_it_lies_in(tmp_path: Path) -> None:
    parts = [
        drawing.write_video(tmp_path / "a.ts", range(30), rate=10),
        drawing.write_video(tmp_path / "b.ts", range(30, 40), rate=10, size=(96, 64)),
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    shown, ends = collect(tmp_path / "both.ts", [DecodeRequest(), DecodeRequest(start_s=1.0, end_s=1.5)])
    assert ends[0] == "size_change"
    assert shown[1] == list(range(10, 15))
    _, ends = collect(tmp_path / "none.mp4", [DecodeRequest(), DecodeRequest(start_s=1.0)])
    assert ends == {0: "missing_file", 1: "missing_file"}
