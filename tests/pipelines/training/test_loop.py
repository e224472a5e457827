import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from hybrid_models.contract import Batch, Loss
from hybrid_models.inputs import Inputs, Sample
from hybrid_models.translator.translator import Translator, TranslatorDecoding
from pipelines.training import checkpoints, loop, workers
from pipelines.training.checkpoints import Progress
from pipelines.training.loop import backward, learning_rate, step, train_epoch, validate
from pipelines.training.recipe import Recipe, TrainConfig
from tests import tiny

CONFIG = TrainConfig(learning_rate=2.0, warmup_steps=10, schedule="cosine")


# ---- schedule ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("done", "rate"),
    [
        (0, 2.0 * 0.1),
        (4, 2.0 * 0.5 * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 0.04)))),
        (9, 2.0 * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 0.09)))),
        (50, 2.0 * (0.02 + 0.98 * 0.5)),
        (100, 2.0 * 0.02),
        (150, 2.0 * 0.02),
    ],
)
def test_cosine_schedule_after_linear_warm_up(done: int, rate: float) -> None:
    assert learning_rate(done, 100, CONFIG) == pytest.approx(rate)


def test_the_rate_falls_after_the_warm_up() -> None:
    rates = [learning_rate(done, 100, CONFIG) for done in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_constant_schedule_and_no_warm_up() -> None:
    constant = replace(CONFIG, schedule="constant")
    assert [learning_rate(done, 100, constant) for done in (0, 4, 9, 50, 1000)] == pytest.approx([0.2, 1, 2, 2, 2])
    assert learning_rate(0, 100, replace(constant, warmup_steps=0)) == 2.0
    assert learning_rate(0, 0, replace(CONFIG, warmup_steps=0)) == 2.0


# ---- progress ----------------------------------------------------------------------------------------------------
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


# ---- steps: one worker, without Ray -------------------------------------------------------------------------------
@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop as its only worker runs it, on one thread: nets are too small for more."""
    torch.set_num_threads(1)
    monkeypatch.setattr(workers, "rank", lambda: 0)
    monkeypatch.setattr(workers, "world_size", lambda: 1)
    for module in (loop, workers):
        monkeypatch.setattr(module, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(workers, "tell", lambda reporter, event, progress, values: reporter.append((event, values)))


def small(start: Sequence[float]) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([list(start)])
    return layer


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 1 / 5.0), (10.0, 1.0)])
def test_a_step_clips_the_global_norm_and_uses_the_rate(clip: float, scale: float) -> None:
    layer = small([0.5, -0.5])
    layer.weight.grad = torch.tensor([[3.0, 4.0]])  # norm 5
    optimizer = torch.optim.SGD(layer.parameters(), lr=99.0)
    assert step(layer, optimizer, 0.1, clip) == pytest.approx(5.0)
    expected = [0.5 - 0.1 * 3.0 * scale, -0.5 - 0.1 * 4.0 * scale]
    assert layer.weight.tolist()[0] == pytest.approx(expected, abs=1e-5)
    assert layer.weight.grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_stop_training(value: float) -> None:
    layer = small([0.5, -0.5])
    layer.weight.grad = torch.tensor([[3.0, value]])
    with pytest.raises(FloatingPointError, match=r"lower train\.learning_rate"):
        step(layer, torch.optim.SGD(layer.parameters()), 0.1, 1.0)
    assert layer.weight.tolist() == [[0.5, -0.5]]


class Squares(nn.Module):
    """Sum of squared errors of a linear layer, with its number of terms."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = small([1.0, 2.0])

    def forward(self, batch: Batch) -> Loss:
        errors = self.layer(batch["x"]).squeeze(1) - batch["y"]
        return Loss((errors**2).sum(), torch.tensor(len(errors)))


@pytest.mark.usefixtures("alone")
def test_gradients_of_accumulated_batches_are_the_mean_of_their_means() -> None:
    rng = np.random.default_rng(0)
    batches = [
        {"x": torch.tensor(rng.normal(size=(n, 2))).float(), "y": torch.tensor(rng.normal(size=n)).float()}
        for n in (3, 5)
    ]
    model = Squares()
    losses = [backward(model, batch, 2, synchronise=last) for batch, last in zip(batches, (False, True), strict=True)]
    gradient, means = np.zeros(2), []
    for batch in batches:
        x, y = batch["x"].numpy(), batch["y"].numpy()
        errors = x @ np.array([1.0, 2.0]) - y
        gradient += (2 * errors[:, None] * x).mean(0) / 2
        means.append((errors**2).mean() / 2)
    assert model.layer.weight.grad is not None
    np.testing.assert_allclose(model.layer.weight.grad.numpy()[0], gradient, rtol=1e-5)
    assert losses == pytest.approx(means, rel=1e-5)


class Samples:
    """Prepared samples in memory."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples
        self.lengths = np.array([int(sample["length"]) for sample in samples])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


def pairs(translator: Translator, count: int, seed: int) -> Any:
    preprocess = translator.preprocess(translator.config, translator.assets)
    return Samples([preprocess(Inputs(None, {"en": text, "de": text}), True) for text in tiny.sentences(count, seed)])


@pytest.mark.usefixtures("alone")
def test_an_epoch_steps_once_for_each_group_of_batches_and_logs_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(epochs=2, batch_size=4, accumulate=3, learning_rate=1e-2, warmup_steps=4, clip_norm=1.0)
    translator = tiny.translator()
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(translator, "start_epoch", lambda *numbers: begun.append(numbers))
    optimizer = torch.optim.AdamW(translator.parameters())
    samples, progress, told = pairs(translator, 50, seed=1), Progress(), []  # type: ignore[var-annotated]
    train_epoch(translator, optimizer, samples, config, progress, told)
    assert progress.step == 4, "12 batches of at least 4"
    assert [event for event, _ in told] == ["start", "step"]
    assert told[0][1] == {"steps": 4}
    (entry,) = progress.history
    assert entry["step"] == 4
    assert entry["learning_rate"] == pytest.approx(learning_rate(3, 8, config))
    assert entry["samples_per_second"] > 0
    assert entry["gradient_norm"] > 0
    for state in optimizer.state.values():
        assert int(state["step"]) == 4

    progress.epoch = 1
    train_epoch(translator, optimizer, samples, config, progress, told)
    assert progress.step == 8
    assert progress.history[1]["loss"] < entry["loss"]
    assert begun == [(0, 2), (1, 2)]


@pytest.mark.usefixtures("alone")
def test_the_logged_loss_is_the_mean_of_the_steps_since_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def watched(*args: Any, **options: Any) -> float:
        shares.append(backward(*args, **options))
        return shares[-1]

    monkeypatch.setattr(loop, "backward", watched)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    translator, progress = tiny.translator(), Progress()
    config = TrainConfig(epochs=1, batch_size=4, accumulate=2, learning_rate=1e-2, warmup_steps=1)
    train_epoch(translator, torch.optim.AdamW(translator.parameters()), pairs(translator, 41, 1), config, progress, [])
    steps = [sum(shares[i : i + 2]) for i in range(0, 10, 2)]
    assert [entry["step"] for entry in progress.history] == [2, 4, 5]
    expected = [sum(steps[:2]) / 2, sum(steps[2:4]) / 2, steps[4]]
    assert [entry["loss"] for entry in progress.history] == pytest.approx(expected)
    assert 4.5 < steps[0] < 7.5, "near the logarithm of the vocabulary's 300 tokens"


@pytest.mark.usefixtures("alone")
def test_a_last_group_of_fewer_batches_weighs_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    monkeypatch.setattr(loop, "backward", lambda model, batch, group, synchronise: groups.append(group) or 0.0)
    monkeypatch.setattr(loop, "step", lambda *args: 0.0)
    config = TrainConfig(epochs=1, batch_size=4, accumulate=4)
    translator = tiny.translator()
    train_epoch(
        translator, torch.optim.AdamW(translator.parameters()), pairs(translator, 40, 1), config, Progress(), []
    )
    assert groups == [4] * 8 + [2] * 2


def _share_buffers(rank: int, meeting: str) -> None:
    """One of two processes, whose batch statistics differ."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    workers.world_size = lambda: 2
    norm = nn.BatchNorm1d(3)
    norm(torch.full((2, 3), float(rank)))
    norm.num_batches_tracked += rank
    workers.share_buffers(norm)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert int(norm.num_batches_tracked) == 1


def test_all_workers_validate_with_the_first_ones_batch_statistics(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_share_buffers, (str(tmp_path / "meeting"),), nprocs=2)


@pytest.mark.usefixtures("alone")
def test_an_epoch_depends_on_seed_and_epoch_only() -> None:
    def weights(config: TrainConfig, epoch: int, noise: int) -> dict[str, torch.Tensor]:
        translator = tiny.translator()
        torch.manual_seed(noise)  # whatever was drawn before
        optimizer = torch.optim.AdamW(translator.parameters())
        train_epoch(translator, optimizer, pairs(translator, 20, seed=1), config, Progress(epoch=epoch), [])
        return translator.state_dict()

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(one[name], other[name]) for name in one)

    config = TrainConfig(epochs=2, batch_size=4, warmup_steps=2)
    first = weights(config, 1, noise=1)
    assert same(first, weights(config, 1, noise=2))
    assert not same(first, weights(config, 0, noise=1))
    assert not same(first, weights(replace(config, seed=1), 1, noise=1))


