"""Recipes: named, complete configurations. `hybrid train NAME --model.x … --train.y …` overrides any field.

A file for each hybrid, and its lines in `RECIPES`. May be imported by verbs.
"""

from __future__ import annotations

from collections.abc import Callable

from jobs.recipes import captioner, nowcaster, recogniser, translator
from pipelines.training.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "captioner-coco": captioner.coco,
    "captioner-demo": captioner.demo,
    "captioner-flickr8k": captioner.flickr8k,
    "captioner-moving-scenes": captioner.moving_scenes,
    "captioner-msvd": captioner.msvd,
    "nowcaster-demo": nowcaster.demo,
    "nowcaster-kth": nowcaster.kth,
    "nowcaster-moving-mnist": nowcaster.moving_mnist,
    "nowcaster-moving-mnist-openstl": nowcaster.moving_mnist_openstl,
    "nowcaster-radar": nowcaster.radar,
    "recogniser-kth": recogniser.kth,
    "recogniser-moving-scenes": recogniser.moving_scenes,
    "translator-demo": translator.demo,
    "translator-iwslt14": translator.iwslt14,
    "translator-multi30k": translator.multi30k,
}
