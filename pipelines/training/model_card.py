"""The model card: an artifact's README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hybrid_models import Hybrid
from pipelines.training.recipe import Recipe


def model_card(name: str, recipe: Recipe, hybrid: Hybrid, training: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """What a model is, from what it was trained, how well it did, how to use it, as Markdown.

    Args:
        name: of the run.
        recipe: what was trained and how.
        hybrid: the model.
        training: `recipe` (its name), `data`, `run`, `epoch`, and on validation data `metrics` and those of the
            `baseline`, which has a `name`.
        pictures: names of files beside the card that it shows; of an animation's two files the one that moves.
    """
    baseline = training["baseline"]
    rows = "\n".join(_row(key.removeprefix("val_"), value, baseline) for key, value in training["metrics"].items())
    config = json.dumps(asdict(recipe), indent=2)
    moving = {picture.removesuffix(".gif") for picture in pictures if picture.endswith(".gif")}
    shown = [picture for picture in pictures if not (picture.endswith(".png") and picture[:-4] in moving)]
    gallery = "".join(f"![{picture.rsplit('.', 1)[0]}]({picture})\n\n" for picture in shown)
    return f"""# {hybrid.name.capitalize()} `{name}`

Recipe `{training["recipe"]}`, trained on `{training["data"]}/train`, best of its epochs ({training["epoch"]}) by
`{recipe.train.metric}` on `{training["data"]}/val`; {sum(p.numel() for p in hybrid.parameters()):,} parameters.

| validation metric | value | {baseline.get("name", "baseline")} |
|---|---|---|
{rows}

Validation decodes the first {recipe.train.validate_samples} samples; use `hybrid evaluate` on held-out shards for
figures to report.

{gallery}```python
from pipelines.artifacts import load_hybrid

model = load_hybrid("{training["run"]}/artifact")
```

## Configuration

```json
{config}
```
"""


def _row(name: str, value: float, baseline: Mapping[str, Any]) -> str:
    beside = f"{baseline[name]:.4g}" if name in baseline else ""
    return f"| {name} | {value:.4g} | {beside} |"
