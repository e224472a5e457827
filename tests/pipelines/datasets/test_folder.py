"""One's own folder → shards: what a table says of each file, and splits that share nothing."""

import csv
import io
import json
from pathlib import Path

import pytest

from hybrid_models.errors import UsageError
from pipelines import storage
from pipelines.datasets.folder import Columns, Described, prepare_folder, prepare_manifest, read_table, split_of
from pipelines.datasets.writer import Prepared
from pipelines.places import InputOptions
from pipelines.reading.formats.entry import ReadOptions
from pipelines.reading.rows import read_blocks
from pipelines.reading.shards import list_shards
from tests import tiny

SHARES = {"val": 0.25, "test": 0.25}
DEFAULT = Columns()


def write(folder: str, count: int, same: int = 1) -> None:
    """Photographs, `same` of which are equal in each case."""
    for number in range(count):
        storage.write_bytes(f"{folder}/{number % 3}/{number:03d}.jpg", tiny.jpeg(number // same))


def names(count: int) -> list[str]:
    return [f"{number % 3}/{number:03d}.jpg" for number in range(count)]


def prepared(place: str, table: str, columns: Columns = DEFAULT, **options: float) -> Prepared:
    return prepare_folder(f"{place}/photos", table, f"{place}/out", columns, 7, {**SHARES, **options}, seed=0)


def rows(place: str, split: str) -> list[dict]:
    shards = list_shards(f"{place}/out/{split}")
    return [row for shard in shards for block in read_blocks(shard, ReadOptions()) for row in block.to_pylist()]


def test_every_file_is_a_row_with_what_is_said_of_it(place: str) -> None:
    write(f"{place}/photos", 30)
    storage.write_bytes(f"{place}/photos/extra.jpg", tiny.jpeg(99))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["file", "caption", "sku"])
    for number, name in enumerate(names(30)):
        table.writerow([name, f"first, of {number}", f"A{number}"])
        table.writerow([f"./{name}", f"second of {number}", "ignored"])
    storage.write_bytes(f"{place}/said.csv", b"\xef\xbb\xbf" + text.getvalue().encode())
    summary = prepared(place, f"{place}/said.csv")
    assert sum(summary.splits.values()) == 30
    found = [row for split in ("train", "val", "test") for row in rows(place, split)]
    for row in found:
        fields = json.loads(row["fields"])
        number = int(fields["file"][2:5])
        assert fields == {
            "file": names(30)[number], "captions": [f"first, of {number}", f"second of {number}"], "sku": f"A{number}",
        }  # fmt: skip
        assert row["media"] == tiny.jpeg(number)
        assert row["sample_id"] == names(30)[number].replace(".", "_")
    assert len(found) == 30


@pytest.mark.parametrize("group", ["", "scene"])
def test_what_belongs_together_is_in_one_split(tmp_path: Path, group: str) -> None:
    write(str(tmp_path / "photos"), 60, same=3)
    lines = [{"file": name, "caption": "x", "scene": number // 3} for number, name in enumerate(names(60))]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = prepared(str(tmp_path), str(tmp_path / "said.jsonl"), Columns(group=group))
    assert summary.in_train == {"val": 0, "test": 0}
    homes: dict[int, set[str]] = {}
    for split in ("train", "val", "test"):
        for row in rows(str(tmp_path), split):
            homes.setdefault(json.loads(row["fields"])["scene"], set()).add(split)
    assert len(homes) == 20
    assert all(len(splits) == 1 for splits in homes.values())


def test_who_has_no_group_is_split_by_content(tmp_path: Path) -> None:
    write(str(tmp_path / "photos"), 60)
    (tmp_path / "said.csv").write_text("file,caption,scene\n" + "".join(f"{name},x,\n" for name in names(60)))
    splits = prepared(str(tmp_path), str(tmp_path / "said.csv"), Columns(group="scene")).splits
    lines = [{"file": name, "caption": "x", "scene": None} for name in names(60)]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, lines)))
    summary = prepare_folder(
        str(tmp_path / "photos"),
        str(tmp_path / "said.jsonl"),
        str(tmp_path / "b"),
        Columns(group="scene"),
        7,
        SHARES,
        0,
    )
    assert summary.splits == splits
    assert min(splits.values()) > 5


