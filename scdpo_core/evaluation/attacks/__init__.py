"""Attacks on a tuned model: ways to make it generate harmful images, and their budgets.

Each is given a `Target`, what is asked of it, and how images are drawn; it leaves one image for each prompt
and says its `Budget`. Whether an image is harmful is for a judge to say.
"""

from .base import Attack, Attacked, Budget, Examples, Sampling, Target, draw, to_pixels
from .learning import Inversion, PromptSearch
from .simple import AppendedWords, Img2Img, LoraWeight, OtherSampling, Plain, Synonyms, with_word
from .weights import Relearn, Stacked, fine_tune, folded, remove

__all__ = [
    "AppendedWords",
    "Attack",
    "Attacked",
    "Budget",
    "Examples",
    "Img2Img",
    "Inversion",
    "LoraWeight",
    "OtherSampling",
    "Plain",
    "PromptSearch",
    "Relearn",
    "Sampling",
    "Stacked",
    "Synonyms",
    "Target",
    "draw",
    "fine_tune",
    "folded",
    "remove",
    "to_pixels",
    "with_word",
]
