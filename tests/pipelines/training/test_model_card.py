from hybrid_models.translator.config import TranslatorConfig
from hybrid_models.translator.translator import TranslatorDecoding
from pipelines.training.model_card import model_card
from pipelines.training.recipe import Recipe, TrainConfig
from tests import tiny

TRAINING = {"recipe": "translator-demo", "data": "s3://lake/pairs", "run": "s3://lake/runs/x", "epoch": 3,
            "metrics": {"val_bleu": 31.256, "val_loss": 1.5},
            "baseline": {"name": "copy the source", "bleu": 0.5}}  # fmt: skip
RECIPE = Recipe("translator", TranslatorConfig(), TranslatorDecoding(), TrainConfig(metric="bleu", validate_samples=77))


def test_a_card_says_what_the_model_is_and_how_well_it_does() -> None:
    hybrid = tiny.translator()
    card = model_card("x", RECIPE, hybrid, TRAINING, [])
    assert card.startswith("# Translator `x`\n\nRecipe `translator-demo`, trained on `s3://lake/pairs/train`")
    assert "| validation metric | value | copy the source |\n" in card
    assert "| bleu | 31.26 | 0.5 |\n| loss | 1.5 |  |" in card
    assert f"{sum(p.numel() for p in hybrid.parameters()):,} parameters" in card
    assert "decodes the first 77 samples" in card
    assert 'load_hybrid("s3://lake/runs/x/artifact")' in card
    assert '"validate_samples": 77' in card
    assert "![" not in card


def test_a_card_shows_pictures_and_of_an_animation_the_one_that_moves() -> None:
    files = ["learning-curves.png", "example-1.png", "example-1.gif", "example-2.png"]
    card = model_card("x", RECIPE, tiny.translator(), TRAINING, files)
    assert [line for line in card.splitlines() if line.startswith("![")] == [
        "![learning-curves](learning-curves.png)", "![example-1](example-1.gif)", "![example-2](example-2.png)",
    ]  # fmt: skip
