"""What a training goes on from."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybrid_models.errors import UsageError
from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import Translator, TranslatorDecoding
from pipelines import storage
from pipelines.training import checkpoints, workers
from pipelines.training.checkpoints import Interval, Progress
from pipelines.training.loop import step
from pipelines.training.recipe import Recipe, TrainConfig
from tests import tiny


@pytest.mark.parametrize(
    ("values", "higher", "best", "stale"),
    [
        ([3.0, 2.0, 2.5], False, 2.0, 1),
        ([3.0, 3.0, 3.0], False, 3.0, 2),
        ([1.0, 2.0, 3.0], True, 3.0, 0),
        ([2.0, 2.0, 1.0], True, 2.0, 2),
        ([math.nan, math.nan], False, None, 2),
        ([math.nan, 5.0, math.nan], True, 5.0, 1),
        ([5.0, math.nan, 4.0], False, 4.0, 0),
        ([5.0, math.inf, -math.inf], False, 5.0, 2),
        ([math.inf, 5.0], True, 5.0, 0),
        ([0.0], True, 0.0, 0),
        ([0.0, -1.0], True, 0.0, 1),
    ],
)
def test_judge(values: list[float], higher: bool, best: float | None, stale: int) -> None:
    progress = Progress()
    for value in values:
        progress.judge(value, higher)
    assert (progress.best, progress.stale) == (best, stale)


def test_entries_are_noted_at_their_step() -> None:
    progress = Progress(step=3)
    progress.note({"loss": 1.5})
    progress.step = 4
    progress.note({"loss": 1.0, "epoch": 1})
    assert [{key: value for key, value in entry.items() if key != "time"} for entry in progress.history] == [
        {"step": 3, "loss": 1.5},
        {"step": 4, "loss": 1.0, "epoch": 1},
    ]
    assert 1.7e12 < progress.history[0]["time"] <= progress.history[1]["time"]


class Bomb:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint after one step of a tiny translator."""
    hybrid = tiny.translator(seed=1)
    optimizer = torch.optim.AdamW(hybrid.parameters(), lr=0.1)
    torch.stack([p.sum() for p in hybrid.parameters()]).sum().backward()
    optimizer.step()
    folder = tmp_path / "checkpoint_epoch_0001"
    folder.mkdir()
    checkpoints.write_checkpoint(folder, hybrid, optimizer, Progress(epoch=1, step=7, best=2.5))
    return folder


def restore(folder: Path) -> tuple[Translator, torch.optim.Optimizer, Progress]:
    hybrid = tiny.translator(seed=2)
    optimizer = torch.optim.AdamW(hybrid.parameters(), lr=0.5)
    return hybrid, optimizer, checkpoints.load_checkpoint(hybrid, optimizer, str(folder))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "get_device", lambda: torch.device("cpu"))


@pytest.mark.usefixtures("on_cpu")
def test_a_checkpoint_holds_weights_moments_and_progress(checkpoint: Path) -> None:
    hybrid, optimizer, progress = restore(checkpoint)
    assert progress == Progress(epoch=1, step=7, best=2.5)
    fresh = tiny.translator(seed=1)
    moved = [(a - b).abs().max().item() for a, b in zip(hybrid.parameters(), fresh.parameters(), strict=True)]
    assert moved == pytest.approx([0.1] * len(moved), rel=0.1), "the weights after AdamW's first step"
    moments = optimizer.state_dict()["state"]
    assert len(moments) == len(moved)
    assert all(torch.equal(m["exp_avg"], torch.full_like(m["exp_avg"], 0.1)) for m in moments.values())


