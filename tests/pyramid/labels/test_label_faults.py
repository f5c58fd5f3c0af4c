"""Labelers and shards that are broken: named and set aside, whatever the executor, and the others labelled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import drawing
import pytest
from labelling import SICK_MODEL, check_sick, events, tables, write_sick

from pyramid.errors import DataError
from pyramid.labels.engine import label

Model = Callable[..., str]


@pytest.mark.parametrize(
    "options", [{}, {"workers": 2, "decoders": 1}, pytest.param({"workers": 2}, marks=pytest.mark.slow)]
)
def test_what_is_broken_is_named_and_costs_itself_only(model: Model, tmp_path: Path, options: dict) -> None:
    shards, out = write_sick(tmp_path / "shards"), tmp_path / "out"
    job = {"labeler": "truth", "model": model(**SICK_MODEL), "out": str(out), "max_failed_share": 1.0, "retries": 1}
    check_sick(label(shards, **job, **options), out)
    assert len(events(out, "unit_retried")) == len(events(out, "unit_quarantined")) == 1
    check_sick(label(shards, **job), out)  # From the receipts.


def test_too_many_failures_stop_the_job_which_goes_on_when_the_cause_is_mended(model: Model, tmp_path: Path) -> None:
    shards, out = drawing.write_shards(tmp_path / "shards", [4] * 8), tmp_path / "out"
    faults = {drawing.key_of(clip): "schema" for clip in (0, 4)}
    job = {"labeler": "truth", "model": model(faults=faults), "out": str(out), "retries": 0}
    with pytest.raises(DataError, match=r"2 of 4 units failed, more than max_failed_share=0\.3 allows; .* no schema"):
        label(shards, **job, max_failed_share=0.3)
    assert [event["event"] for event in events(out)][-1] == "job_failed"
    allowed = label(shards, **job, max_failed_share=0.5)
    assert (allowed.skipped_done, allowed.quarantined, allowed.clips) == (3, {"error": 2}, 4)
    assert label(shards, **job).quarantined == {"error": 2}, "those of a former run stop none"
    again = label(shards, **{**job, "model": model("well.json")}, retry_quarantined=True)
    assert (again.quarantined, again.clips) == ({}, 8)
    label(shards, labeler="truth", model=model("well.json"), out=str(tmp_path / "whole"))
    assert tables(out) == tables(tmp_path / "whole")