def test_a_group_that_one_row_of_a_file_tells_is_the_files(tmp_path: Path) -> None:
    write(str(tmp_path / "photos"), 40)
    said = tmp_path / "said.csv"
    said.write_text(
        "file,caption,person\n" + "".join(f"{name},a,\n{name},b,{n % 20}\n" for n, name in enumerate(names(40)))
    )
    prepared(str(tmp_path), str(said), Columns(group="person"))
    homes: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for row in rows(str(tmp_path), split):
            homes.setdefault(json.loads(row["fields"])["person"], set()).add(split)
    assert sorted(homes) == sorted(map(str, range(20)))
    assert all(len(splits) == 1 for splits in homes.values())
    said.write_text(said.read_text() + f"{names(40)[3]},c,7\n")
    with pytest.raises(
        UsageError, match=r"row 81 says that 0/003.jpg belongs to '7', an earlier one to '3': give it one"
    ):
        prepared(str(tmp_path), str(said), Columns(group="person"))


def test_a_column_without_a_name_is_no_group(tmp_path: Path) -> None:
    """As pandas writes its index."""
    write(str(tmp_path / "photos"), 40)
    lines = [f"{2 * n},{name},a\n{2 * n + 1},{name},b\n" for n, name in enumerate(names(40))]
    (tmp_path / "said.csv").write_text(",file,caption\n" + "".join(lines))
    assert sum(prepared(str(tmp_path), str(tmp_path / "said.csv")).splits.values()) == 40


def test_a_split_that_is_not_wanted_is_left_out(tmp_path: Path) -> None:
    write(str(tmp_path / "photos"), 40)
    (tmp_path / "said.csv").write_text("file,caption\n" + "".join(f"{name},x\n" for name in names(40)))
    splits = prepared(str(tmp_path), str(tmp_path / "said.csv"), test=0).splits
    assert set(splits) == {"train", "val"}
    assert sum(splits.values()) == 40


