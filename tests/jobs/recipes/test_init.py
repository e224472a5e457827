import json
from dataclasses import asdict

import pytest

from hybrid_models import HYBRIDS
from jobs.recipes import RECIPES
from pipelines.models import artifacts


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_possible_and_says_its_hybrid(name: str) -> None:
    recipe = RECIPES[name]()
    recipe.check()
    assert name.startswith(f"{recipe.hybrid}-")
    hybrid = HYBRIDS[recipe.hybrid]
    assert type(recipe.model) is hybrid.Config
    assert type(recipe.decoding) is hybrid.Decoding
    assert RECIPES[name].__doc__
    assert RECIPES[name]() == recipe, "a recipe is a value"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_config_json(name: str) -> None:
    recipe = RECIPES[name]()
    for part in (recipe.model, recipe.decoding, recipe.train, recipe.limits):
        again = artifacts.parse(type(part), json.loads(json.dumps(asdict(part))), "config.json")
        assert again == part
        assert type(again) is type(part)


def test_every_hybrid_has_a_recipe_for_data_that_are_made_here_and_a_real_one() -> None:
    made = ("-demo", "-moving-scenes")
    for hybrid in HYBRIDS:
        names = [name for name in RECIPES if name.startswith(f"{hybrid}-")]
        assert {name.endswith(made) for name in names} == {True, False}, hybrid


def test_directions_of_the_metrics() -> None:
    directions = {name: (RECIPES[name]().train.metric, RECIPES[name]().higher_is_better) for name in RECIPES}
    assert directions["translator-multi30k"] == ("bleu", True)
    assert directions["captioner-flickr8k"] == ("cider_d", True)
    assert directions["nowcaster-moving-mnist"] == ("mse", False)
    assert directions["nowcaster-radar"] == ("crps", False)
    assert directions["recogniser-kth"] == ("accuracy", True)