@pytest.mark.usefixtures("alone")
def test_validation_is_the_mean_over_all_samples_whatever_the_batch_size() -> None:
    translator = tiny.translator()
    samples = pairs(translator, 13, seed=2)
    recipe = Recipe("translator", translator.config, TranslatorDecoding(beam_size=1, max_length=12), CONFIG)

    total = terms = 0.0
    with torch.inference_mode():
        for i in range(13):
            loss = translator.eval()(translator.collate([samples[i]]))
            total, terms = total + float(loss.total), terms + float(loss.terms)
    texts = tiny.sentences(13, 2)[:5]
    hypotheses = tiny.translator().translate(texts, beam_size=1, max_length=12)
    records = [
        {"hypothesis": h, "references": [text], "source": text} for h, text in zip(hypotheses, texts, strict=True)
    ]
    summary = Translator.summarise(records)
    expected = summary["metrics"]
    translator.train()
    for size in (1, 4, 13):
        train = replace(recipe.train, batch_size=size, validate_samples=5)
        values, judged = validate(translator, samples, replace(recipe, train=train))
        assert judged == summary
        assert values["val_loss"] == pytest.approx(total / terms, rel=2e-3)
        assert values["val_bleu"] == pytest.approx(expected["bleu"])
        assert values["val_chrf"] == pytest.approx(expected["chrf"])
        assert set(values) == {"val_loss", "val_bleu", "val_chrf"}
    assert not translator.training

    without, judged = validate(translator, samples, replace(recipe, train=replace(recipe.train, validate_samples=0)))
    assert (list(without), judged) == (["val_loss"], {})


@pytest.mark.usefixtures("alone")
def test_records_of_one_worker_come_in_the_order_of_the_samples() -> None:
    assert workers.gather([(2, {"x": 2}), (0, {"x": 0})]) == [(0, {"x": 0}), (2, {"x": 2})]
    assert workers.all_sum(torch.tensor(3.0)) == 3.0
    layer = nn.Linear(1, 1)
    assert workers.unwrap(layer) is layer


# ---- checkpoints -------------------------------------------------------------------------------------------------
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
    assert Progress(epoch=2).checkpoint == "checkpoint_epoch_0002"
    assert Progress(epoch=2, fallbacks=1).checkpoint == "checkpoint_epoch_0002_1"
