"""`hybrid prepare`: one's own folder, public data sets, or the demo's data → shards that the other verbs read."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from jobs.command import cli
from jobs.command.options import Input
from pipelines import places
from pipelines.places import InputOptions
from pipelines.reading.sandbox import jail

# What makes shards is imported where it is used: a help text does not wait for it.
if TYPE_CHECKING:
    from pipelines.datasets.writer import Prepared


@dataclass(frozen=True)
class DataSet:
    """What a data set is made of: its options are the arguments of the function that makes it."""

    made_by: ClassVar[str]
    """`module:function` in `pipelines.datasets`."""

    def prepare(self) -> Prepared:
        """Writes the data set; returns the summary."""
        module, _, function = self.made_by.partition(":")
        made: Prepared = getattr(import_module(f"pipelines.datasets.{module}"), function)(**vars(self))
        return made


@dataclass(frozen=True)
class Demo(DataSet):
    """Small data for all three hybrids, made here: captioned scenes, moving digits, English–German sentences, and two
    nights of each to run `hybrid infer` on. Takes seconds, needs no download."""

    made_by = "demo.data:prepare_demo"
    out: str
    """Folder or URI (s3://…) for the data sets `scenes`, `digits` and `sentences`."""
    scenes: int = 1600
    """Training images. Here as below, val and test get an eighth of that each."""
    digits: int = 800
    """Training sequences of moving digits."""
    sentences: int = 3000
    """Training sentence pairs."""
    night_rows: int = 90
    """Rows of each night, in three shards."""
    rows_per_shard: int = 500
    """Rows of one training shard."""
    seed: int = 0
    """The same seed gives the same bytes."""


@dataclass(frozen=True)
class Folder:
    """Your own photographs or clips in a folder, and a table of captions, labels or whatever else is known of them: csv
    or tsv with a header, jsonl, json (a list of objects, file → captions, or COCO's layout)."""

    source: str
    """Folder or URI of photographs or clips, also in folders below it."""
    table: str
    """File or URI of the table. Its columns beside the file and its caption become fields of the row."""
    out: str
    """Folder or URI for the splits train, val and test."""
    file_column: str = ""
    """Column with the path below the folder; by default file, file_name, filename, image, video or path."""
    caption_column: str = ""
    """Column with a caption, in as many rows of a file as it has captions, or with a list of them;
    by default caption or captions."""
    group_column: str = ""
    """What belongs together and so into one split: a scene, a person, a product. By default equal files are."""
    val: float = 0.1
    """Share of files for validation."""
    test: float = 0.1
    """Share of files to judge by."""
    rows_per_shard: int = 500
    """Files of one shard."""
    seed: int = 0
    """Of the split."""

    def prepare(self) -> Prepared:
        """Writes the data set; returns the summary."""
        from pipelines.datasets.folder import Columns, prepare_folder

        columns = Columns(self.file_column, self.caption_column, self.group_column)
        shares = {"val": self.val, "test": self.test}
        return prepare_folder(self.source, self.table, self.out, columns, self.rows_per_shard, shares, self.seed)


@dataclass(frozen=True)
class Manifest:
    """Your own photographs or clips wherever they lie, and a manifest: a table with a column of their addresses
    (`--uri-column`), and columns of captions, labels or whatever else is known of them."""

    source: str
    """The manifest (.parquet, .jsonl, .tsv), or a folder or pattern of some; its other columns become fields."""
    out: str
    """Folder or URI for the splits train, val and test."""
    named: Input = field(default_factory=InputOptions)
    caption_column: str = ""
    """Column with a caption, in as many rows of an address as it has captions, or with a list of them;
    by default caption or captions."""
    group_column: str = ""
    """What belongs together and so into one split: a scene, a person, a product. By default equal objects are."""
    val: float = 0.1
    """Share of objects for validation."""
    test: float = 0.1
    """Share of objects to judge by."""
    rows_per_shard: int = 500
    """Objects of one shard."""
    seed: int = 0
    """Of the split."""

    def prepare(self) -> Prepared:
        """Writes the data set; returns the summary."""
        from pipelines.datasets.folder import Columns, prepare_manifest

        columns = Columns(caption=self.caption_column, group=self.group_column)
        shares = {"val": self.val, "test": self.test}
        return prepare_manifest(self.source, self.named, self.out, columns, self.rows_per_shard, shares, self.seed)


@dataclass(frozen=True)
class Multi30k(DataSet):
    """English–German sentence pairs for the translator (Elliott et al. 2016), from the files of the GitHub repository
    multi30k/dataset, folder data/task1/raw."""

    made_by = "public_data:prepare_multi30k"
    source: str
    """Folder or URI with {train,val,test_2016_flickr}.{en,de}, gzipped or not."""
    out: str
    """Folder or URI for the splits train, val and test."""
    rows_per_shard: int = 2000
    """Sentence pairs of one shard."""


@dataclass(frozen=True)
class Flickr8k(DataSet):
    """Photographs with five captions each for the captioner (Hodosh et al. 2013). Identical photographs are kept in the
    same split."""

    made_by = "public_data:prepare_flickr8k"
    source: str
    """Folder or URI with the original distribution (Flicker8k_Dataset/, Flickr8k.token.txt and
    Flickr_8k.{train,dev,test}Images.txt), or with captions.json and images-*.tar. The latter have only train and dev:
    dev becomes test, and val is drawn from train."""
    out: str
    """Folder or URI for the splits train, val and test."""
    rows_per_shard: int = 500
    """Photographs of one shard."""
    val_images: int = 300
    """Photographs to draw from train where the source has no val split."""
    seed: int = 0
    """What they are drawn with."""


@dataclass(frozen=True)
class Radar(DataSet):
    """Rain radar events for the nowcaster, from CF NetCDF files: one event, one shard. Splits are whole events."""

    made_by = "radar_data:prepare_radar"
    source: str
    """Folder or URI of *.nc files with `rainfall_rate` [time, y, x] in mm/h."""
    out: str
    """Folder or URI for the splits train, val and test."""
    crop: int = 256
    """Side of the central square to keep, in pixels; 0 keeps all."""
    val: tuple[str, ...] = ()
    """Names of the validation events, such as knmi_20100826."""
    test: tuple[str, ...] = ()
    """Names of the test events. With neither: the newest event is test, the one before it val."""


@dataclass(frozen=True)
class MovingMnist:
    """Two handwritten digits bouncing on 64 x 64 pixels, 20 frames, for the nowcaster (Srivastava et al. 2015); 82 kB a
    sequence. Train and val use disjoint training digits of MNIST, test its test digits."""

    source: str
    """Folder or URI with MNIST's train-images-idx3-ubyte and t10k-images-idx3-ubyte, gzipped or not."""
    out: str
    """Folder or URI for the splits train, val and test."""
    train: int = 10_000
    """Training sequences."""
    val: int = 500
    """Validation sequences."""
    test: int = 1000
    """Test sequences."""
    rows_per_shard: int = 250
    """Sequences of one shard."""
    seed: int = 0
    """Of places, directions and the choice of digits."""

    def prepare(self) -> Prepared:
        """Writes the data set; returns the summary."""
        from pipelines.datasets.public_data import prepare_moving_mnist

        counts = {"train": self.train, "val": self.val, "test": self.test}
        return prepare_moving_mnist(self.source, self.out, self.rows_per_shard, counts, self.seed)


@dataclass(frozen=True)
class MovingScenes:
    """Captioned clips (mp4, made here) for the captioner, in which a shape moves, grows, shrinks, appears, vanishes or
    passes behind another: what happens is in the order of the frames. Val and test have combinations of colour, shape
    and action that no other split has."""

    out: str
    """Folder or URI for the splits train, val and test."""
    train: int = 2000
    """Training clips."""
    val: int = 300
    """Validation clips."""
    test: int = 500
    """Test clips."""
    rows_per_shard: int = 250
    """Clips of one shard."""
    seed: int = 0
    """Of everything."""

    def prepare(self) -> Prepared:
        """Writes the data set; returns the summary."""
        from pipelines.datasets.moving_scenes import prepare_moving_scenes

        counts = {"train": self.train, "val": self.val, "test": self.test}
        return prepare_moving_scenes(self.out, self.rows_per_shard, counts, self.seed)


@dataclass(frozen=True)
class Coco(DataSet):
    """Photographs with five captions each for the captioner: COCO captions 2017 (Chen et al. 2015)."""

    made_by = "large_data:prepare_coco"
    source: str
    """Folder or URI with annotations/captions_{train,val}2017.json, and train2017 and val2017 as folders or .zip."""
    out: str
    """Folder or URI for the splits train, val and test; COCO's val2017 is the test split."""
    rows_per_shard: int = 1000
    """Photographs of one shard."""
    val_images: int = 5000
    """Photographs of train2017 that make the val split."""
    seed: int = 0
    """What they are drawn with."""


@dataclass(frozen=True)
class Iwslt14(DataSet):
    """TED talks in two languages for the translator: IWSLT14 (Cettolo et al. 2014)."""

    made_by = "large_data:prepare_iwslt14"
    source: str
    """Folder or URI with train.tags.de-en.{de,en} and IWSLT14.TED.{dev,tst}20??.de-en.{de,en}.xml."""
    out: str
    """Folder or URI for the splits train, val and test."""
    languages: tuple[str, str] = ("de", "en")
    """The two languages, as the folder's files name them."""
    rows_per_shard: int = 10_000
    """Sentence pairs of one shard."""


@dataclass(frozen=True)
class Kth(DataSet):
    """Grey clips of people who walk, run, box … for nowcaster and recogniser: KTH actions (Schüldt et al. 2004)."""

    made_by = "large_data:prepare_kth"
    source: str
    """Folder or URI with 00sequences.txt, and boxing, handclapping, handwaving, jogging, running and walking as folders
    of AVI files or .zip."""
    out: str
    """Folder or URI for the splits train (persons 1 to 14), val (15, 16) and test (17 to 25)."""
    size: int = 128
    """Height and width of a frame."""
    frames: int = 30
    """Frames of a clip."""
    rows_per_shard: int = 250
    """Clips of one shard."""


@dataclass(frozen=True)
class Msvd(DataSet):
    """Short clips with many captions each for the captioner: MSVD (Chen and Dolan 2011)."""

    made_by = "clip_captions:prepare_msvd"
    source: str
    """Folder or URI with AllVideoDescriptions.txt, and YouTubeClips as a folder or .zip; with youtube_mapping.txt the
    splits are the usual ones, without it clips of one video are in one split."""
    out: str
    """Folder or URI for the splits train, val and test."""
    rows_per_shard: int = 100
    """Clips of one shard."""
    seed: int = 0
    """What splits are drawn with."""


@dataclass(frozen=True)
class Msrvtt(DataSet):
    """Clips of the web with twenty captions each for the captioner: MSR-VTT (Xu et al. 2016)."""

    made_by = "clip_captions:prepare_msrvtt"
    source: str
    """Folder or URI with {train_val,test}_videodatainfo.json, and TrainValVideo and TestVideo as folders or .zip."""
    out: str
    """Folder or URI for the splits train, val and test, which are its owners'."""
    rows_per_shard: int = 100
    """Clips of one shard."""


SOURCES: dict[str, Any] = {
    "demo": Demo,
    "folder": Folder,
    "manifest": Manifest,
    "multi30k": Multi30k,
    "flickr8k": Flickr8k,
    "radar": Radar,
    "moving-mnist": MovingMnist,
    "moving-scenes": MovingScenes,
    "coco": Coco,
    "iwslt14": Iwslt14,
    "kth": Kth,
    "msvd": Msvd,
    "msrvtt": Msrvtt,
}
"""The data sets by name: the class of their options."""


def main(argv: list[str]) -> dict[str, Any]:
    """Prepares the data set that the arguments name.

    Returns:
        The summary: `{"dataset", "out", "splits": {name: rows}, "in_train": {name: contents}, "shards", "bytes"}`,
        and of files that others made the "jail" in which they were opened.

    Raises:
        UsageError: the source is not what it should be, or the options do not fit it.
    """
    name, rest = cli.positional(
        argv, "data set", {name: kind.__doc__ for name, kind in SOURCES.items()}, "hybrid prepare"
    )
    source = cli.parse(SOURCES[name], rest, f"hybrid prepare {name}", SOURCES[name].__doc__)
    if isinstance(source, Demo | MovingScenes):
        return asdict(source.prepare())
    places.check_outside("source", source.source, [source.out], "what is written,")
    held = jail.ensure()
    return {**asdict(source.prepare()), "jail": held}


if __name__ == "__main__":
    cli.run(main, sys.argv[1:])
