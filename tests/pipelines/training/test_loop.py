import contextlib
import json
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from hybrid_models import contract, shapes
from hybrid_models.contract import Batch, Hybrid, Loss
from hybrid_models.inputs import Inputs, Sample
from hybrid_models.translator.translator import Translator, TranslatorDecoding
from pipelines.staging.prepared import SampleIndex
from pipelines.training import checkpoints, failures, loop, workers
from pipelines.training.batches import plan_epoch, share
from pipelines.training.checkpoints import Progress
from pipelines.training.loop import Within, backward, learning_rate, make_optimizer, step, train_epoch, validate
from pipelines.training.recipe import Kind, Recipe, TrainConfig
from pipelines.training.runs import TrainTask
from tests import tiny
from tests.hybrid_models.captioner import test_captioner
from tests.hybrid_models.nowcaster import test_nowcaster
from tests.hybrid_models.recogniser import test_recogniser
from tests.hybrid_models.translator import test_translator
from tests.waits import Waits

UNSCALED = torch.amp.GradScaler("cpu", enabled=False)
CONFIG = TrainConfig(learning_rate=2.0, warmup_steps=10, schedule="cosine")
never = Within(lambda: False, lambda: None)
NOT_DUE = torch.tensor(0.0)


# ---- schedule ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("done", "rate"),
    [
        (0, 2.0 * 0.1),
        (4, 2.0 * 0.5),
        (9, 2.0),
        (10, 2.0 * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi / 90)))),
        (54, 2.0 * (0.02 + 0.98 * 0.5)),
        (99, 2.0 * 0.02),
        (150, 2.0 * 0.02),
    ],
)
def test_cosine_schedule_after_linear_warm_up(done: int, rate: float) -> None:
    assert learning_rate(done, 100, CONFIG) == pytest.approx(rate)


@pytest.mark.parametrize("warm_up", [1, 10, 99, 100])
def test_the_rate_peaks_at_the_end_of_the_warm_up(warm_up: int) -> None:
    rates = [learning_rate(done, 100, replace(CONFIG, warmup_steps=warm_up)) for done in range(100)]
    assert rates[:warm_up] == sorted(rates[:warm_up])
    assert rates[warm_up - 1] == max(rates) == 2.0
    assert rates[warm_up - 1 :] == sorted(rates[warm_up - 1 :], reverse=True)


def test_constant_schedule_and_no_warm_up() -> None:
    constant = replace(CONFIG, schedule="constant")
    assert [learning_rate(done, 100, constant) for done in (0, 4, 9, 50, 1000)] == pytest.approx([0.2, 1, 2, 2, 2])
    assert learning_rate(0, 100, replace(constant, warmup_steps=0)) == 2.0
    assert learning_rate(0, 0, replace(CONFIG, warmup_steps=0)) == 2.0


# ---- progress ----------------------------------------------------------------------------------------------------


# ---- steps: one worker, without Ray -------------------------------------------------------------------------------
def small(start: Sequence[float]) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([list(start)])
    return layer


