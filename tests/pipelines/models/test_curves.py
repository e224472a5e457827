import io

import numpy as np
import pytest
from PIL import Image

from pipelines.models import curves
from tests.pipelines.models.made import share


def test_curves_are_drawn() -> None:
    history = [{"step": s, "loss": 5 - s / 10} for s in range(1, 9)] + [{"step": 8, "val_loss": 4.5, "val_bleu": 3.0}]
    persistence = {"lead_minutes": [5.0, 10.0], "csi": {"1": [0.4, 0.3]}}
    details = {"lead_minutes": [5.0, 10.0], "csi": {"1": [0.5, None]}, "baselines": {"persistence": persistence}}
    still = {"persistence": {"lead_minutes": [1.0], "mse": [0.7]}}
    video = {"lead_minutes": [1.0], "mse": [0.5], "baselines": still}
    for content, columns in (
        (curves.learning_curves(history), 2),
        (curves.lead_time_curves(details), 1),
        (curves.lead_time_curves(video), 1),
    ):
        picture = Image.open(io.BytesIO(content))
        assert picture.width == pytest.approx(columns * 320, rel=0.15)
        assert share(content, "#1f77b4") > 0.0002


def test_a_reliable_forecast_lies_on_the_diagonal() -> None:
    chances = [0.05 + i / 10 for i in range(10)]
    drawn = {}
    for name, observed in (("reliable", chances), ("wrong", chances[::-1])):
        bins = {"pixels": [10.0**i for i in range(10)], "forecast": chances, "observed": [*observed[:-1], None]}
        drawn[name] = curves.reliability_diagrams({"reliability": {"1": bins, "5": bins}})
    picture = Image.open(io.BytesIO(drawn["reliable"]))
    assert picture.width == 520
    corners = {name: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for name, content in drawn.items()}
    for name, upper_left in (("reliable", False), ("wrong", True)):
        panel = corners[name][40:120, 40:130].reshape(-1, 3)
        assert (np.abs(panel.astype(int) - [0x1F, 0x77, 0xB4]).sum(1) < 30).any() == upper_left


def test_curves_of_an_evaluation_are_those_that_its_details_allow() -> None:
    lead = {"lead_minutes": [5.0], "csi": {"1": [0.5]}}
    bins = {"pixels": [1.0] * 10, "forecast": [0.5] * 10, "observed": [0.5] * 10}
    rain = {**lead, "baselines": {"persistence": lead, "extrapolation": lead}, "reliability": {"1": bins}}
    assert sorted(curves.evaluation_curves(rain)) == ["lead-times.png", "reliability.png"]
    assert curves.evaluation_curves({"samples": 3}) == {}


def test_a_confusion_is_dark_where_most_of_a_label_went() -> None:
    names = ["runs", "walks", "$x^2"]
    right = {"labels": names, "counts": [[9, 1, 0], [0, 8, 0], [0, 0, 7]]}
    wrong = {"labels": names, "counts": [[0, 10, 0], [8, 0, 0], [7, 0, 0]]}
    drawn = {}
    for name, found in (("right", right), ("wrong", wrong)):
        (content,) = curves.evaluation_curves({"confusion": found}).values()
        drawn[name] = np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(int)
    assert curves.confusion_matrix({"labels": list(map(str, range(30))), "counts": np.eye(30).tolist()})
    many = curves.confusion_matrix({"labels": list(map(str, range(1000))), "counts": np.eye(1000).tolist()})
    assert max(Image.open(io.BytesIO(many)).size) < 2000, "it is drawn in memory, before a model is registered"
    height, width = drawn["right"].shape
    middle = (slice(height // 3, height // 2), slice(width // 2, 2 * width // 3))
    assert drawn["right"][middle].mean() < drawn["wrong"][middle].mean() - 50
