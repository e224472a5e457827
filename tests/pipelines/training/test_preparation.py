"""What must be there before the first step."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from hybrid_models.captioner.captioner import Captioner
from hybrid_models.captioner.decoding import CaptionerDecoding
from hybrid_models.captioner.interface import CaptionerInterface
from hybrid_models.inputs import Cut
from pipelines import storage
from pipelines.models import artifacts
from pipelines.reading.limits import Limits
from pipelines.reading.units import Part
from pipelines.staging.checks import RefusedError
from pipelines.staging.contents import Staged
from pipelines.staging.sink import StageSink
from pipelines.training import preparation
from tests import tiny
from tests.pipelines.staging.test_pieces import A, rows
from tests.pipelines.training.test_driver import RECIPE, job_of


def test_what_could_not_be_read_for_a_moment_is_read_again_where_too_little_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be refused each time; otherwise it stays: others may go on with these samples."""
    job, initial = job_of(tmp_path, "x"), artifacts.read(tiny.write_translator(str(tmp_path / "model")))
    photo, asked = str(tmp_path / "0.jpg"), []

    def stage(todo: list[Part], folder: str, *_: object) -> Staged:
        """Rows up to `good`, and one of an object that is not there."""
        asked.append([part.shard.first for part in todo])
        sink, gone = StageSink(folder, preparation.PREPARED_SCHEMA), not Path(photo).exists()
        for part in todo:
            for first, stop, error in ((0, good, None), (good, good + 1, "ObjectGone: it is away" if gone else None)):
                if first >= part.shard.first:
                    made = rows(part, first, stop, good, error).drop_columns("object")
                    made = made.append_column("object", pa.array([photo] * len(made)))
                    for field in preparation.PREPARED_SCHEMA:
                        if field.name not in made.column_names:
                            made = made.append_column(field, pa.nulls(len(made), field.type))
                    sink.write([made], None)
        return Staged()

    monkeypatch.setattr(preparation.engine, "stage", stage)
    for good, again in ((3, [[3]]), (50, [])):
        storage.delete(photo, storage.anything)
        asked.clear()
        place = replace(job, storage=str(tmp_path / str(good)))
        if again:
            with pytest.raises(RefusedError, match="1 of 4 samples are bad"):
                preparation.prepare(place, initial, [A])
        else:
            assert preparation.prepare(place, initial, [A])[1] == {"ObjectGone": 1}
        assert asked == [[0]]
        storage.write_bytes(photo, b"back")
        assert preparation.prepare(place, initial, [A])[1] == ({} if again else {"ObjectGone": 1})
        assert asked == [[0], *again]


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
        artifacts.write(artifacts.make(net, CaptionerDecoding(), {}, ""), place, storage.anything)
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