@pytest.mark.usefixtures("on_cpu")
def test_moments_of_an_optimizer_that_was_not_fused_are_those_of_one_that_is(checkpoint: Path) -> None:
    hybrid = tiny.translator(seed=2)
    optimizer = torch.optim.AdamW(hybrid.parameters(), lr=0.5, fused=True)
    checkpoints.load_checkpoint(hybrid, optimizer, str(checkpoint))
    assert {state["step"].item() for state in optimizer.state.values()} == {1.0}
    before = [p.detach().clone() for p in hybrid.parameters()]
    torch.stack([p.sum() for p in hybrid.parameters()]).sum().backward()
    step(hybrid, optimizer, 0.1, 1.0, torch.amp.GradScaler("cpu", enabled=False))
    assert not any(torch.equal(p, b) for p, b in zip(hybrid.parameters(), before, strict=True))
    assert {state["step"].item() for state in optimizer.state.values()} == {2.0}


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "progress.json"])
@pytest.mark.parametrize("damage", [cut, lambda content: b"", lambda content: b"\0" * len(content), None])
def test_a_damaged_checkpoint_is_known(name: str, damage: Callable[[bytes], bytes] | None, checkpoint: Path) -> None:
    file = checkpoint / name
    content = file.read_bytes()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage(content))
    with pytest.raises(checkpoints.DamagedError, match=rf"^{checkpoint} is damaged: "):
        restore(checkpoint)


@pytest.mark.usefixtures("on_cpu")
def test_a_pickle_in_a_checkpoint_is_not_executed(checkpoint: Path) -> None:
    exploded = checkpoint / "exploded"
    torch.save({"state": Bomb(exploded)}, checkpoint / "optimizer.pt")
    with pytest.raises(checkpoints.DamagedError, match="is damaged: Weights only load failed"):
        restore(checkpoint)
    assert not exploded.exists()
    torch.load(checkpoint / "optimizer.pt", weights_only=False)
    assert exploded.exists(), "the bomb works"


def test_checkpoints_are_named_backwards_from_the_newest(tmp_path: Path) -> None:
    for name in ("epoch_0001", "epoch_0002", "epoch_0002_1", "epoch_0003", "epoch_0010"):
        (tmp_path / f"checkpoint_{name}").mkdir()
        (tmp_path / f"checkpoint_{name}" / "progress.json").touch()
    (tmp_path / "history.jsonl").touch()
    assert [name.removeprefix("checkpoint_epoch_") for name in checkpoints.checkpoints(
        str(tmp_path), "checkpoint_epoch_0003"
    )] == ["0003", "0002_1", "0002", "0001"]  # fmt: skip
    assert Progress(epoch=2, step=80).checkpoint == "checkpoint_epoch_0002"
    assert Progress(epoch=2, step=80, fallbacks=1).checkpoint == "checkpoint_epoch_0002_1"


