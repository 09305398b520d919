"""The smallest checkpoints that a real ComfyUI samples from, with random weights; run by its own Python.

    python tests/hosts/comfyui/checkpoints.py COMFYUI_DIR OUT_DIR

writes `tiny-sd15.ckpt`, `tiny-sd3.safetensors`, and `tiny-sd3-FORMAT.safetensors`: the second, its matrices
stored as codes, in each format that this version reads. Weights are named as in ComfyUI's classes.
An SD 1 checkpoint cannot shrink its text encoder, so its tensors are views of one small buffer, which a .ckpt
keeps as such: some megabytes on the disk.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_middle": -1,
    "transformer_depth_output": [1, 1],
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": 8,
    "context_dim": 768,
    "use_linear_in_transformer": False,
}
MMDIT = {
    "depth": 1,
    "in_channels": 16,
    "patch_size": 2,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 64},
    },
    "num_patches": 256,
    "pos_embed_max_size": 16,
}
SPREAD = 0.02
QUANTIZED = {
    "float8_e4m3fn": {"scale": "recalculate"},
    "int8_tensorwise": {},
    "nvfp4": {"scale": "recalculate"},
}
"""ComfyUI's formats -> how it makes them of weights."""


class Weights:
    """Random weights for a network of given names and shapes.

    Args:
        seed: of the random numbers.
        views: whether all are views of one buffer.
    """

    def __init__(self, seed: int, views: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.buffer = SPREAD * torch.randn(1 << 18, generator=generator)
        self.generator, self.views = generator, views

    def like(self, name: str, shape: torch.Size) -> torch.Tensor:
        if name.endswith((".bias", "logit_scale", "vae_shift")):
            return torch.zeros(shape)
        if len(shape) < 2:
            return torch.ones(shape)
        fan = max(1, int(torch.tensor(shape[1:]).prod()))
        if not self.views:
            return torch.randn(shape, generator=self.generator) / fan**0.5
        strides = [5, *(2 * k + 1 for k in range(len(shape) - 1))]
        start = int(torch.randint(0, 1000, (1,), generator=self.generator))
        return self.buffer.as_strided(tuple(shape), strides, start)

    def of(self, network: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        return {prefix + name: self.like(name, weight.shape) for name, weight in network.state_dict().items()}


def sd15() -> dict[str, torch.Tensor]:
    import comfy.clip_model
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.taesd.taesd import TAESD

    how: dict[str, Any] = {
        "device": "meta",
        "dtype": torch.float32,
        "operations": comfy.ops.disable_weight_init,
    }
    unet = UNetModel(**{k: list(v) if isinstance(v, list) else v for k, v in UNET.items()}, **how)
    clip = comfy.clip_model.CLIPTextModel(
        {
            "num_hidden_layers": 12,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
        },
        torch.float32,
        "meta",
        comfy.ops.disable_weight_init,
    )
    weights = Weights(1, views=True)
    vae = Weights(2, views=False)
    return {
        **weights.of(unet, "model.diffusion_model."),
        **weights.of(clip, "cond_stage_model.transformer."),
        **vae.of(TAESD(latent_channels=4), "first_stage_model."),
    }


def sd3() -> dict[str, torch.Tensor]:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
    from comfy.taesd.taesd import TAESD

    network = MMDiT(**MMDIT, device="meta", dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    weights = Weights(3, views=False)
    return {
        **weights.of(network, "model.diffusion_model."),
        **weights.of(TAESD(latent_channels=16), "first_stage_model."),
        # A checkpoint without any text encoder gives no CLIP; with an unknown one, a CLIP that says nothing.
        "text_encoders.none.weight": torch.zeros(1),
    }


def quantized(checkpoint: dict[str, torch.Tensor], form: str) -> dict[str, torch.Tensor]:
    """A checkpoint with the matrices of its transformer blocks in one of ComfyUI's formats."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    layout = QUANT_ALGOS[form]["comfy_tensor_layout"]
    about = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    out: dict[str, torch.Tensor] = {}
    for name, weight in checkpoint.items():
        if "joint_blocks" not in name or weight.ndim != 2:
            out[name] = weight
            continue
        code = QuantizedTensor.from_float(weight.bfloat16(), layout, **QUANTIZED[form])
        out.update(code.state_dict(name))
        out[f"{name.removesuffix('.weight')}.comfy_quant"] = about.clone()
    return out


def formats() -> list[str]:
    """Those of QUANTIZED that this version of ComfyUI reads."""
    try:
        from comfy.quant_ops import QUANT_ALGOS
    except ImportError:
        return []
    return [form for form in QUANTIZED if form in QUANT_ALGOS]


def main(comfyui: Path, out: Path) -> None:
    sys.path.insert(0, str(comfyui))
    sys.argv = sys.argv[:1]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": sd15()}, out / "tiny-sd15.ckpt")
    plain = sd3()
    save_file(plain, out / "tiny-sd3.safetensors")
    for form in formats():
        save_file(quantized(plain, form), out / f"tiny-sd3-{form}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
