"""A real ComfyUI as the judge of LoRA files, run as a script so that nothing of it gets into the tests.

    python tests/support/comfyui_oracle.py COMFYUI_DIR keys OUT.json.gz         which keys it takes, by family
    python tests/support/comfyui_oracle.py COMFYUI_DIR patch FAMILY LORA OUT ...   what it makes of files
    python tests/support/comfyui_oracle.py COMFYUI_DIR places FAMILY OUT.json      where it finds each module

The first writes family -> stem of a key -> [weight it changes, first row, rows] (rows only where it is a
part of the weight). The second writes every weight that the file touches, computed by ComfyUI at strength 1
on weights of zero, or on those that the file itself holds under `base.` (a DoRA looks at them), and as
metadata the keys it left. The third writes one family's list for the models of the second. The models have
the real depth (SD3: two blocks, but for the first list) and, because names and algebra do not depend on it,
a small width.

ComfyUI's LoRA code and its model classes are real. Its registry of model types, which imports every model
there is, is replaced by empty classes of the same names; so are packages that the LoRA code does not call.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import load_file, save_file

WIDTH = 64
_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": WIDTH,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": 2,
}
_SD = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
_SDXL = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "num_classes": "sequential",
    "adm_in_channels": 96,
}
UNETS = {
    "sd1": {**_UNET, **_SD, "context_dim": 768, "use_linear_in_transformer": False},
    "sd2": {**_UNET, **_SD, "context_dim": 1024, "use_linear_in_transformer": True},
    "sdxl": {**_UNET, **_SDXL, "context_dim": 2048, "use_linear_in_transformer": True},
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 24,
    "context_in_dim": 48,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
CHROMA = {
    "in_channels": 64,
    "out_channels": 64,
    "context_in_dim": 48,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "in_dim": 64,
    "out_dim": WIDTH,
    "hidden_dim": 80,
    "n_layers": 5,
    "txt_ids_dims": [],
    "vec_in_dim": None,
}
FLUX2 = {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "context_in_dim": 48,
    "hidden_size": WIDTH,
    "mlp_ratio": 3.0,
    "num_heads": 2,
    "depth": 8,
    "depth_single_blocks": 24,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "ops_bias": False,
    "guidance_embed": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "txt_ids_dims": [3],
}
Z_IMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 1024,
    "cap_feat_dim": 48,
    "n_refiner_layers": 2,
    "n_heads": 8,
    "n_kv_heads": 8,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "qk_norm": True,
    "multiple_of": 2,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN_IMAGE = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}
# Which CLIP each family has; the numbers are layers.
CLIPS = {
    "sd1": {"clip_l": 12},
    "sd2": {"clip_h": 23},
    "sdxl": {"clip_l": 12, "clip_g": 32},
    "sd3": {"clip_l": 12, "clip_g": 32},
    "flux": {"clip_l": 12},
    "chroma": {},
    "flux2": {},
    "z_image": {},
    "qwen_image": {},
}
# Its class there, or the one that it derives from.
_KIND = {
    "sd3": "SD3",
    "flux": "Flux",
    "chroma": "Flux",
    "flux2": "Flux",
    "z_image": "Lumina2",
    "qwen_image": "QwenImage",
}


def import_comfy(folder: Path) -> Any:
    """ComfyUI's `comfy.lora`, with what it does not need left out."""
    for name in ("einops", "torchsde", "torchvision", "torchaudio", "av", "kornia", "aiohttp"):
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = MagicMock()
    registry = types.ModuleType("comfy.model_base")
    kinds: dict[str, type] = {}

    def kind(name: str) -> type:
        # What a module lacks, its own __getattr__ gives; Python itself asks for names like __file__.
        if name.startswith("__"):
            raise AttributeError(name)
        return kinds.setdefault(name, type(name, (), {}))

    vars(registry)["__getattr__"] = kind
    sys.path.insert(0, str(folder))
    sys.argv = sys.argv[:1]
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    sys.modules["comfy.model_base"] = registry
    comfy.model_base = registry
    import comfy.lora

    return comfy.lora


