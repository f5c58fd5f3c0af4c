import numpy as np
import pytest
import torch

from pyramid.errors import DataError
from vla.observation import initial_noise, read_observation, resize_images

GOOD = {"images": np.zeros((2, 8, 8, 3), np.uint8), "text": "go", "state": [1.0, 2.0]}
SIZES = {"n_views": 2, "size_px": 8, "state_dim": 2}


def test_a_good_observation_passes():
    seen = read_observation(GOOD, **SIZES)
    assert seen.images.shape == (2, 8, 8, 3)
    assert seen.state.dtype == np.float32
    assert read_observation({"images": np.zeros((8, 8, 3), np.uint8)}, n_views=1, size_px=8, state_dim=0).text == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "got nothing"),
        ({"images": [1]}, "got list"),
        ({"images": np.zeros((2, 8, 8, 3), np.float32)}, "got float32"),
        ({"images": np.zeros((2, 9, 8, 3), np.uint8)}, r"got \[2, 9, 8, 3\]; vla.observation.resize_images"),
        ({"images": np.zeros((8, 8, 3), np.uint8)}, r"got \[8, 8, 3\]"),
        ({"images": np.zeros((2, 8, 8, 3), object)}, "got object"),
        ({"text": b"go"}, "must be a str, got bytes"),
        ({"state": None}, r"no state; this embodiment needs float \[2\]"),
        ({"state": [1.0]}, r"float \[2\], got float64 \[1\]"),
        ({"state": ["a", "b"]}, "got <U1"),
        ({"state": [1.0, np.nan]}, r"not finite in dimensions \[1\]"),
        ({"state": [np.inf, 1e300]}, r"not finite in dimensions \[0, 1\]"),
        ({"video": 1}, "unknown keys video"),
    ],
)
def test_a_bad_observation_is_refused_by_name(change, message):
    with pytest.raises(DataError, match=message), np.errstate(over="ignore"):
        read_observation({**GOOD, **change}, **SIZES)


def test_noise_is_a_function_of_the_seed():
    assert (initial_noise(3, 4, 2) == initial_noise(3, 4, 2)).all()
    assert (initial_noise(3, 4, 2) != initial_noise(4, 4, 2)).any()
    assert abs(initial_noise(0, 500, 20).std() - 1) < 0.05


def test_resize_keeps_flat_colours():
    views = np.stack([np.full((30, 40, 3), value, np.uint8) for value in (0, 200)])
    small = resize_images(views, 8)
    assert small.shape == (2, 8, 8, 3)
    assert (small[0] == 0).all()
    assert (small[1] == 200).all()


def test_resize_is_what_training_frames_went_through():
    views = np.random.default_rng(0).integers(0, 256, (2, 48, 60, 3), dtype=np.uint8)
    planes = torch.from_numpy(views).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(planes, (16, 16), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    assert np.abs(resize_images(views, 16).astype(int) - want.numpy().astype(int)).max() <= 1
