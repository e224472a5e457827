"""The verb `prepare` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_models.errors import UsageError
from jobs.prepare import main
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import read_blocks
from pipelines.reading.sandbox import jail
from pipelines.reading.shards import list_shards
from tests import tiny
from tests.pipelines.datasets.test_public_data import COUNTS, make_mnist, make_multi30k, make_original, make_repacked
from tests.pipelines.datasets.test_radar_data import make_events


def test_every_source_gives_a_summary_that_json_can_hold(tmp_path: Path) -> None:
    make_multi30k(tmp_path / "multi30k", COUNTS, packed=True)
    make_repacked(tmp_path / "repacked", 12, 3, same={})
    make_original(tmp_path / "original")
    make_events(tmp_path / "radar")
    make_mnist(tmp_path / "mnist")
    out = str(tmp_path / "out")
    calls = {
        "multi30k": (["--source", str(tmp_path / "multi30k")], {"train": 7, "val": 2, "test": 3}),
        "flickr8k": (["--source", str(tmp_path / "repacked"), "--val-images", "2"], {"train": 10, "val": 2, "test": 3}),
        "radar": (
            ["--source", str(tmp_path / "radar"), "--val", "a", "--test", "b", "c"],
            {"train": 4, "val": 4, "test": 8},
        ),
        "moving-mnist": (
            ["--source", str(tmp_path / "mnist"), "--train", "3", "--val", "2", "--test", "1", "--seed", "4"],
            {"train": 3, "val": 2, "test": 1},
        ),
    }
    for verb, (arguments, splits) in calls.items():
        summary = main([verb, *arguments, "--out", f"{out}/{verb}"])
        assert json.loads(json.dumps(summary)) == summary
        assert (summary["dataset"], summary["out"], summary["splits"]) == (verb, f"{out}/{verb}", splits)
        assert summary["jail"] == jail.in_force("auto")
        assert summary["bytes"] == sum(
            p.stat().st_size for p in Path(out, verb).rglob("*") if p.name[0] not in "_." and p.is_file()
        )
    assert main(["flickr8k", "--source", str(tmp_path / "original"), "--out", f"{out}/o"])["splits"]["val"] == 3


def test_ones_own_folder_is_prepared_by_one_command(tmp_path: Path) -> None:
    lines = ["photo,text,sku"]
    for number in range(40):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/{number}.jpg").write_bytes(tiny.jpeg(number))
        lines.append(f'{number}.jpg,"a photo, number {number}",A{number}')
    (tmp_path / "said.csv").write_text("\n".join(lines))
    columns = ["--file-column", "photo", "--caption-column", "text", "--val", "0.2", "--test", "0.2"]
    summary = main(["folder", "--source", str(tmp_path / "photos"), "--table", str(tmp_path / "said.csv"),
                    "--out", str(tmp_path / "out"), *columns])  # fmt: skip
    assert sum(summary["splits"].values()) == 40
    assert min(summary["splits"].values()) > 2
    assert summary["in_train"] == {"val": 0, "test": 0}


def test_what_a_manifest_names_is_prepared_by_one_command(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(40):
        (tmp_path / f"photos/{number}.jpg").write_bytes(tiny.jpeg(number))
    photos = [f"photos/{number}.jpg" for number in range(40)]
    said = pa.table({"photo": photos, "texts": [[f"a photo, number {number}"] * 2 for number in range(40)]})
    pq.write_table(said, tmp_path / "said.parquet")
    options = ["--uri-column", "photo", "--caption-column", "texts", "--val", "0.2", "--test", "0.2"]
    source = str(tmp_path / "said.parquet")
    summary = main(["manifest", "--source", source, "--out", str(tmp_path / "out"), *options])
    assert (summary["dataset"], sum(summary["splits"].values())) == ("manifest", 40)
    assert summary["in_train"] == {"val": 0, "test": 0}
    (shard,) = list_shards(f"{tmp_path}/out/val")
    (row, *_) = [row for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()]
    fields = json.loads(row["fields"])
    assert fields["captions"] == [f"a photo, number {Path(fields['file']).stem}"] * 2


def test_the_demo_takes_its_sizes_from_options(tmp_path: Path) -> None:
    options = ["--scenes", "8", "--digits", "8", "--sentences", "16", "--night-rows", "3", "--rows-per-shard", "4"]
    summary = main(["demo", "--out", str(tmp_path), *options])
    assert summary["splits"]["scenes/train"] == 8
    assert summary["splits"]["sentences/train"] == 16
    assert len(list((tmp_path / "digits/train").iterdir())) == 2


def test_mistakes_are_readable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.en\.gz is not there"):
        main(["multi30k", "--source", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(UsageError, match=r"^`source` .*/raw lies in what is written, .*: give a place outside of it$"):
        main(["multi30k", "--source", str(tmp_path / "raw"), "--out", str(tmp_path)])
    for arguments in ([], ["imagenet"], ["multi30k", "--out", "x"], ["demo", "--out", "x", "--scenes", "many"]):
        with pytest.raises(UsageError) as caught:
            main(arguments)
        assert "\n" not in str(caught.value)


def test_help_says_what_each_source_is(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--help"], ["demo", "multi30k", "flickr8k", "radar", "moving-mnist", "hybrid prepare"]),
        (["flickr8k", "--help"], ["captions.json", "--val-images", "(required)", "(default: 300)"]),
        (["radar", "--help"], ["rainfall_rate", "--crop", "(default: 256)"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words)