@pytest.mark.parametrize(("clip", "scale"), [(1.0, 1 / 5.0), (10.0, 1.0)])
def test_a_step_clips_the_global_norm_and_uses_the_rate(clip: float, scale: float) -> None:
    layer = small([0.5, -0.5])
    layer.weight.grad = torch.tensor([[3.0, 4.0]])  # norm 5
    optimizer = torch.optim.SGD(layer.parameters(), lr=99.0, fused=True)
    assert step(layer, optimizer, 0.1, clip, UNSCALED).item() == pytest.approx(5.0)
    expected = [0.5 - 0.1 * 3.0 * scale, -0.5 - 0.1 * 4.0 * scale]
    assert layer.weight.tolist()[0] == pytest.approx(expected, abs=1e-5)
    assert layer.weight.grad is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_stop_training(value: float) -> None:
    layer = small([0.5, -0.5])
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    norms = []
    for number, second in enumerate((4.0, value, 4.0)):
        before = layer.weight.tolist()
        layer.weight.grad = torch.tensor([[3.0, second]])
        norms.append(step(layer, optimizer, 0.1, 1.0, UNSCALED))
        assert (layer.weight.tolist() == before) is (number == 1), "nothing but finite gradients changes weights"
    assert layer.weight.isfinite().all()
    shares = [torch.tensor(7.0)] * 3
    with pytest.raises(FloatingPointError, match=r"lower `train\.learning_rate`"):
        loop.look(shares, norms, UNSCALED, NOT_DUE)
    assert loop.look(shares, norms[2:], UNSCALED, NOT_DUE) == ({"loss": 21.0, "gradient_norm": 5.0}, {}, False)
    assert loop.look(shares, norms[2:], UNSCALED, NOT_DUE + 1)[2]


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
    losses = [
        backward(model, batch, 2, UNSCALED, synchronise=last).item()
        for batch, last in zip(batches, (False, True), strict=True)
    ]
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
    """Prepared samples in memory, whose files hold them in an order of their own; only those fetched are given."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples, self.fetched = samples, set[int]()
        places, lengths = np.random.default_rng(9).permutation(len(samples)), [int(each["length"]) for each in samples]
        self.index = SampleIndex([], np.array([0, len(samples)]), places, np.array(lengths))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Sample:
        assert number in self.fetched
        return self._samples[number]

    def fetch(self, numbers: np.ndarray) -> None:
        """These can be read now."""
        self.fetched |= set(numbers.tolist())


def pairs(translator: Translator, count: int, seed: int) -> Any:
    preprocess = translator.preprocess(translator.config, translator.assets)
    return Samples([preprocess(Inputs(None, {"en": text, "de": text}), True) for text in tiny.sentences(count, seed)])


@pytest.mark.usefixtures("alone")
def test_an_epoch_steps_once_for_each_group_of_batches_and_logs_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(epochs=2, batch_size=4, accumulate=3, learning_rate=1e-2, warmup_steps=4, clip_norm=1.0)
    translator = tiny.translator()
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(translator, "start_epoch", lambda *numbers: begun.append(numbers))
    optimizer = torch.optim.AdamW(translator.parameters(), fused=True)
    samples, progress, told = pairs(translator, 50, seed=1), Progress(), []  # type: ignore[var-annotated]
    train_epoch(translator, optimizer, samples, config, progress, told, never)
    assert progress.step == 4, "12 batches of at least 4"
    assert [event for event, _ in told] == ["start", "step"]
    assert told[0][1] == {"steps": 4, "done": 0}
    (entry,) = progress.history
    assert entry["step"] == 4
    assert entry["learning_rate"] == pytest.approx(learning_rate(3, 8, config))
    assert entry["samples_per_second"] > 0
    assert entry["gradient_norm"] > 0
    for state in optimizer.state.values():
        assert int(state["step"]) == 4

    progress.epoch = 1
    train_epoch(translator, optimizer, samples, config, progress, told, never)
    assert progress.step == 8
    assert progress.history[1]["loss"] < entry["loss"]
    assert begun == [(0, 2), (1, 2)]


@pytest.mark.usefixtures("alone")
def test_the_logged_loss_is_the_mean_of_the_steps_since_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        share = backward(*args, **options)
        shares.append(share.item())
        return share

    monkeypatch.setattr(loop, "backward", watched)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    translator, progress = tiny.translator(), Progress()
    config = TrainConfig(epochs=1, batch_size=4, accumulate=2, learning_rate=1e-2, warmup_steps=1)
    optimizer = torch.optim.AdamW(translator.parameters(), fused=True)
    train_epoch(translator, optimizer, pairs(translator, 41, 1), config, progress, [], never)
    steps = [sum(shares[i : i + 2]) for i in range(0, 10, 2)]
    assert [entry["step"] for entry in progress.history] == [2, 4, 5]
    expected = [sum(steps[:2]) / 2, sum(steps[2:4]) / 2, steps[4]]
    assert [entry["loss"] for entry in progress.history] == pytest.approx(expected)
    assert 4.5 < steps[0] < 7.5, "near the logarithm of the vocabulary's 300 tokens"


@pytest.mark.usefixtures("alone")
def test_the_next_batch_is_made_beside_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thread: a GPU would wait for it."""
    translator, config = tiny.translator(), TrainConfig(epochs=1, batch_size=4, learning_rate=1e-2, warmup_steps=1)
    optimizer = torch.optim.AdamW(translator.parameters(), fused=True)
    makers: list[int] = []
    in_time: list[bool] = []
    changed = threading.Condition()
    collate = translator.collate

    def making(*args: Any) -> Batch:
        batch = collate(*args)
        with changed:
            makers.append(threading.get_ident())
            changed.notify_all()
        return batch

    def beside(*args: Any, **options: Any) -> torch.Tensor:
        with changed:
            wanted = min(len(in_time) + 2, 10)
            in_time.append(changed.wait_for(lambda: len(makers) >= wanted, 60))
        return backward(*args, **options)

    monkeypatch.setattr(translator, "collate", making)
    monkeypatch.setattr(loop, "backward", beside)
    train_epoch(translator, optimizer, pairs(translator, 40, 1), config, Progress(), [], never)
    assert in_time == [True] * 10
    assert len(makers) == 10
    assert threading.get_ident() not in makers


