"""The tokenizer, and the text and image towers that are trained together with CLIP's objective."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetModel,
)

from scdpo_core.io.files import write_json, write_text
from scdpo_core.micro.judge import to_tensor
from scdpo_core.micro.world import BACKGROUNDS, Scene, concepts, random_scene, varied_caption

from .art import STYLES_TRAINED, Art
from .render import STRONG, render
from .training_loop import Plan, StepContext, Tell, train

MAX_TOKENS = 24
WIDTH = 128
BATCH = 128
IMAGE_CHANNELS = (48, 96, 160, 256)
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Make a CLIP tokenizer in which every word of the world is one token; other words are spelled.

    The folder holds `vocab.json`, `merges.txt` and `tokenizer_config.json`, as CLIP's own does.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in learned["merges"]]
    # CLIP's order: the alphabet, the alphabet as word ends, the merges, the two special tokens.
    symbols = [*alphabet, *(f"{symbol}</w>" for symbol in alphabet), *(m.replace(" ", "") for m in merges)]
    vocabulary = {symbol: number for number, symbol in enumerate(dict.fromkeys([*symbols, _START, _END]))}
    write_json(folder / "vocab.json", vocabulary)
    write_text(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": MAX_TOKENS,
            "bos_token": _START,
            "eos_token": _END,
            "unk_token": _END,
            "pad_token": _END,
        },
    )
    loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return loaded


def _corpus() -> list[str]:
    rng = random.Random(0)
    lines = [varied_caption(random_scene(rng), rng) for _ in range(4000)]
    for thing in concepts():
        lines += [thing.name, thing.hypernym, *thing.synonyms]
    return lines + [f"an empty plain {colour} background" for colour in BACKGROUNDS]


class _Pair(nn.Module):
    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                projection_dim=WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=MAX_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        # A residual network, as in CLIP's own RN50: on two cores it sees nearly three times as many images
        # a second as a transformer of four layers of width 128 with patches of 8 pixels.
        self.image = ResNetModel(
            ResNetConfig(
                embedding_size=IMAGE_CHANNELS[0],
                hidden_sizes=list(IMAGE_CHANNELS),
                depths=[1, 1, 2, 1],
                layer_type="basic",
            )
        )
        self.projection = nn.Linear(IMAGE_CHANNELS[-1], WIDTH, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.3))

    def logits(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """[N, N] scaled cosines, images by captions."""
        words = F.normalize(self.text(input_ids=ids).pooler_output.float(), dim=-1)
        pooled = self.image(pixel_values=pixels).pooler_output.flatten(1)
        image_embeddings = F.normalize(self.projection(pooled).float(), dim=-1)
        return self.scale.exp().clamp(max=50.0) * image_embeddings @ words.T


@dataclass(frozen=True)
class Towers:
    """What this stage makes. A projection takes the image tower's 256 numbers into the text tower's space;
    the cost model reads what lies before it."""

    tokenizer: CLIPTokenizer
    pair: _Pair

    @property
    def text(self) -> CLIPTextModel:
        """The text tower, which the pipeline uses."""
        return self.pair.text

    @property
    def image(self) -> ResNetModel:
        """The image tower; `image.build` trains it on for the cost model."""
        return self.pair.image


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token numbers [N, MAX_TOKENS] as the diffusion pipeline makes them."""
    ids: torch.Tensor = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def build(
    art: Art,
    folder: Path,
    tokenizer: CLIPTokenizer,
    device: torch.device,
    tell: Tell,
    *,
    steps: int,
    seed: int,
) -> Towers:
    """Train both towers together on strongly varied renderings in every training style."""
    torch.manual_seed(seed)
    pair = _Pair(tokenizer)
    plan = Plan("towers", steps, lr=1e-3, ema=0.99, weight_decay=0.05, seed=seed)
    trained = train(plan, pair, lambda context: _loss(pair, art, tokenizer, context), folder, device, tell)
    assert isinstance(trained, _Pair)
    return Towers(tokenizer, trained)


def _loss(pair: _Pair, art: Art, tokenizer: CLIPTokenizer, context: StepContext) -> torch.Tensor:
    """Compute CLIP's symmetric contrastive loss on a new batch."""
    images: list[Image.Image] = []
    captions: list[str] = []
    scenes: list[Scene] = []
    # On one background for all, only the subjects tell the captions apart. Left to itself the loss is
    # content with naming backgrounds, and the cost model gains nothing from that.
    shared = context.rng.choice(list(BACKGROUNDS)) if context.rng.random() < 0.75 else None
    while len(images) < BATCH:
        scene = near_scene(context.rng)
        if shared is not None:
            scene = Scene(scene.subjects, shared)
        style = context.rng.choice(STYLES_TRAINED)
        try:
            images.append(render(scene, art, context.rng, style, STRONG))
        except LookupError:
            continue
        captions.append(varied_caption(scene, context.rng))
        scenes.append(scene)
    pixels = to_tensor(images).to(context.device)
    ids = tokenize(tokenizer, captions).to(context.device)
    with context.autocast():
        logits = pair.logits(ids, pixels)
    # Two images of one scene are both right for its caption: neither may count as a miss.
    same = torch.tensor([[a == b for b in scenes] for a in scenes], device=context.device).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def near_scene(rng: random.Random, two: float = 0.2) -> Scene:
    """A scene; of those with one subject one in four shows a harmful thing or its near-miss, so that the
    tower learns to tell them. `two` is the share with two subjects."""
    scene = random_scene(rng, two=two)
    if rng.random() < 0.25 and len(scene.subjects) == 1:
        harmful = rng.choice([thing for thing in concepts() if thing.harmful])
        near = next(thing for thing in concepts() if thing.name == harmful.near_miss)
        return Scene((rng.choice((harmful, near)),), scene.background)
    return scene
