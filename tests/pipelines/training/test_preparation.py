"""What must be there before the first step."""

from dataclasses import replace
from pathlib import Path

import pytest

from hybrid_models.captioner.captioner import Captioner
from hybrid_models.captioner.decoding import CaptionerDecoding
from hybrid_models.captioner.interface import CaptionerInterface
from hybrid_models.inputs import Cut
from pipelines.models import artifacts
from pipelines.reading.limits import Limits
from pipelines.training import preparation
from tests import tiny
from tests.pipelines.training.test_driver import RECIPE, job_of


def test_samples_are_kept_once_for_all_seeds_and_trained_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew where a frozen part, or what is decoded, differs."""
    job = job_of(tmp_path, "x")
    first, second = (artifacts.read(tiny.write_captioner(str(tmp_path / str(seed)), seed)) for seed in (0, 1))
    nets = [artifact.load() for artifact in (first, second)]
    assert preparation.features_folder(job, first, nets[0]) == preparation.features_folder(job, second, nets[1])
    for net in nets:
        net.encoder.requires_grad_(False)
    assert preparation.features_folder(job, first, nets[0]) != preparation.features_folder(job, second, nets[1])
    folders = []
    for changes in ({}, {"dropout": 0.1, "reward_share": 0.5}, {"max_captions": 3}):
        net = Captioner(replace(nets[0].config, **changes), nets[0].assets)
        place = str(tmp_path / "changed")
        artifacts.write(artifacts.make(net, CaptionerDecoding(), {}, ""), place)
        folders.append(preparation.features_folder(job, artifacts.read(place), net))
    assert folders[0] == folders[1] != folders[2]
    limited = replace(job, recipe=replace(RECIPE, limits=Limits(max_bytes=7)))
    assert preparation.features_folder(job, first, nets[0]) != preparation.features_folder(limited, first, nets[0])
    before = preparation.features_folder(job, first, nets[0])
    monkeypatch.setattr(CaptionerInterface, "samples_version", CaptionerInterface.samples_version + 1)
    assert preparation.features_folder(job, first, nets[0]) != before, "a preprocessing step was mended"
    cut = replace(job, recipe=replace(RECIPE, cut=Cut(10, 10)))
    before = preparation.features_folder(cut, first, nets[0])
    monkeypatch.setattr(Cut, "version", Cut.version + 1)
    assert preparation.features_folder(cut, first, nets[0]) != before, "a clip has other windows"
