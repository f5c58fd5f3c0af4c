"""The layout of LeRobot v2.x."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid.errors import DataError, UnsafeInputError
from pyramid.lerobot import schema
from pyramid.lerobot.schema import Layout, ModalityGroup, fill_path

LAYOUT = {
    "fps": 20.0,
    "robot_type": "arm",
    "state_names": ("x", "y"),
    "action_names": ("dx",),
    "cameras": ("front",),
    "height_px": 16,
    "width_px": 16,
}


def test_paths_are_those_of_lerobot() -> None:
    assert fill_path(schema.DATA_PATH, index=1042) == "data/chunk-001/episode_001042.parquet"
    key = "observation.images.front"
    assert fill_path(schema.VIDEO_PATH, index=7, video_key=key) == f"videos/chunk-000/{key}/episode_000007.mp4"
    assert fill_path("d/{episode_index}.parquet", index=12, chunk_size=5) == "d/12.parquet"
    assert fill_path("{episode_chunk:02d}/{episode_index:3d}", index=12, chunk_size=5) == "02/012"


@given(st.integers(0, 10**7), st.integers(1, 10**4))
def test_paths_are_those_of_pythons_own_formatting(index: int, chunk_size: int) -> None:
    expected = schema.DATA_PATH.format(episode_chunk=index // chunk_size, episode_index=index)
    assert fill_path(schema.DATA_PATH, index=index, chunk_size=chunk_size) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{episode_index.__class__}",
        "{0}",
        "{episode_index!r}",
        "data/{robot}.parquet",
        "/etc/{episode_index}",
        "data/../../{episode_index}",
        "..\\{episode_index}",
        "file://{episode_index}",
        "C:\\{episode_index}",
        "data/{{episode_index}}",
    ],
)
def test_templates_that_ask_for_more_are_refused(template: str) -> None:
    with pytest.raises(UnsafeInputError, match="template"):
        fill_path(template, index=3)


@pytest.mark.parametrize("key", ["../../secret", "a/../../b", "{episode_index}", "x:y"])
def test_camera_keys_that_lead_out_are_refused(key: str) -> None:
    with pytest.raises(UnsafeInputError, match="template"):
        fill_path(schema.VIDEO_PATH, index=0, video_key=key)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_versions_that_are_read(version: str) -> None:
    assert schema.check_version(version, "info.json") == version


@pytest.mark.parametrize("version", ["v3.0", "v1.6", None, 2, ""])
def test_versions_that_are_not_read_are_told_which_are(version: object) -> None:
    with pytest.raises(DataError, match=r"v2\.0 and v2\.1 are"):
        schema.check_version(version, "info.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fps", 0.0),
        ("state_names", ()),
        ("action_names", ()),
        ("cameras", ("Front Camera",)),
        ("action_groups", (("arm", ModalityGroup(start=0, end=2)),)),
    ],
)
def test_layouts_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"fps|names|camera|group"):
        Layout(**{**LAYOUT, field: value})


@pytest.mark.parametrize(("start", "end"), [(0, 0), (-1, 2), (3, 1)])
def test_empty_groups_are_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="start < end"):
        ModalityGroup(start=start, end=end)


def test_documents() -> None:
    groups = (("arm", ModalityGroup(start=0, end=1, absolute=False)),)
    layout = Layout(**{**LAYOUT, "action_groups": groups})
    info = schema.info_document(layout, episodes=1001, frames=5000, tasks=2)
    assert (info["codebase_version"], info["fps"], info["total_chunks"]) == ("v2.1", 20, 2)
    assert isinstance(info["fps"], int)
    assert info["splits"] == {"train": "0:1001"}
    assert info["features"]["observation.images.front"]["shape"] == [16, 16, 3]
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    assert schema.modality_document(layout) == {
        "state": {"state": {"start": 0, "end": 2}},
        "action": {"arm": {"start": 0, "end": 1, "absolute": False}},
        "video": {"front": {"original_key": "observation.images.front"}},
        "annotation": {"human.task_description": {"original_key": "task_index"}},
    }
