import json
from datetime import UTC, datetime, timedelta

import pytest

from pipelines import storage
from pipelines.staging import uses
from pipelines.training import leftovers

KEY, OTHER = "0123456789ab", "ba9876543210"
PIECE = "a.tar-0123456789abcdef-00000000-00000001-end.parquet"
CHAMPION = "models:/translator/3"


@pytest.fixture(autouse=True)
def two_days_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_now", lambda: datetime.now(UTC) + timedelta(hours=48))


@pytest.fixture
def lake(place: str) -> str:
    return storage.absolute(place)


def write_run(lake: str, name: str, summary: str | None) -> str:
    """A run's folder; without a summary it is unfinished."""
    run = storage.join(lake, "runs", name)
    files = {
        "run.json": "{}",
        "history.jsonl": "",
        "initial/config.json": '{"assets": ["tokenizer.json"]}',
        "initial/tokenizer.json": "{}",
        "initial/notes.txt": "somebody's own",
        "artifact/config.json": "{}",
        "checkpoint_epoch_0001/weights.safetensors": "w",
        "checkpoint_epoch_0002_1/optimizer.pt": "o",
        "checkpoint_epoch_0002_step_00000070/progress.json": "p",
        "checkpoint_epoch_0001/mine.txt": "somebody's own",
        "checkpoint_manager_snapshot.json": "{}",
    }
    for path, text in {**files, **({} if summary is None else {"summary.json": summary})}.items():
        storage.write_bytes(storage.join(run, path), text.encode(), storage.anything)
    return run


def write_features(lake: str, key: str, *users: tuple[str, str]) -> str:
    folder = storage.join(lake, "features", key)
    storage.write_bytes(storage.join(folder, PIECE), b"PAR1", storage.anything)
    for kind, user in users:
        uses.mark(folder, kind, user)
    return folder


def using(*models: str) -> leftovers.Needs:
    return lambda model: model if model in models else ""


NOBODY = using()


def needed(lake: str, needs: leftovers.Needs = NOBODY) -> dict[str, str]:
    return {folder.uri.removeprefix(lake + "/"): folder.needed_by for folder in leftovers.find(lake, needs)}


FINISHED = json.dumps({"model_version": "3"})


def test_of_a_finished_run_checkpoints_and_initial_weights_go(lake: str) -> None:
    run = write_run(lake, "done", FINISHED)
    (found,) = leftovers.find(lake, NOBODY)
    assert (found.kind, found.needed_by) == ("runs", "")
    gone = [file.uri.removeprefix(run + "/") for file in leftovers.remove(found, NOBODY)]
    assert gone == [
        "checkpoint_epoch_0001/weights.safetensors", "checkpoint_epoch_0002_1/optimizer.pt",
        "checkpoint_epoch_0002_step_00000070/progress.json", "initial/config.json",
        "initial/tokenizer.json",
    ]  # fmt: skip
    assert {file.uri.removeprefix(run + "/") for file in storage.list_all(run)} == {
        "run.json", "history.jsonl", "summary.json", "artifact/config.json", "checkpoint_manager_snapshot.json",
        "initial/notes.txt", "checkpoint_epoch_0001/mine.txt",
    }  # fmt: skip


@pytest.mark.parametrize("assets", ["5", "null", '{"a": 1}', '[["x"], 7]', '["../artifact/config.json"]'])
def test_assets_of_another_form_cost_nothing_else(lake: str, assets: str) -> None:
    run = write_run(lake, "done", FINISHED)
    storage.write_bytes(f"{run}/initial/config.json", f'{{"assets": {assets}}}'.encode(), storage.anything)
    (found,) = leftovers.find(lake, NOBODY)
    leftovers.remove(found, NOBODY)
    assert storage.exists(f"{run}/artifact/config.json")
    assert storage.exists(f"{run}/initial/notes.txt")


@pytest.mark.parametrize("summary", [None, "", "{", "[]", "{}", '{"model_version": null}'])
def test_a_run_that_is_unfinished_unregistered_or_damaged_keeps_all(lake: str, summary: str | None) -> None:
    run = write_run(lake, "mine", summary)
    features = write_features(lake, KEY, (uses.RUN, run))
    assert needed(lake) == {f"features/{KEY}": run, "runs/mine": "it is unfinished"}
    assert [leftovers.remove(folder, NOBODY) for folder in leftovers.find(lake, NOBODY)] == [[], []]
    assert storage.exists(storage.join(features, PIECE))


def test_features_go_when_no_unfinished_run_has_marked_them(lake: str) -> None:
    going, finished = write_run(lake, "going", None), write_run(lake, "done", FINISHED)
    write_features(lake, KEY, (uses.RUN, finished), (uses.RUN, going))
    free = write_features(lake, OTHER, (uses.RUN, finished), (uses.RUN, f"{lake}/runs/removed"))
    storage.write_bytes(storage.join(free, "notes.txt"), b"somebody's own")
    storage.write_bytes(storage.join(lake, "features", "by-hand", PIECE), b"PAR1")
    assert needed(lake) == {
        f"features/{KEY}": going, f"features/{OTHER}": "", "runs/done": "", "runs/going": "it is unfinished",
    }  # fmt: skip
    (folder,) = (one for one in leftovers.find(lake, NOBODY) if one.uri == free)
    assert len(leftovers.remove(folder, NOBODY)) == 3, "the piece and two marks"
    assert [file.uri for file in storage.list_all(free)] == [storage.join(free, "notes.txt")]


def test_records_of_a_model_with_an_alias_stay(lake: str) -> None:
    for key, model in ((KEY, CHAMPION), (OTHER, "models:/translator/2")):
        folder = storage.join(lake, "evaluations", key)
        storage.write_bytes(storage.join(folder, PIECE), b"PAR1")
        uses.mark(folder, uses.MODEL, model)
    assert needed(lake, using(CHAMPION)) == {f"evaluations/{KEY}": CHAMPION, f"evaluations/{OTHER}": ""}


def test_a_damaged_mark_keeps_its_folder(lake: str) -> None:
    folder = write_features(lake, KEY)
    assert needed(lake) == {f"features/{KEY}": ""}
    mark = storage.join(folder, "_used", "0123456789abcdef.json")
    huge = b'{"kind": "run", "user": "' + b"x" * (1 << 16) + b'"}'
    for damaged in (b"{", huge):
        storage.write_bytes(mark, damaged, storage.anything)
        assert needed(lake) == {f"features/{KEY}": f"{mark}, which cannot be read"}


@pytest.mark.parametrize("user", ["http://127.0.0.1:9/runs/x", "/etc", "s3://other/runs/x", "{lake}/runs/../../x/y"])
def test_a_mark_leads_nowhere_else(lake: str, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger who can write to the bucket gains no look at other places by it."""
    folder = write_features(lake, KEY, (uses.RUN, user.format(lake=lake)))
    looked = []
    monkeypatch.setattr(storage, "exists", looked.append)
    (needed_by,) = needed(lake).values()
    assert needed_by.startswith(user.format(lake=lake))
    assert f"{folder}/_used/" in needed_by
    assert looked == []


def test_what_was_used_within_a_day_stays(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_features(lake, KEY)
    write_run(lake, "done", FINISHED)
    (free, _) = leftovers.find(lake, NOBODY)
    monkeypatch.setattr(leftovers, "_now", lambda: datetime.now(UTC) + timedelta(hours=23))
    assert set(needed(lake).values()) == {"somebody, within the last day"}
    assert leftovers.remove(free, NOBODY) == [], "it is looked at once more"
    assert storage.exists(storage.join(folder, PIECE))