def test_checkpoints_within_an_epoch_are_between_those_at_its_ends(tmp_path: Path) -> None:
    places = [
        Progress(epoch=2, step=80), Progress(epoch=2, step=80, fallbacks=1), Progress(epoch=2, step=90, batches=10),
        Progress(epoch=2, step=100, batches=20), Progress(epoch=2, step=100, batches=20, fallbacks=1),
        Progress(epoch=2, step=123456789, batches=30), Progress(epoch=3, step=200),
        Progress(epoch=3, step=300, batches=9),
    ]  # fmt: skip
    names = [progress.checkpoint for progress in places]
    assert names[2] == "checkpoint_epoch_0002_step_00000090"
    assert names[4] == "checkpoint_epoch_0002_step_00000100_1"
    for name in (*names, "artifact", "checkpoint_epoch_0001_more"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.json").touch()
    assert checkpoints.checkpoints(str(tmp_path), names[-1]) == names[::-1]
    assert checkpoints.checkpoints(str(tmp_path), names[4]) == names[4::-1]
    assert checkpoints.checkpoints(str(tmp_path), "checkpoint_epoch_0002_step_00000095") == names[2::-1]


def test_an_interval_is_over_after_its_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    ten, never = Interval(10.0), Interval(0.0)
    over = []
    for seconds in (0, 599, 1, 5):
        now[0] += seconds
        over.append(ten.is_over())
    assert over == [False, False, True, True]
    ten.begin()
    assert not ten.is_over()
    assert not never.is_over()


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")])
def test_too_little_memory_is_no_damage(error: Exception, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(type(error)):
        restore(checkpoint)


@pytest.mark.parametrize(("metric", "best"), [("loss", 0.5), ("bleu", 2.0)])
def test_a_metric_that_is_no_number_never_wins(metric: str, best: float) -> None:
    recipe = Recipe("translator", TranslatorConfig(), TranslatorDecoding(), TrainConfig(metric=metric))
    values = [2.0, math.nan, 0.5, math.inf, -math.inf]
    assert max(values, key=lambda value: checkpoints.score_of(value, recipe)) == best
    for value in (math.nan, math.inf, -math.inf):
        assert json.loads(json.dumps(checkpoints.score_of(value, recipe), allow_nan=False)) == checkpoints.WORST


def test_the_first_worker_chooses_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one lists a newer checkpoint, which the first one has not seen: it takes the first one's."""
    for number in (1, 2):
        folder = tmp_path / f"checkpoint_epoch_{number:04d}"
        folder.mkdir()
        hybrid = tiny.translator(seed=number)
        optimizer = torch.optim.AdamW(hybrid.parameters())
        checkpoints.write_checkpoint(folder, hybrid, optimizer, Progress(epoch=number))
    given: list[tuple[str, str, int]] = []

    def from_chief(work: Callable[[], tuple[str, str, int]]) -> tuple[str, str, int]:
        given.append(work())
        return "checkpoint_epoch_0001", "the second one is damaged", 1

    monkeypatch.setattr(workers, "from_chief", from_chief)
    monkeypatch.setattr(checkpoints, "get_device", lambda: torch.device("cpu"))
    newest = SimpleNamespace(path=str(tmp_path / "checkpoint_epoch_0002"))
    monkeypatch.setattr(checkpoints.ray_train, "get_checkpoint", lambda: newest)
    hybrid = tiny.translator()
    task = SimpleNamespace(run=str(tmp_path), progress=None)
    progress = checkpoints.restore(hybrid, torch.optim.AdamW(hybrid.parameters()), task)  # type: ignore[arg-type]
    assert given == [("checkpoint_epoch_0002", "", 0)]
    assert (progress.epoch, progress.fallbacks) == (1, 1)
    expected = tiny.translator(seed=1).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in hybrid.state_dict().items())


# ---- what Ray knows of them, and what their folders tell ------------------------------------------------------------
LOSS = Recipe("translator", TranslatorConfig(), TranslatorDecoding(), TrainConfig(metric="loss"))


def write_run(run: Path, losses: dict[str, float]) -> None:
    """A run's checkpoints at the ends of epochs, by name, with the loss of each."""
    history: list[dict[str, float]] = []
    for number, (name, loss) in enumerate(losses.items(), 1):
        epoch = int(name.split("_")[2])
        history.append({"step": 10 * number, "time": 0, "val_loss": loss, "epoch": epoch})
        folder = run / name
        folder.mkdir(parents=True)
        hybrid = tiny.translator(seed=number)
        progress = Progress(epoch=epoch, step=10 * number, history=list(history))
        checkpoints.write_checkpoint(folder, hybrid, torch.optim.AdamW(hybrid.parameters()), progress)


def test_the_best_checkpoint_is_found_by_what_folders_tell(tmp_path: Path) -> None:
    losses = {f"checkpoint_epoch_{number:04d}": loss for number, loss in ((1, 0.5), (2, 0.3), (3, 0.3), (4, math.nan))}
    write_run(tmp_path, {**losses, "checkpoint_epoch_12000": 0.4})
    within = tmp_path / "checkpoint_epoch_0003_step_00000035"
    shutil.copytree(tmp_path / "checkpoint_epoch_0003", within)
    (tmp_path / "checkpoint_epoch_0001" / "progress.json").write_text("{")
    found = checkpoints.best_first(str(tmp_path), LOSS)
    assert [name for name, _ in found] == [
        "checkpoint_epoch_0002", "checkpoint_epoch_0003", "checkpoint_epoch_12000",
    ]  # fmt: skip
    assert found[0][1] == {"val_loss": 0.3, "epoch": 2}


@pytest.mark.parametrize("content", [None, b"", b'{"step": 1', b"[]\n"])
def test_a_history_that_is_damaged_is_the_newest_checkpoints(content: bytes | None, tmp_path: Path) -> None:
    write_run(tmp_path, {"checkpoint_epoch_0001": 0.5, "checkpoint_epoch_0002": 0.4})
    if content is not None:
        (tmp_path / "history.jsonl").write_bytes(content)
    assert [entry["val_loss"] for entry in checkpoints.history(str(tmp_path))] == [0.5, 0.4]
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n')
    assert checkpoints.history(str(tmp_path)) == [{"step": 1}]


def snapshot(*names: str) -> dict[str, Any]:
    told = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in names]
    return {"checkpoint_results": told, "latest_checkpoint_result": told[-1], "pending_training_results": []}


