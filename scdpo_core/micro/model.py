"""Where the embedded model's weights lie."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).with_name("weights")
"""A plain diffusers folder: `StableDiffusionPipeline.from_pretrained(WEIGHTS)` loads it."""

IMAGE_ENCODER = WEIGHTS / "image_encoder"
"""The CLIP image tower that was trained together with the pipeline's text tower."""

JUDGE = WEIGHTS / "judge" / "judge.safetensors"
"""The judge, for evaluation only."""