def denoiser(family: str, blocks: int) -> tuple[dict[str, Any], torch.nn.Module]:
    """A family's configuration, and ComfyUI's own network on the meta device."""
    import comfy.ops

    how = {"device": "meta", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    if family in UNETS:
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        return UNETS[family], UNetModel(
            **{k: list(v) if isinstance(v, list) else v for k, v in UNETS[family].items()}, **how
        )
    if family in ("flux", "flux2"):
        from comfy.ldm.flux.model import Flux

        config = FLUX if family == "flux" else FLUX2
        return config, Flux(**config, **how)
    if family == "chroma":
        from comfy.ldm.chroma.model import Chroma

        return CHROMA, Chroma(**CHROMA, **how)
    if family == "qwen_image":
        from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

        config = {**QWEN_IMAGE, "num_layers": blocks or 60}
        return config, QwenImageTransformer2DModel(**config, **how)
    if family == "z_image":
        from comfy.ldm.lumina.model import NextDiT

        config = {**Z_IMAGE, "n_layers": blocks or 30}
        return config, NextDiT(**config, **how)
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    blocks = blocks or 24
    layers = list(range(min(13, blocks - 1)))
    config = {
        "depth": blocks,
        "in_channels": 16,
        "patch_size": 2,
        "adm_in_channels": 40,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 48, "out_features": 64 * blocks},
        },
        "num_patches": 16,
        "pos_embed_max_size": 4,
        "qk_norm": "rms",
        "x_block_self_attn_layers": layers,
    }
    return config, MMDiT(**config, **how)


def text_weights(family: str) -> dict[str, torch.Tensor]:
    """Names (and small weights) of a family's CLIP text encoders, as ComfyUI's own class has them."""
    import comfy.clip_model
    import comfy.ops

    weights = {}
    for name, layers in CLIPS[family].items():
        config = {
            "num_hidden_layers": layers,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_attention_heads": 2,
            "hidden_act": "gelu",
            "max_position_embeddings": 77,
            "eos_token_id": 2,
        }
        clip = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)
        weights |= {f"{name}.transformer.{key}": value for key, value in clip.state_dict().items()}
    return weights


def key_map(lora: Any, family: str, blocks: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """ComfyUI's map from a key's stem to the weight it changes, and the (meta) weights."""
    config, network = denoiser(family, blocks)
    weights = {f"diffusion_model.{key}": value for key, value in network.state_dict().items()}
    base = getattr(sys.modules["comfy.model_base"], _KIND.get(family, "BaseModel"))
    model = type("Model", (base,), {})()
    model.state_dict = lambda: weights
    model.model_config = types.SimpleNamespace(unet_config=config)
    text = text_weights(family)
    clip = types.SimpleNamespace(state_dict=lambda: text)
    stems = lora.model_lora_keys_unet(model, {})
    return lora.model_lora_keys_clip(clip, stems), weights | text


def record(lora: Any, out: Path) -> None:
    found = {family: places(key_map(lora, family, blocks=0)[0]) for family in CLIPS}
    text = json.dumps(found, separators=(",", ":")).encode()
    out.write_bytes(gzip.compress(text, 9, mtime=0))


def places(stems: dict[str, Any]) -> dict[str, list[Any]]:
    """Stem of a key -> [weight], and behind it the rows or 'swapped'."""
    rows: dict[str, list[Any]] = {}
    for stem, target in stems.items():
        if stem.endswith(".bias"):
            continue
        if isinstance(target, str):
            rows[stem] = [target]
        elif target[1] is None:
            rows[stem] = [target[0], "swapped"]
        else:
            rows[stem] = [target[0], *target[1][1:]]
    return dict(sorted(rows.items()))


def patch(lora: Any, family: str, files: list[Path]) -> None:
    """Write what ComfyUI makes of every first file into the second."""
    stems, weights = key_map(lora, family, blocks=2)
    for source, out in zip(files[::2], files[1::2], strict=True):
        tensors = load_file(source)
        bases = {key[5:]: tensors.pop(key) for key in list(tensors) if key.startswith("base.")}
        left: list[str] = []
        warn, lora.logging.warning = (
            lora.logging.warning,
            lambda text, *_, left=left: left.append(text.rpartition(" ")[2]),
        )
        # All patches of a weight at once, as its ModelPatcher has them.
        patches: dict[str, list[Any]] = {}
        for target, change in lora.load_lora(tensors, stems).items():
            name, offset, function = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
            patches.setdefault(name, []).append((1.0, change, 1.0, offset, function))
        lora.logging.warning = warn
        patched = {}
        for name, changes in patches.items():
            base = bases[name] if name in bases else torch.zeros(weights[name].shape)
            patched[name] = lora.calculate_weight(changes, base.clone(), name)
        save_file(patched, out, {"left": json.dumps(sorted(left))})


if __name__ == "__main__":
    command = sys.argv[1:]
    comfy_lora = import_comfy(Path(command[0]).resolve())
    if command[1] == "keys":
        record(comfy_lora, Path(command[2]))
    elif command[1] == "places":
        found = places(key_map(comfy_lora, command[2], blocks=2)[0])
        Path(command[3]).write_text(json.dumps(found), "utf-8")
    else:
        patch(comfy_lora, command[2], [Path(name) for name in command[3:]])