@pytest.mark.parametrize(
    ("content", "stays"),
    [
        (json.dumps(snapshot("checkpoint_epoch_0001", "checkpoint_epoch_0002")), True),
        (json.dumps(snapshot("checkpoint_epoch_0000", "checkpoint_epoch_0002")), False),
        (json.dumps(snapshot("checkpoint_epoch_0002"))[:60], False),
        ("", False),
        ("[]", False),
    ],
)
def test_what_ray_would_refuse_is_removed(content: str, stays: bool, tmp_path: Path) -> None:
    write_run(tmp_path, {"checkpoint_epoch_0001": 0.5, "checkpoint_epoch_0002": 0.4})
    (tmp_path / checkpoints.SNAPSHOT).write_text(content)
    (tmp_path / "run.json").write_text("{}")
    checkpoints.mend_snapshot(str(tmp_path))
    assert (tmp_path / checkpoints.SNAPSHOT).exists() == stays
    checkpoints.mend_snapshot(str(tmp_path / "nothing"))


@pytest.mark.usefixtures("on_cpu")
def test_without_rays_list_the_newest_checkpoint_that_is_whole_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And names that were used are not used again; where none is whole, all begins anew."""
    names = [f"checkpoint_epoch_{name}" for name in ("0002", "0003", "0003_1")]
    write_run(tmp_path, dict.fromkeys(names, 0.5))
    monkeypatch.setattr(workers, "from_chief", lambda work: work())
    monkeypatch.setattr(workers, "tell", lambda *_: None)
    monkeypatch.setattr(checkpoints.ray_train, "get_checkpoint", lambda: None)

    def restored() -> Progress:
        hybrid = tiny.translator()
        task = SimpleNamespace(run=str(tmp_path), progress=None)
        return checkpoints.restore(hybrid, torch.optim.AdamW(hybrid.parameters()), task)  # type: ignore[arg-type]

    assert (restored().epoch, restored().fallbacks) == (3, 0)
    for name in names[1:]:
        (tmp_path / name / "weights.safetensors").write_bytes(b"cut")
    progress = restored()
    assert (progress.epoch, progress.fallbacks) == (2, 2)
    assert replace(progress, epoch=3).checkpoint == "checkpoint_epoch_0003_2"
    (tmp_path / names[0] / "optimizer.pt").unlink()
    assert (restored().epoch, restored().fallbacks) == (0, 2)


def test_of_two_starts_of_a_run_the_older_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "is_chief", lambda: True)
    reported: list[dict[str, float]] = []
    monkeypatch.setattr(checkpoints.ray_train, "report", lambda report, **_: reported.append(report))
    hybrid = tiny.translator()
    given = (hybrid, torch.optim.AdamW(hybrid.parameters()), Progress(epoch=1, step=1, batches=1))
    task = SimpleNamespace(run=str(tmp_path / "mine"), attempt="one")
    storage.write_bytes(f"{task.run}/run.json", b"{}")
    checkpoints.save_within(*given, task)  # type: ignore[arg-type]
    storage.write_bytes(f"{task.run}/{checkpoints.ATTEMPT}", b"one")
    checkpoints.save_within(*given, task)  # type: ignore[arg-type]
    storage.write_bytes(f"{task.run}/{checkpoints.ATTEMPT}", b"another", storage.anything)
    Path(task.run, "history.jsonl").unlink()
    with pytest.raises(
        UsageError, match=r"^run 'mine' was started once more meanwhile: that start goes on, this one ends"
    ):
        checkpoints.save_within(*given, task)  # type: ignore[arg-type]
    assert len(reported) == 2
    assert not Path(task.run, "history.jsonl").exists()
