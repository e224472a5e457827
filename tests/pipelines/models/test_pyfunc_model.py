import io
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hybrid_models.errors import UsageError
from pipelines.models import artifacts
from pipelines.models.artifacts import Artifact
from pipelines.models.server import default_is
from pipelines.models.tracking import Tracker
from tests import tiny

TEXTS = tiny.sentences(5, seed=8)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow with a model of each kind; its URI."""
    folder = tmp_path_factory.mktemp("pyfunc")
    uri = f"sqlite:///{folder}/mlflow.db"
    for write in (tiny.write_translator, tiny.write_captioner, tiny.write_nowcaster):
        tracker = Tracker(uri)
        tracker.start("train", {}, {})
        artifact = artifacts.read(write(str(folder / write.__name__)))
        assert tracker.register(artifact.hybrid_class.name, artifact.files) == "1"
    return uri


@pytest.fixture
def load(registered: str) -> Iterator[Callable[[str], Any]]:
    """MLflow's loader, as a notebook would call it."""
    with default_is(registered):
        yield mlflow.pyfunc.load_model


def test_a_registered_translator_predicts_from_a_data_frame(load: Callable[[str], Any]) -> None:
    model = load("models:/translator/1")
    rows = model.predict(pd.DataFrame({"text": [*TEXTS[:3], "x" * 500, *TEXTS[3:]]}))
    expected = tiny.translator().translate(TEXTS, beam_size=1, max_length=12)
    assert rows["status"].tolist() == ["ok", "ok", "ok", "error", "ok", "ok"]
    assert rows["translation"][rows["status"] == "ok"].tolist() == expected
    assert rows["source"][0] == TEXTS[0]
    assert "200" in rows["error"][3]
    assert list(rows.columns) == [
        "source", "translation", "score", "source_tokens", "target_tokens", "status", "error",
    ]  # fmt: skip

    wide = model.predict(pd.DataFrame({"en": TEXTS}), params={"beam_size": 3, "max_length": 5})
    assert wide["translation"].tolist() == tiny.translator().translate(TEXTS, beam_size=3, max_length=5)
    with pytest.raises(UsageError, match="beam_size is 0: it must be at least 1"):
        model.predict(pd.DataFrame({"en": TEXTS}), params={"beam_size": 0})


def test_a_registered_captioner_predicts_from_image_bytes(load: Callable[[str], Any]) -> None:
    model = load("models:/captioner@challenger")
    photos = [tiny.jpeg(seed) for seed in range(3)]
    rows = model.predict(pd.DataFrame({"media": [photos[0], b"no image", photos[1], photos[2]]}))
    assert rows["status"].tolist() == ["ok", "error", "ok", "ok"]
    images = [Image.open(io.BytesIO(photo)) for photo in photos]
    expected = tiny.captioner().caption(images, beam_size=1, max_length=8)
    assert rows["caption"][rows["status"] == "ok"].tolist() == expected
    assert rows["frames"][rows["status"] == "ok"].tolist() == [1, 1, 1]


def test_a_registered_nowcaster_predicts_from_arrays(load: Callable[[str], Any]) -> None:
    model = load("models:/nowcaster/1")
    past = np.random.default_rng(0).gamma(1.0, 2.0, (3, 32, 32)).astype(np.float16)
    frame = pd.DataFrame({"media": [past, past[:2]], "step_minutes": 5, "issue_time": pd.Timestamp("2026-01-31 12:00")})
    rows = model.predict(frame)
    assert rows["status"].tolist() == ["ok", "error"]
    assert "2 frames where 3 are needed" in rows["error"][1]
    assert rows["lead_minutes"][0].tolist() == [5.0, 10.0]
    assert rows["issue_time"][0] == pd.Timestamp("2026-01-31 12:00", tz="UTC")
    frames = np.frombuffer(rows["frames"][0], "<f2").reshape(rows["frames_shape"][0])
    assert frames == pytest.approx(tiny.nowcaster().nowcast(past, 2, 5), rel=1e-2, abs=1e-2)


def test_the_one_column_of_bytes_is_the_media_whatever_its_name(load: Callable[[str], Any]) -> None:
    model = load("models:/captioner/1")
    photos = [tiny.jpeg(seed) for seed in range(2)]
    named, other = (model.predict(pd.DataFrame({name: photos, "camera": "north"})) for name in ("media", "photo"))
    assert named["status"].tolist() == ["ok", "ok"]
    assert named.equals(other)
    two = model.predict(pd.DataFrame({"left": photos, "right": photos}))
    assert two["error"].tolist() == ["AmbiguousColumns: left, right are all binary; keep one"] * 2


def test_lists_are_fields(load: Callable[[str], Any]) -> None:
    """pandas gives the lists of a Parquet file as arrays, of objects, too."""
    lists = [np.array(["a", "b"], dtype=object), np.array([0.5, 1.5])]
    rows = load("models:/captioner/1").predict(pd.DataFrame({"photo": [tiny.jpeg(0)] * 2, "tags": lists}))
    assert rows["status"].tolist() == ["ok", "ok"]


def test_odd_cells_cost_their_own_row(load: Callable[[str], Any]) -> None:
    photo = tiny.jpeg(0)
    odd = [photo, bytearray(photo), memoryview(photo), np.array([["a"], [None]], dtype=object), None]
    rows = load("models:/captioner/1").predict(pd.DataFrame({"photo": pd.Series(odd, dtype=object)}))
    assert rows["status"].tolist() == ["ok", "ok", "ok", "error", "error"]
    assert len(set(rows["caption"][:3])) == 1
    texts = pd.DataFrame({"en": pd.Series([TEXTS[0], pd.NaT, pd.NA], dtype=object)})
    assert load("models:/translator/1").predict(texts)["status"].tolist() == ["ok", "error", "error"]


def test_a_model_is_loaded_once(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("models:/translator/1")
    monkeypatch.setattr(Artifact, "load", None)
    assert model.predict(pd.DataFrame({"en": TEXTS[:1]}))["status"].tolist() == ["ok"]