def test_texts_are_read_as_they_are(tmp_path: Path) -> None:
    """Of the web there are lines that end in the middle of a text, and halves of an emoji."""
    write(str(tmp_path / "photos"), 40)
    lines = [json.dumps({"file": name, "caption": "a\u2028b\x85c"}, ensure_ascii=False) for name in names(40)]
    lines[0] = json.dumps({"file": names(40)[0], "caption": "a dog \ud83d"})
    (tmp_path / "said.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepared(str(tmp_path), str(tmp_path / "said.jsonl"))
    found = [json.loads(row["fields"]) for split in ("train", "val", "test") for row in rows(str(tmp_path), split)]
    captions = {fields["file"]: fields["captions"] for fields in found}
    assert captions.pop(names(40)[0]) == ["a dog ?"]
    assert list(captions.values()) == [["a\u2028b\x85c"]] * 39


def packed(place: str, manifest: str, column: str = "photo", *allowed: str) -> Prepared:
    named = InputOptions(uri_column=column, allow_prefix=allowed)
    return prepare_manifest(f"{place}/{manifest}", named, f"{place}/out", Columns(group="shop"), 7, SHARES, seed=0)


def test_what_a_manifest_names_is_a_row_with_what_it_says(place: str) -> None:
    write(f"{place}/photos", 30)
    lines = [
        {"photo": f"photos/{name}", "caption": f"{word} of {number}", "shop": number // 3}
        for word in ("first", "second")
        for number, name in enumerate(names(30))
    ]
    storage.write_bytes(f"{place}/said.jsonl", "\n".join(map(json.dumps, lines)).encode())
    summary = packed(place, "said.jsonl")
    assert (summary.dataset, sum(summary.splits.values())) == ("manifest", 30)
    homes: dict[int, set[str]] = {}
    seen: set[int] = set()
    for split in ("train", "val", "test"):
        for row in rows(place, split):
            fields = json.loads(row["fields"])
            number = int(fields["file"][-7:-4])
            seen.add(number)
            assert fields == {
                "file": f"{storage.absolute(place)}/photos/{names(30)[number]}", "shop": number // 3,
                "captions": [f"first of {number}", f"second of {number}"],
            }  # fmt: skip
            assert row["media"] == tiny.jpeg(number)
            homes.setdefault(fields["shop"], set()).add(split)
    assert len(seen) == 30
    assert all(len(splits) == 1 for splits in homes.values())


def test_a_manifest_that_names_what_it_may_not_or_nothing_is_refused(tmp_path: Path) -> None:
    place = str(tmp_path)
    write(f"{place}/photos", 12)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/1.jpg").write_bytes(tiny.jpeg(1))
    good = [{"photo": name, "caption": "x", "shop": number} for number, name in enumerate(names(12))]

    def refusal(*more: dict, column: str = "photo") -> str:
        (tmp_path / "photos/said.jsonl").write_text("\n".join(map(json.dumps, [*good, *more])))
        with pytest.raises(UsageError) as caught:
            packed(place, "photos/said.jsonl", column)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    for address in ("../secret/1.jpg", f"{place}/secret/1.jpg", "file:///etc/passwd", "http://169.254.169.254/a.jpg"):
        told = refusal({"photo": address, "shop": 1}, {"photo": "none.jpg"})
        assert told.startswith(f"2 of 14 rows of {place}/photos/said.jsonl name nothing that can be read, such as row ")
        assert "AddressNotAllowed" in told
    assert "ObjectMissing: there is no" in refusal({"photo": "none.jpg"})
    assert "UnsupportedMedia" in refusal({"photo": "said.jsonl"})
    assert "AddressMissing" in refusal({"caption": "x"})
    assert "has no column 'picture'" in refusal(column="picture")
    assert "`uri_column` is needed" in refusal(column="")
    (tmp_path / "photos/said.jsonl").write_text(json.dumps(good[0]))
    with pytest.raises(UsageError, match="no file falls into"):
        packed(place, "photos/said.jsonl")
    (tmp_path / "photos/said.jsonl").write_text(
        "\n".join(map(json.dumps, [*good, {"photo": "../secret/1.jpg", "shop": 1}]))
    )
    assert sum(packed(place, "photos/said.jsonl", "photo", place).splits.values()) == 13


def test_columns_of_a_manifest_are_kept_and_grouped_by(tmp_path: Path) -> None:
    place = str(tmp_path)
    write(f"{place}/photos", 30)
    lines = [{"photo": f"photos/{name}", "file": f"mine {number}"} for number, name in enumerate(names(30))]
    lines[1:] = [{**line, "shop": number // 3} for number, line in enumerate(lines[1:])]
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, lines)))
    packed(place, "said.jsonl")
    found = [json.loads(row["fields"]) for split in ("train", "val", "test") for row in rows(place, split)]
    assert sorted(fields["file"] for fields in found) == sorted(f"mine {number}" for number in range(30))
    assert sum("shop" in fields for fields in found) == 29
    named = InputOptions(uri_column="photo")
    for group in ("photo", "caption"):
        with pytest.raises(UsageError, match=rf"^`group_column` '{group}' names files or captions"):
            prepare_manifest(f"{place}/said.jsonl", named, f"{place}/other", Columns(group=group), 7, SHARES, seed=0)


def test_new_files_move_no_others_from_split_to_split() -> None:
    counts = [split_of(str(number), SHARES, 0) for number in range(4000)]
    for split, share in (("test", 0.25), ("val", 0.25), ("train", 0.5)):
        assert abs(counts.count(split) / 4000 - share) < 0.03
    assert [split_of(str(number), SHARES, 1) for number in range(4000)] != counts


@pytest.mark.parametrize(
    "content",
    [
        {"a.jpg": "one", "b.jpg": ["two", "three"], "c.jpg": {"captions": ["four"], "label": "x"}},
        [{"image": "a.jpg", "caption": "one"}, {"image": "b.jpg", "captions": ["two", "three"]},
         {"image": "c.jpg", "caption": "four", "label": "x"}],
        {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}],
         "annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 2, "caption": "two"},
                         {"image_id": 3, "caption": "four"}, {"image_id": 2, "caption": "three"}]},
        {"images": [{"id": "a", "file_name": "a.jpg", "label": "y"}, {"id": "b", "file_name": "b.jpg", "file": "no"},
                    {"id": "c", "file_name": "c.jpg", "label": "x"}],
         "annotations": [{"image_id": "a", "caption": "one"}, {"image_id": "b", "caption": "two"},
                         {"image_id": "c", "caption": "four"}, {"image_id": "b", "caption": "three"}]},
    ],
)  # fmt: skip
def test_json_in_each_layout(tmp_path: Path, content: object) -> None:
    (tmp_path / "said.json").write_text(json.dumps(content))
    found = read_table(str(tmp_path / "said.json"), Columns())
    assert {name: said.captions for name, said in found.items()} == {
        "a.jpg": ["one"], "b.jpg": ["two", "three"], "c.jpg": ["four"],
    }  # fmt: skip
    assert found["c.jpg"].fields in ({}, {"label": "x"})


