"""One record per model family: its names in files and hosts, and what a pair of it costs.

It stands outside `families`, whose import loads the models' code: hosts, settings and LoRA files do not
need that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MICRO = "micro"
"""The name that stands for the embedded model, as a base and as a family."""


COST_RANK = 16
"""Rank of the LoRA that `PairCost` was measured with."""


@dataclass(frozen=True)
class PairCost:
    """Cost of one pair at the family's native size, in 16 bits, with a LoRA of rank 16 on the attention.

    Attributes:
        side: native image side, pixels.
        weights: of the denoiser, GiB.
        lora: with its optimiser, GiB.
        step: GiB on top, without and with gradient checkpointing.
        work: 10^12 operations, without and with gradient checkpointing.
        probe: a convolution that computes about as fast as the network can: channels, side and images.
        reach: share of the probe's speed that training reaches, to a factor of two.
        blocks: how many blocks can wait in main memory, and the GiB of weights in them.
    """

    side: int
    weights: float
    lora: float
    step: tuple[float, float]
    work: tuple[float, float]
    probe: tuple[int, int, int] = (320, 64, 1)
    reach: float = 0.5
    blocks: tuple[int, float] = (0, 0.0)


@dataclass(frozen=True)
class FamilyInfo:
    """What differs by family and is data.

    Attributes:
        name: key in `FAMILY_INFO`, and the value of `--family`.
        title: full name, for messages.
        short_title: for lists of requirements.
        version: kohya's `ss_base_model_version`.
        architecture: `modelspec.architecture`.
        metadata_prefixes: how values of these two entries begin in files of any trainer.
        sidecars: "sd version" of a host's card: A1111's and Forge's word where they have one, then Forge
            Neo's.
        engines: class names by which Forge and Forge Neo know a checkpoint.
        comfy_classes: class names of its models in ComfyUI.
        webui_flag: whether A1111 marks its models with `is_<name>`.
        lora_keys: family whose LoRA keys it shares, where it has no table of its own. Its LoRAs
            then name it in their metadata, because their keys cannot.
        like: family with the same LoRA names and sizes; a LoRA whose metadata names no family is taken for
            one of that family.
        pipeline: diffusers' pipeline class, as in a folder's model_index.json.
        denoiser: folder of the denoiser; 'unet' or 'transformer'. Empty where it is no trainable family.
        text_width: width of the text states that a UNet's cross-attention reads; 0 for a transformer.
        width: of a transformer's hidden states; 0 where the family has several.
        depth: blocks of a transformer that are called 'transformer_blocks', at most; 0: it has none.
        texts: kinds of its text encoders: 'clip' (which a LoRA may adapt), 't5', 'language'.
        long_prompts: whether prompts can span several chunks of 75 tokens.
        cost: of one pair; None where it was not measured.
    """

    name: str
    title: str
    short_title: str = ""
    version: str = ""
    architecture: str = ""
    metadata_prefixes: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    comfy_classes: tuple[str, ...] = ()
    webui_flag: bool = False
    lora_keys: str = ""
    like: str = ""
    pipeline: str = ""
    denoiser: str = ""
    text_width: int = 0
    width: int = 0
    depth: int = 0
    texts: tuple[str, ...] = ("clip",)
    long_prompts: bool = True
    cost: PairCost | None = None


_RECORDS = (
    # It has SD 1's modules in other sizes, so no SD 1 checkpoint takes its LoRAs.
    FamilyInfo(
        name=MICRO,
        title="the embedded model",
        version="sd_v1",
        architecture="stable-diffusion-v1/lora",
        lora_keys="sd1",
        # Many small operations: its width and height are those of an icon.
        cost=PairCost(64, 0.016, 0.003, (0.006, 0.006), (0.0013, 0.0016), (64, 8, 32), reach=0.15),
    ),
    FamilyInfo(
        name="sd1",
        title="Stable Diffusion 1.x",
        short_title="SD 1",
        version="sd_v1",
        architecture="stable-diffusion-v1/lora",
        metadata_prefixes=("sd_v1", "stable-diffusion-v1"),
        sidecars=("SD1", "sd"),
        engines=("SD15", "SD15_instructpix2pix"),
        comfy_classes=("SD15", "SD15_instructpix2pix"),
        webui_flag=True,
        pipeline="StableDiffusionPipeline",
        denoiser="unet",
        text_width=768,
        cost=PairCost(512, 1.60, 0.05, (2.17, 0.50), (5.06, 6.24), blocks=(16, 0.45)),
    ),
    FamilyInfo(
        name="sd2",
        title="Stable Diffusion 2.x",
        short_title="SD 2",
        version="sd_v2",
        architecture="stable-diffusion-v2-512/lora",
        metadata_prefixes=("sd_v2", "stable-diffusion-v2"),
        sidecars=("SD2",),
        engines=("SD20", "SD21UnclipL", "SD21UnclipH"),
        comfy_classes=("SD20", "SD21UnclipL", "SD21UnclipH", "LotusD"),
        webui_flag=True,
        pipeline="StableDiffusionPipeline",
        denoiser="unet",
        text_width=1024,
        cost=PairCost(768, 1.61, 0.05, (4.69, 0.96), (14.12, 17.47), blocks=(16, 0.46)),
    ),
    FamilyInfo(
        name="sdxl",
        title="Stable Diffusion XL",
        short_title="SDXL",
        version="sdxl_base_v1-0",
        architecture="stable-diffusion-xl-v1-base/lora",
        metadata_prefixes=("sdxl", "stable-diffusion-xl"),
        sidecars=("SDXL", "xl"),
        engines=("SDXL", "SDXL_instructpix2pix"),
        comfy_classes=("SDXL", "SDXL_instructpix2pix", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"),
        webui_flag=True,
        pipeline="StableDiffusionXLPipeline",
        denoiser="unet",
        text_width=2048,
        cost=PairCost(1024, 4.78, 0.35, (14.42, 1.26), (41.90, 52.19), blocks=(70, 4.07)),
    ),
    FamilyInfo(
        name="sd3",
        title="Stable Diffusion 3",
        short_title="SD 3",
        version="sd3",
        architecture="stable-diffusion-3/lora",
        metadata_prefixes=("sd3", "stable-diffusion-3", "stable-diffusion-v3"),
        sidecars=("SD3",),
        engines=("SD3",),
        comfy_classes=("SD3",),
        webui_flag=True,
        pipeline="StableDiffusion3Pipeline",
        denoiser="transformer",
        depth=38,
        texts=("clip", "t5"),
        cost=PairCost(1024, 3.99, 0.14, (10.00, 1.24), (59.32, 77.20), blocks=(24, 3.74)),
    ),
    FamilyInfo(
        name="flux",
        title="FLUX.1",
        short_title="FLUX.1",
        version="flux1",
        architecture="flux-1-dev/lora",
        metadata_prefixes=("flux",),
        sidecars=("Flux", "flux"),
        engines=("Flux", "FluxSchnell"),
        comfy_classes=("Flux", "FluxInpaint", "FluxSchnell"),
        pipeline="FluxPipeline",
        denoiser="transformer",
        width=3072,
        depth=19,
        texts=("clip", "t5"),
        long_prompts=False,
        cost=PairCost(1024, 22.17, 0.39, (54.99, 4.56), (476.52, 625.60), blocks=(57, 22.05)),
    ),
    FamilyInfo(
        name="chroma",
        title="Chroma1",
        short_title="Chroma",
        version="chroma",
        architecture="chroma/lora",
        metadata_prefixes=("chroma",),
        # Forge Neo draws Chroma under its preset for FLUX.1, and has no word of its own for it.
        sidecars=("Flux", "flux"),
        engines=("Chroma",),
        comfy_classes=("Chroma",),
        like="flux",
        pipeline="ChromaPipeline",
        denoiser="transformer",
        width=3072,
        depth=19,
        texts=("t5",),
        long_prompts=False,
    ),
    FamilyInfo(
        name="flux2",
        title="FLUX.2 klein",
        short_title="FLUX.2 klein",
        version="flux2",
        architecture="flux-2-klein/lora",
        metadata_prefixes=("flux2", "flux-2", "flux.2", "flux_2"),
        sidecars=("klein",),
        engines=("Flux2K4B", "Flux2K9B"),
        comfy_classes=("Flux2",),
        pipeline="Flux2KleinPipeline",
        denoiser="transformer",
        depth=8,
        texts=("language",),
        long_prompts=False,
    ),
    FamilyInfo(
        name="z_image",
        title="Z-Image",
        short_title="Z-Image",
        version="zimage",
        architecture="z-image/lora",
        metadata_prefixes=("zimage", "z-image", "z_image"),
        sidecars=("zit",),
        engines=("ZImage",),
        comfy_classes=("ZImage",),
        pipeline="ZImagePipeline",
        denoiser="transformer",
        width=3840,
        texts=("language",),
        long_prompts=False,
        cost=PairCost(1024, 11.46, 0.25, (108.39, 7.30), (395.68, 520.95)),
    ),
    FamilyInfo(
        name="qwen_image",
        title="Qwen-Image",
        short_title="Qwen-Image",
        version="qwen_image",
        architecture="qwen-image/lora",
        metadata_prefixes=("qwen_image", "qwen-image"),
        sidecars=("qwen",),
        engines=("QwenImage",),
        comfy_classes=("QwenImage",),
        pipeline="QwenImagePipeline",
        denoiser="transformer",
        width=3072,
        depth=60,
        texts=("language",),
        long_prompts=False,
    ),
)

FAMILY_INFO: dict[str, FamilyInfo] = {info.name: info for info in _RECORDS}
"""Every family that a LoRA's file can name. A cost's `reach` was measured on a processor, see
`benchmarks/reach.py`; all else of it is what `benchmarks/memory.py --work` prints."""


def trainable() -> list[FamilyInfo]:
    """List the families of base models, without the embedded model."""
    return [info for info in FAMILY_INFO.values() if info.denoiser]


def names_of(infos: Iterable[FamilyInfo]) -> tuple[str, ...]:
    """Names of families, in their order."""
    return tuple(info.name for info in infos)


def family_by_class(name: str, attribute: str) -> FamilyInfo | None:
    """Find the family that a host knows by a class name.

    Args:
        name: of the class.
        attribute: 'engines' for Forge, 'comfy_classes' for ComfyUI.
    """
    return next((info for info in FAMILY_INFO.values() if name in getattr(info, attribute)), None)