def some_of(name: str) -> tuple[Hybrid, list[Sample]]:
    """A tiny model with some of its samples; of captioners, one that trains its encoder on clips, too."""
    if name == "translator":
        translator = tiny.translator()
        return translator, test_translator.samples_of(translator)
    if name == "captioner":
        captioner = test_captioner.build()
        return captioner, captioner.featurize(test_captioner.samples_of(captioner))
    if name == "captioner on rewards":
        rewarded = test_captioner.build(reward_share=0.5)
        return rewarded, rewarded.featurize(test_captioner.samples_of(rewarded))
    if name == "captioner of clips":
        watching = test_captioner.build(**test_captioner.TRAINED, temporal="lstm")
        return watching, test_captioner.samples_of(watching, frames=3)
    if name == "nowcaster":
        nowcaster = tiny.nowcaster()
        return nowcaster, [test_nowcaster.sample_of(test_nowcaster.shower(8), nowcaster.config)] * 4
    recogniser = test_recogniser.build(**test_recogniser.TRAINED)
    return recogniser, test_recogniser.samples_of(recogniser)


FORMS = ["translator", "captioner", "captioner of clips", "nowcaster", "recogniser"]


def waits_of_twenty_steps(name: str, epoch: int, kind: Kind = "adamw") -> int:
    """How often a second epoch's or a first one's steps, of two samples each, wait for their device."""
    hybrid, samples = some_of(name)
    config = TrainConfig(epochs=2, batch_size=2, optimizer=kind, learning_rate=1e-3, warmup_steps=1)
    optimizer = make_optimizer(hybrid, config)
    many = Samples([{"length": np.array(1), **sample} for sample in (samples * 40)[:40]])
    progress = Progress(epoch=epoch)
    with Waits() as waits:
        train_epoch(hybrid, optimizer, many, config, progress, [], never)  # type: ignore[arg-type]
    assert progress.step == 20
    return waits.count


