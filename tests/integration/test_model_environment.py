"""The environment of a registered model, built from what MLflow keeps with it, as a server of models builds it."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from pipelines.models import artifacts
from pipelines.models.server import default_is
from pipelines.models.tracking import Tracker
from tests import tiny

ROWS = {
    "translator": {"text": [tiny.sentences(1)[0]]},
    "captioner": {"media": [tiny.jpeg(0)]},
    "nowcaster": {
        "media": [np.ones((3, 32, 32), np.float16)],
        "step_minutes": [5],
        "issue_time": [pd.Timestamp("2026-01-31 12:00")],
    },
    "recogniser": {"media": [np.ones((4, 32, 32, 3), np.uint8)]},
}
PREDICT = """
import importlib.util, pickle, sys
from pathlib import Path
import mlflow, pandas
assert importlib.util.find_spec("pipelines") is None, "this project is not installed here"
rows = pickle.loads(Path("rows.pkl").read_bytes())
for hybrid, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    model = mlflow.pyfunc.load_model(folder)
    assert sys.modules["pipelines"].__file__.startswith(sys.argv[2]), "the code that came with the first model"
    print(hybrid, *model.predict(pandas.DataFrame(rows[hybrid]))["status"])
"""


@pytest.mark.long
def test_a_registered_model_predicts_where_only_its_requirements_are_installed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words: list[str] = []
    for hybrid in ROWS:
        tracker = Tracker(uri)
        tracker.start("train", {}, {})
        files = artifacts.read(getattr(tiny, f"write_{hybrid}")(str(tmp_path / hybrid))).files
        assert tracker.register(hybrid, files) == "1"
        target = tmp_path / f"stored-{hybrid}"
        with default_is(uri):
            words += [hybrid, mlflow.artifacts.download_artifacts(f"models:/{hybrid}/1", dst_path=str(target))]
    pd.to_pickle(ROWS, tmp_path / "rows.pkl")

    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env.setdefault("UV_FIND_LINKS", env.get("PIP_FIND_LINKS", ""))
    uv, python = str(Path(sys.executable).with_name("uv")), str(tmp_path / "venv" / "bin" / "python")

    def done(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

    done(uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv"))
    done(uv, "pip", "install", "--quiet", "--python", python, "-r", f"{words[1]}/requirements.txt")
    installed = done(uv, "pip", "freeze", "--python", python)
    assert "mlflow==" in installed
    assert "hybrid" not in installed
    assert done(python, "-c", PREDICT, *words).split("\n")[:-1] == [f"{hybrid} ok" for hybrid in ROWS]