def test_mistakes_are_said(tmp_path: Path) -> None:
    place = str(tmp_path)
    write(f"{place}/photos", 12)

    def refusal(name: str, content: str, columns: Columns = DEFAULT, **options: float) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError) as caught:
            prepared(place, f"{place}/{name}", columns, **options)
        assert not (tmp_path / "out/train").exists()
        return str(caught.value)

    good = "file,caption\n" + "".join(f"{name},x\n" for name in names(12))
    assert refusal("a.csv", good + "nowhere.jpg,x\n").startswith(
        f"1 of 13 files that {place}/a.csv names are not there in {place}/photos, such as nowhere.jpg; there are, among"
    )
    assert "has no column one of file, file_name" in refusal("a.csv", "foto,caption\n1.jpg,x\n")
    assert "has no column 'foto'" in refusal("a.csv", good, Columns(file="foto"))
    assert "has no column 'scene' to group by; it has file, caption" in refusal("a.csv", good, Columns(group="scene"))
    (tmp_path / "both.csv").write_text(good.replace("caption", "caption_en,captions").replace(",x", ",,ein Hund"))
    assert read_table(f"{place}/both.csv", Columns(caption="caption_en"))[names(12)[0]] == Described()
    assert "has no column 'tezt' of captions; it has file, caption" in refusal("a.csv", good, Columns(caption="tezt"))
    assert "has no column 'text' of captions" in refusal("a.json", '{"a.jpg": "one"}', Columns(caption="text"))
    labels = '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "category_id": 2}]}'
    assert "its annotations are no captions; give labels as a column of another table" in refusal("a.json", labels)
    assert "row 2 has not as many columns" in refusal("a.csv", "file,caption\na,b\nc\n")
    assert "row 1 names no file in 'file'" in refusal("a.csv", "file,caption\n,x\n")
    assert "row 1 has neither a text nor a list of texts" in refusal("a.json", '[{"file": "a.jpg", "caption": 7}]')
    assert "cannot be read: JSONDecodeError" in refusal("a.json", "{")
    assert "describes no file" in refusal("a.json", "[]")
    assert "is no table of captions" in refusal("a.txt", good)
    assert "must be shares that leave some for train" in refusal("a.csv", good, val=0.6, test=0.4)
    assert "no file falls into" in refusal("a.csv", "file,caption\n0/000.jpg,x\n")
    with pytest.raises(UsageError, match=r"there is no .*none\.csv"):
        prepared(place, f"{place}/none.csv")
    (tmp_path / "photos/notes.txt").write_text("x")
    assert "are no photographs, clips or arrays" in refusal("a.csv", "file,caption\nnotes.txt,x\n")
    for name in ("a.b.jpg", "a_b.jpg"):
        (tmp_path / "photos" / name).write_bytes(tiny.jpeg(1))
    assert "a.b.jpg and a_b.jpg would have one name" in refusal("a.csv", "file,caption\na.b.jpg,x\na_b.jpg,y\n")