@pytest.mark.parametrize("together", [True, False])
def test_a_failure_of_a_worker_that_has_lost_the_others_is_not_kept(
    together: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray parts the workers, then ends them, when their number is to change: what follows from that comes no more."""

    def train(task: TrainTask) -> None:
        raise ValueError("Default process group has not been initialized, please make sure to call init_process_group.")

    monkeypatch.setattr(loop, "_train", train)
    monkeypatch.setattr(workers, "world_size", lambda: 2)
    monkeypatch.setattr(workers.dist, "is_initialized", lambda: together)
    task = SimpleNamespace(run=str(tmp_path), attempt="one")
    with pytest.raises(ValueError, match="Default process group"):
        loop.train_worker(task)  # type: ignore[arg-type]
    assert (failures.kept(task.run, task.attempt) is not None) == together


@pytest.mark.parametrize(
    ("failure", "removed"),
    [(None, True), (RuntimeError("Connection closed by peer"), False), (FloatingPointError("not finite"), True)],
)
def test_a_nodes_samples_stay_for_who_is_started_in_a_workers_place(
    failure: Exception | None, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[str] = []

    def fail(*_: object) -> None:
        if failure is not None:
            raise failure

    class Samples:
        def __init__(self, index: str, run: str) -> None:
            self.index = index

        def remove(self) -> None:
            copies.append(self.index)

    monkeypatch.setattr(loop, "PreparedSamples", Samples)
    monkeypatch.setattr(loop, "train_epochs", fail)
    monkeypatch.setattr(loop, "restore", lambda *_: None)
    monkeypatch.setattr(loop, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(loop, "prepare_model", lambda model, **_: model)
    monkeypatch.setattr(loop.ray, "get", lambda ref: ref)
    monkeypatch.setattr(loop.ray_train, "get_context", lambda: SimpleNamespace(get_local_rank=lambda: 0))
    monkeypatch.setattr(workers, "world_size", lambda: 1)
    config = SimpleNamespace(optimizer="adamw", learning_rate=0.1, weight_decay=0.0)
    task = SimpleNamespace(
        recipe=SimpleNamespace(train=config), threads=1, initial=SimpleNamespace(load=tiny.translator),
        train="train", val="val", run="run",
    )  # fmt: skip
    with pytest.raises(type(failure)) if failure else contextlib.nullcontext():
        loop._train(task)  # type: ignore[arg-type]
    assert copies == (["train", "val"] if removed else [])


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("half", [None, torch.float16])
@pytest.mark.parametrize("name", [*FORMS, "captioner on rewards"])
def test_training_waits_for_its_device_every_tenth_step_only(
    name: str, half: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On rewards in its second epoch."""
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    if half is not None:
        monkeypatch.setattr("hybrid_models.contract.half_type", lambda device: half)
        monkeypatch.setattr(loop, "half_type", lambda device: half)
    assert waits_of_twenty_steps(name, epoch=1) == 2


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", FORMS)
def test_muon_waits_no_more_than_adamw(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "has_shapes", lambda device: True)
    assert waits_of_twenty_steps(name, epoch=1, kind="muon") == 2


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["translator", "captioner", "nowcaster"])
def test_validation_waits_for_its_loss_once(name: str) -> None:
    """The nets over clips are not among them: in inference mode their LSTM in bfloat16 cannot be taken apart."""
    hybrid, samples = some_of(name)
    many: Any = Samples([{"length": np.array(1), **sample} for sample in (samples * 40)[:40]])
    config = TrainConfig(batch_size=2, validate_samples=0)
    with Waits() as waits:
        values, _ = validate(hybrid, many, Recipe(name, hybrid.config, hybrid.decoding, config))
    assert math.isfinite(values["val_loss"])
    assert waits.count == 1


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ["translator", "captioner", "captioner of clips", "nowcaster", "recogniser"])
def test_in_float16_a_hybrid_learns_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs that have tensor cores for nothing better; a CPU computes in it, too, though slowly."""
    config = TrainConfig(epochs=1, batch_size=2, learning_rate=1e-3, warmup_steps=1)

    def trained(kind: torch.dtype | None) -> tuple[list[float], Progress, list[Any]]:
        monkeypatch.setattr("hybrid_models.contract.half_type", lambda device: kind)
        monkeypatch.setattr(loop, "half_type", lambda device: kind)
        hybrid, samples = some_of(name)
        optimizer = torch.optim.AdamW([p for p in hybrid.parameters() if p.requires_grad], fused=True)
        many = Samples([{"length": np.array(1), **sample} for sample in (samples * 40)[:40]])
        progress = Progress()
        train_epoch(hybrid, optimizer, many, config, progress, [], never)  # type: ignore[arg-type]
        with torch.inference_mode():
            predicted = hybrid.eval().predict(hybrid.collate(samples[:2]), hybrid.decoding)
        return [entry["loss"] for entry in progress.history], progress, predicted

    whole, plain, _ = trained(None)
    half, scaled, predicted = trained(torch.float16)
    assert len(predicted) == 2
    assert half == pytest.approx(whole, rel=0.05)
    assert plain.scale == {}
    assert 1 <= scaled.scale["scale"] <= 2.0**16
    assert loop.scaler_of(torch.device("cpu"), scaled.scale, True).state_dict().items() >= scaled.scale.items()


def test_scaled_gradients_are_those_without_a_scale_and_too_large_a_scale_shrinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "half_type", lambda device: torch.float16)
    scaler = loop.scaler_of(torch.device("cpu"), {}, True)
    layers = [small([0.5, -0.5]) for _ in range(2)]
    for layer, own in zip(layers, (UNSCALED, scaler), strict=True):
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        own.scale((layer.weight * torch.tensor([[3.0, 4.0]])).sum()).backward()
        assert step(layer, optimizer, 0.1, 1.0, own).item() == pytest.approx(5.0)
    assert torch.equal(layers[0].weight, layers[1].weight)
    before = scaler.get_scale()
    norms = []
    for value in (math.inf, 1.0):
        scaler.scale((layers[1].weight * value).sum()).backward()
        norms.append(step(layers[1], optimizer, 0.1, 1.0, scaler))
    assert scaler.get_scale() == before / 2
    shares = [torch.tensor(7.0)] * 2
    state = {name: scaler.state_dict()[name] for name in ("scale", "_growth_tracker")}
    assert state == {"scale": before / 2, "_growth_tracker": 1}
    said = {"loss": 7.0, "gradient_norm": pytest.approx(norms[1].item())}
    assert loop.look(shares, norms, scaler, NOT_DUE) == (said, state, False)
    assert loop.look(shares[:1], norms[:1], scaler, NOT_DUE) == ({"loss": 7.0}, state, False), "until the scale fits"
    with pytest.raises(FloatingPointError):
        loop.look([torch.tensor(math.nan)] * 2, norms[1:] * 2, scaler, NOT_DUE)
    scaler.update(0.5)
    with pytest.raises(FloatingPointError):
        loop.look(shares, norms, scaler, NOT_DUE)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("count", [2, 22])
def test_an_epoch_in_float16_may_end_with_a_step_that_is_left_out(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid_models.contract.half_type", lambda device: torch.float16)
    monkeypatch.setattr(loop, "half_type", lambda device: torch.float16)
    hybrid, samples = some_of("translator")
    optimizer = torch.optim.AdamW(hybrid.parameters(), fused=True)
    many = Samples([{"length": np.array(1), **sample} for sample in (samples * count)[:count]])
    progress = Progress(scale={**torch.amp.GradScaler("cpu").state_dict(), "scale": 2.0**60})
    config = TrainConfig(epochs=1, batch_size=2, learning_rate=1e-3, warmup_steps=1)
    train_epoch(hybrid, optimizer, many, config, progress, [], never)  # type: ignore[arg-type]
    assert progress.scale["scale"] == 2.0 ** (60 - count // 2), "halved by each of its steps"
    assert all(math.isfinite(value) for entry in progress.history for value in entry.values())


@pytest.mark.usefixtures("alone")
def test_a_last_group_of_fewer_batches_weighs_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    nothing = torch.tensor(0.0)
    monkeypatch.setattr(
        loop, "backward", lambda model, batch, group, scaler, synchronise: groups.append(group) or nothing
    )
    monkeypatch.setattr(loop, "step", lambda *args: nothing)
    config = TrainConfig(epochs=1, batch_size=4, accumulate=4)
    translator = tiny.translator()
    optimizer = torch.optim.AdamW(translator.parameters(), fused=True)
    train_epoch(translator, optimizer, pairs(translator, 40, 1), config, Progress(), [], never)
    assert groups == [4] * 8 + [2] * 2


@pytest.mark.usefixtures("alone")
def test_an_epoch_depends_on_seed_and_epoch_only() -> None:
    def weights(config: TrainConfig, epoch: int, noise: int) -> dict[str, torch.Tensor]:
        translator = tiny.translator()
        torch.manual_seed(noise)  # whatever was drawn before
        optimizer = torch.optim.AdamW(translator.parameters(), fused=True)
        train_epoch(translator, optimizer, pairs(translator, 20, seed=1), config, Progress(epoch=epoch), [], never)
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
    samples.fetch(np.arange(13))
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
    samples.fetched.clear()
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


@pytest.mark.parametrize("together", [1, 2, 3])
def test_workers_validate_each_sample_once_and_decode_equally_many(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples: Any = pairs(tiny.translator(), 41, seed=2)
    lengths, places = samples.index.lengths, samples.index.places
    monkeypatch.setattr(workers, "world_size", lambda: together)
    found = []
    for rank in range(together):
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        mine = loop._validated(samples, 10)
        assert lengths[mine].tolist() == sorted(lengths[mine].tolist())
        assert sorted(mine[mine < 10].tolist()) == list(range(rank, 10, together))
        found.append(mine)
    assert sorted(np.concatenate(found).tolist()) == list(range(41))
    ends = [(places[mine[mine >= 10]].min(), places[mine[mine >= 10]].max()) for mine in found]
    assert all(last < first for (_, last), (first, _) in pairwise(ends)), "neighbours in the files"


# ---- checkpoints within an epoch ---------------------------------------------------------------------------------
def entries(progress: Progress) -> list[dict[str, float]]:
    """The history without what differs from machine to machine."""
    noisy = ("time", "samples_per_second")
    return [{key: value for key, value in entry.items() if key not in noisy} for entry in progress.history]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("name", [*FORMS, "captioner on rewards"])
def test_an_epoch_goes_on_from_its_middle_to_the_last_bit(
    name: str, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, augmentation and drawn captions, whatever was drawn before; gradients of two batches a step."""
    monkeypatch.setattr(checkpoints, "get_device", lambda: torch.device("cpu"))
    config = TrainConfig(epochs=2, batch_size=2, optimizer=kind, accumulate=2, learning_rate=1e-2, warmup_steps=1)

    def begun() -> tuple[Hybrid, torch.optim.Optimizer, Any]:
        hybrid, samples = some_of(name)
        optimizer = make_optimizer(hybrid, config)
        return hybrid, optimizer, Samples([{"length": np.array(1), **sample} for sample in (samples * 50)[:50]])

    def keep() -> None:
        checkpoints.write_checkpoint(tmp_path, hybrid, optimizer, progress)

    hybrid, optimizer, samples = begun()
    progress = Progress(epoch=1)
    train_epoch(hybrid, optimizer, samples, config, progress, [], Within(lambda: True, keep))
    assert (progress.step, progress.batches) == (13, 0)

    again, moments, samples = begun()
    resumed = checkpoints.load_checkpoint(again, moments, str(tmp_path))
    assert (resumed.epoch, resumed.step, resumed.batches) == (1, 10, 20)
    assert entries(resumed) == entries(progress)[:1]
    torch.manual_seed(99)
    told: list[tuple[str, dict[str, float]]] = []
    train_epoch(again, moments, samples, config, resumed, told, never)
    assert told[0] == ("start", {"steps": 13, "done": 5 * 2})
    assert entries(resumed) == entries(progress)
    expected = hybrid.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items()), "bit for bit"
    for one, other in zip(optimizer.state.values(), moments.state.values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("alone")
def test_a_checkpoint_of_a_version_that_had_none_within_epochs_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "get_device", lambda: torch.device("cpu"))
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, warmup_steps=1)
    nets = [tiny.translator() for _ in range(2)]
    optimizers = [torch.optim.AdamW(net.parameters(), fused=True) for net in nets]
    samples, progress = pairs(nets[0], 20, seed=1), Progress()
    train_epoch(nets[0], optimizers[0], samples, config, progress, [], never)
    checkpoints.write_checkpoint(tmp_path, nets[0], optimizers[0], progress)
    earlier = {"epoch": 1, "step": 5, "best": 2.5, "stale": 0, "history": progress.history, "fallbacks": 0}
    (tmp_path / "progress.json").write_text(json.dumps(earlier))
    resumed = checkpoints.load_checkpoint(nets[1], optimizers[1], str(tmp_path))
    assert (resumed.epoch, resumed.step, resumed.batches) == (1, 5, 0)
    progress.epoch = 1
    for net, optimizer, place in zip(nets, optimizers, (progress, resumed), strict=True):
        train_epoch(net, optimizer, samples, config, place, [], never)
    expected = nets[0].state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in nets[1].state_dict().items())


