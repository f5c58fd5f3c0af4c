"""What a machine can do is told as it is."""

from __future__ import annotations

import pytest
import torch

from pyramid.report.doctor import doctor


@pytest.mark.parametrize(("units", "told"), [(True, "bfloat16 is fast"), (False, "bfloat16 is slow")])
def test_the_doctor_tells_how_fast_half_precision_is(monkeypatch: pytest.MonkeyPatch, units: bool, told: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is named in place of the CPU")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": units}, raising=False)
    (device,) = [check for check in doctor().checks if check.name == "device"]
    assert device.ok
    assert told in device.found
