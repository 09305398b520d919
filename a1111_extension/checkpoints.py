"""Detect which base model a host's checkpoint is, from the loaded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scdpo_core.family_info import FAMILY_INFO, family_by_class

# Models that Forge and Forge Neo draw with and that no LoRA of this project is for, by the host's class.
_OTHERS = {
    "Anima": "Anima",
    "ErnieImage": "ERNIE-Image",
    "KOALA_1B": "KOALA",
    "KOALA_700M": "KOALA",
    "Krea2": "Krea 2",
    "Lumina2": "Lumina-Image 2.0",
    "Mugen": "Mugen",
    "PiD": "PiD",
    "SDXLRefiner": "the refiner of Stable Diffusion XL",
    "SSD1B": "SSD-1B",
    "Segmind_Vega": "Segmind Vega",
    "WAN21_I2V": "Wan (image to video)",
    "WAN21_T2V": "Wan",
}


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint that a host draws with.

    Attributes:
        family: its name among `FAMILY_INFO`; '' if it is unsupported or unknown.
        title: its base model's usual name; '' if unknown.
        engine: the host's own name for a model that is not known here; '' where there is none.
    """

    family: str = ""
    title: str = ""
    engine: str = ""


def checkpoint_of(model: Any) -> Checkpoint:
    """Detect the base model of a host's loaded model, in any host.

    Forge and Forge Neo name the class of what they found in the file. Their flags know a few models alone,
    and `is_sdxl` also stands on models that merely resemble it, so the class decides wherever there is one.

    Args:
        model: the host's `shared.sd_model`, also the placeholder before a model is loaded.
    """
    config = getattr(model, "model_config", None)
    if config is not None:
        engine = type(config).__name__
        info = family_by_class(engine, "engines")
        if info is not None:
            return Checkpoint(info.name, info.title)
        return Checkpoint("", _OTHERS[engine]) if engine in _OTHERS else Checkpoint(engine=engine)
    if getattr(model, "is_ssd", False) is True:
        return Checkpoint("", _OTHERS["SSD1B"])
    # A1111 marks its models with flags of these names.
    flagged = (info for info in FAMILY_INFO.values() if info.webui_flag)
    info_by_flag = next((info for info in flagged if getattr(model, f"is_{info.name}", False) is True), None)
    return Checkpoint(info_by_flag.name, info_by_flag.title) if info_by_flag else Checkpoint()


def applies_weights(network: Any, engine: Any) -> bool:
    """Return whether a host applied any weight of a loaded LoRA; True where that cannot be seen.

    Hosts only log that a LoRA's names fit nothing, and draw as if there were none.

    Args:
        network: what the host's LoRA extension made of the file.
        engine: the objects that Forge and Forge Neo draw with once LoRAs are applied; None in A1111.
    """
    if engine is None:
        # A1111 stores the layers that it matched.
        return bool(getattr(network, "modules", True))
    patchers = [engine.unet, *([] if engine.clip is None else [engine.clip.patcher])]
    model = getattr(getattr(patchers[0], "model", None), "diffusion_model", None)
    if getattr(model, "loras", None):
        # Quantised models of Forge Neo apply LoRAs themselves.
        return True
    if all(hasattr(patcher, "lora_patches") for patcher in patchers):
        # Forge stores weights under (file, strength, ...).
        file = str(network.network_on_disk.filename)
        return any(key[0] == file and each for p in patchers for key, each in p.lora_patches.items())
    # Forge Neo stores the weights of all LoRAs together.
    return any(getattr(patcher, "patches", True) for patcher in patchers)