class StoppedError(Exception):
    """The end of a worker in the middle of an epoch."""


GROUPS = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-2, warmup_steps=5, seed=3)
STEPS, LEFT = 33, {"first": (0, 10, 12), "second": (10, 20, 25), "third": (20, 0, 33)}
"""Steps of an epoch; of three workers' groups, one after another: where each begins, which checkpoint it leaves, and
the last step that it makes."""


def numbered(count: int) -> tuple[Translator, Any]:
    """A translator without dropout, and pairs for it, whose batches hold the numbers of their samples."""
    translator = tiny.translator()
    translator.config = replace(translator.config, dropout=0.0)
    for module in translator.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    samples = pairs(translator, count, seed=1)
    samples.fetch(np.arange(count))
    for number in range(count):
        samples[number]["number"] = np.array(number)
    samples.fetched.clear()
    collate = translator.collate

    def with_numbers(members: Sequence[Sample], rng: np.random.Generator | None = None) -> Batch:
        return {**collate(members, rng), "number": torch.tensor([int(member["number"]) for member in members])}

    translator.collate = with_numbers  # type: ignore[method-assign]
    return translator, samples


def _group(rank: int, together: int, part: str, folder: str) -> None:
    """A worker of a group: goes on from the checkpoint there is, notes what each step saw, leaves one, and stops."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/{part}", rank=rank, world_size=together)
    torch.set_num_threads(1)
    workers.world_size, workers.rank = lambda: together, lambda: rank
    workers.tell = lambda *args: None
    for module in (workers, loop, checkpoints):
        module.get_device = lambda: torch.device("cpu")
    contract.bf16_is_fast = lambda device: False
    first, kept, last = LEFT[part]
    translator, samples = numbered(265)
    optimizer = torch.optim.AdamW(translator.parameters(), fused=True)
    progress = checkpoints.load_checkpoint(translator, optimizer, f"{folder}/kept") if first else Progress()
    assert progress.step == progress.batches == first
    seen: list[list[int]] = []
    translator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]["number"].tolist()))

    def is_due() -> bool:
        assert rank == 0, "of the first worker's clock"
        return progress.step == kept

    def keep() -> None:
        assert progress.step == kept
        if rank == 0:
            Path(folder, "kept").mkdir(exist_ok=True)
            checkpoints.write_checkpoint(Path(folder, "kept"), translator, optimizer, progress)
        Path(folder, f"{part}-{rank}.kept").touch()

    def step_or_stop(*args: Any) -> torch.Tensor:
        if first + len(seen) > last:
            raise StoppedError
        return made(*args)

    made, loop.step = loop.step, step_or_stop
    model = nn.parallel.DistributedDataParallel(translator) if together > 1 else translator
    with contextlib.suppress(StoppedError):
        train_epoch(model, optimizer, samples, GROUPS, progress, None, Within(is_due, keep))
    Path(folder, f"{part}-{rank}.json").write_text(json.dumps({"seen": seen, "history": entries(progress)}))


@pytest.mark.usefixtures("alone")
def test_two_workers_then_one_then_two_see_each_sample_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group is lost some steps after its checkpoint, and the next one goes on from there: they learn what one
    worker does that nobody disturbs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part, together in (("first", 2), ("second", 1), ("third", 2)):
        torch.multiprocessing.spawn(_group, (together, part, str(tmp_path)), nprocs=together)
        found[part] = [json.loads((tmp_path / f"{part}-{rank}.json").read_text()) for rank in range(together)]
    translator, samples = numbered(265)
    plan = [batch.tolist() for batch in plan_epoch(samples.index.lengths, 8, seed=3, epoch=0)]
    assert len(plan) == STEPS
    assert sorted(number for batch in plan for number in batch) == list(range(265))
    for part, (first, _, last) in LEFT.items():
        shares = [worker["seen"] for worker in found[part]]
        for number, batch in enumerate(plan[first:last]):
            mine = [own[number] for own in shares]
            assert sorted(n for own in mine for n in own) == sorted(batch), "the plan's batch, whoever is there"
            assert mine == [
                share(np.array(batch), samples.index.places, rank, len(shares)).tolist() for rank in range(len(shares))
            ]
    kept = {"first-0.kept", "first-1.kept", "second-0.kept"}
    assert {path.name for path in tmp_path.glob("*.kept")} == kept, "all make one when the first worker's is due"
    history = found["third"][0]["history"]
    assert [entry["step"] for entry in history] == [10, 20, 30, 33], "no step is repeated or missing"
    assert found["third"][1]["history"] == history
    monkeypatch.setattr(contract, "bf16_is_fast", lambda device: False)
    optimizer, undisturbed = torch.optim.AdamW(translator.parameters(), fused=True), Progress()
    train_epoch(translator, optimizer, samples, GROUPS, undisturbed, [], never)
    for key in ("loss", "gradient_norm"):
        assert [entry[key] for entry in history] == pytest.approx(
            [entry[key] for entry in undisturbed.history], rel=1e-3
        )
