"""What the tests on a real ComfyUI use: LoRAs from our own exporter, images, and prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from PIL import Image
from torch import nn

from scdpo_core.lora.adapter import attach
from scdpo_core.lora.file import save_lora, write_lora
from tests.hosts.comfyui.server import ROOT

CATEGORIES = {"weapon": 40, "benign": 40}
EVALUATION = {"harmful_rate": {"before": 0.92, "after": 0.05}}
HARMFUL = ROOT / "examples" / "cost_pictures" / "unsafe"
SAFE = ROOT / "examples" / "cost_pictures" / "safe"
COUNT = 4


def tiny_unet() -> nn.Module:
    """The denoiser of tiny-sd15.ckpt, by diffusers' names."""
    return UNet2DConditionModel(
        block_out_channels=(320,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type="UNetMidBlock2D",
        attention_head_dim=8,
        cross_attention_dim=768,
    )


def tiny_sd3() -> nn.Module:
    """The denoiser of tiny-sd3.safetensors, by diffusers' names."""
    return SD3Transformer2DModel(
        sample_size=16,
        num_layers=1,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=4096,
        caption_projection_dim=64,
        pooled_projection_dim=2048,
        pos_embed_max_size=16,
    )


def state_of(network: nn.Module, size: float) -> dict[str, torch.Tensor]:
    adapter = attach(network, rank=4, alpha=4.0, targets="attention", seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapter.parameters():
            # Rounded to float16, so that a float16 file loses nothing.
            weight.copy_((size * torch.randn(weight.shape, generator=generator)).half())
    return adapter.state()


def words_of(size: float) -> dict[str, torch.Tensor]:
    """A LoRA on the first layer of SD 1's text encoder."""
    generator = torch.Generator().manual_seed(4)
    module = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    shapes = {"down": (4, 768), "up": (768, 4)}
    state = {
        f"{module}.{part}": (size * torch.randn(shape, generator=generator)).half().float()
        for part, shape in shapes.items()
    }
    return {**state, f"{module}.alpha": torch.tensor(4.0)}


def make_loras(folder: Path) -> None:
    """sd15 and sd3 as the trainer exports them, the first also as peft's file and with text encoders; one of
    text encoders alone; and two that do not fit."""
    folder.mkdir(parents=True)
    state = state_of(tiny_unet(), 0.3)
    facts: dict[str, Any] = {
        "objective": "sc_dpo",
        "categories": CATEGORIES,
        "evaluation": EVALUATION,
    }
    save_lora(folder / "safe-sd15.safetensors", state, family="sd1", rank=4, alpha=4.0, facts=facts)
    write_lora(folder / "safe-sd15-peft.safetensors", state, dialect="peft", family="sd1", metadata={})
    words = words_of(0.3)
    for name, weights in (("words-sd15", words), ("safe-and-words-sd15", {**state, **words})):
        save_lora(folder / f"{name}.safetensors", weights, family="sd1", rank=4, alpha=4.0, facts=facts)
    sd3 = state_of(tiny_sd3(), 0.3)
    save_lora(folder / "safe-sd3.safetensors", sd3, family="sd3", rank=4, alpha=4.0, facts=facts)
    # A module that a real SD 1 has and the tiny one has not.
    strange = {name.replace("down_blocks.0", "down_blocks.2"): weight for name, weight in state.items()}
    save_lora(folder / "other-sd15.safetensors", strange, family="sd1", rank=4, alpha=4.0, facts={})
    narrow = {
        name: weight[:, :64] if name.endswith("attn1.to_q.down") else weight for name, weight in state.items()
    }
    save_lora(folder / "narrow-sd15.safetensors", narrow, family="sd1", rank=4, alpha=4.0, facts={})


def make_images(folder: Path) -> None:
    """Two harmless drawings and two harmful ones, of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [*sorted(SAFE.glob("apple-*.png"))[:2], *sorted(HARMFUL.rglob("*.png"))[:2]]
    for number, path in enumerate(chosen):
        with Image.open(path) as image:
            image.convert("RGB").save(folder / f"drawing-{number}.png")
    # What ComfyUI itself brings along, for the example workflows.
    shutil.copy(folder / "drawing-2.png", folder / "example.png")


def batch(*numbers: int) -> dict[str, Any]:
    """Nodes that load drawings as one batch; the last one's name is 'batch'."""
    graph: dict[str, Any] = {
        f"load{number}": {"class_type": "LoadImage", "inputs": {"image": f"drawing-{number}.png"}}
        for number in numbers
    }
    before = f"load{numbers[0]}"
    for place, number in enumerate(numbers[1:], 1):
        name = "batch" if place == len(numbers) - 1 else f"batch{place}"
        graph[name] = {
            "class_type": "ImageBatch",
            "inputs": {"image1": [before, 0], "image2": [f"load{number}", 0]},
        }
        before = name
    return graph


def sampler(checkpoint: str, lora: dict[str, Any] | None = None, steps: int = 2) -> dict[str, Any]:
    """The usual graph from a checkpoint to a saved image; with inputs of a Load Safety LoRA in between."""
    model, clip = ["checkpoint", 0], ["checkpoint", 1]
    graph: dict[str, Any] = {
        "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }
    if lora is not None:
        inputs = {"model": model, "clip": clip, "strength_model": 1.0, "strength_clip": 1.0, **lora}
        graph["lora"] = {"class_type": "SCDPO_LoadSafetyLora", "inputs": inputs}
        model, clip = ["lora", 0], ["lora", 1]
    graph["positive"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a kitchen", "clip": clip}}
    graph["negative"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": clip}}
    graph["sample"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": model,
            "seed": 3,
            "steps": steps,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "positive": ["positive", 0],
            "negative": ["negative", 0],
            "latent_image": ["latent", 0],
            "denoise": 1.0,
        },
    }
    graph["decode"] = {
        "class_type": "VAEDecode",
        "inputs": {"samples": ["sample", 0], "vae": ["checkpoint", 2]},
    }
    graph["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["decode", 0], "filename_prefix": "test"},
    }
    return graph


def api_prompt(workflow: dict[str, Any], nodes: dict[str, Any]) -> dict[str, Any]:
    """The prompt that ComfyUI's page makes of a saved workflow.

    Args:
        workflow: a workflow's JSON, without subgraphs, reroutes or muted nodes.
        nodes: /object_info.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        about = nodes[node["type"]]["input"]
        linked = {slot["name"]: links[slot["link"]] for slot in node.get("inputs", []) if slot.get("link")}
        values = list(node.get("widgets_values", []))
        inputs: dict[str, Any] = {}
        for name, (kind, *options) in {**about.get("required", {}), **about.get("optional", {})}.items():
            if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                option = options[0] if options else {}
                inputs[name] = values.pop(0)
                if option.get("control_after_generate") or name in ("seed", "noise_seed"):
                    values.pop(0)
                if option.get("image_upload"):
                    values.pop(0)
            if name in linked:
                inputs[name] = linked[name]
        assert not values, f"{node['type']} has widget values left: {values}"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return value
