"""Tiny random models of every family, in diffusers' form; `original_files` has the single files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from scdpo_core.family_info import trainable
from tests.support.tiny import WIDTH, tiny_pipeline, tiny_sd_folder
from tests.support.tiny_language import chat_tokenizer, language_model
from tests.support.tiny_parts import (
    FLOW_CHANNELS,
    SCALE_AND_SHIFT,
    chat_model,
    clip_model,
    clip_tokenizer,
    flow_vae,
    image_vae,
    t5_model,
)

FLOWS = tuple(info.name for info in trainable() if info.denoiser == "transformer")
WITH_CLIP = tuple(info.name for info in trainable() if "clip" in info.texts)
WITH_T5 = tuple(info.name for info in trainable() if "t5" in info.texts)


def sd2_pipeline(folder: Path, *, seed: int = 0) -> StableDiffusionPipeline:
    """As version 1, with the text encoder of version 2: another activation."""
    pipeline = tiny_pipeline(folder, seed=seed)
    pipeline.text_encoder = clip_model(pipeline.tokenizer, CLIPTextModel, WIDTH, hidden_act="gelu")
    return pipeline


def sdxl_pipeline(folder: Path, *, prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """Two text encoders, size and crop ids, a level without attention."""
    torch.manual_seed(0)
    one, two = clip_tokenizer(folder / "one"), clip_tokenizer(folder / "two")
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH,
        transformer_layers_per_block=[1, 2],
        attention_head_dim=[2, 4],
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=image_vae(4),
        text_encoder=clip_model(one, CLIPTextModel, WIDTH),
        text_encoder_2=clip_model(two, CLIPTextModelWithProjection, WIDTH, hidden_act="gelu"),
        tokenizer=one,
        tokenizer_2=two,
        unet=unet,
        scheduler=DDIMScheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        add_watermarker=False,
    )


def sd3_pipeline(folder: Path, *, t5: bool = True) -> StableDiffusion3Pipeline:
    """Two blocks, normalised queries and keys, and a second attention in the first block as in 3.5 medium."""
    torch.manual_seed(0)
    one, two = clip_tokenizer(folder / "one"), clip_tokenizer(folder / "two")
    words, encoder = t5_model() if t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=FLOW_CHANNELS,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=64,
        pooled_projection_dim=2 * (WIDTH // 2),
        out_channels=FLOW_CHANNELS,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=clip_model(one, CLIPTextModelWithProjection, WIDTH // 2),
        tokenizer=one,
        text_encoder_2=clip_model(two, CLIPTextModelWithProjection, WIDTH // 2, hidden_act="gelu"),
        tokenizer_2=two,
        text_encoder_3=encoder,
        tokenizer_3=words,
    )


def flux_pipeline(
    folder: Path, *, guided: bool = True, words: int = 2 * WIDTH, pooled: int = WIDTH
) -> FluxPipeline:
    """One double and one single block; dev with its guidance embedding, or schnell without."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder)
    vocabulary, encoder = t5_model(words)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * FLOW_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=words,
        pooled_projection_dim=pooled,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    # A new one answers zero, whatever it is asked.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.2)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flow_vae(),
        text_encoder=clip_model(tokenizer, CLIPTextModel, pooled),
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=vocabulary,
        transformer=transformer,
    )


def chroma_pipeline(folder: Path, *, words: int = 2 * WIDTH) -> ChromaPipeline:
    """Two double and two single blocks; T5 alone."""
    torch.manual_seed(0)
    vocabulary, encoder = t5_model(words)
    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=4 * FLOW_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=words,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=24,
        approximator_layers=2,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(),
        text_encoder=encoder,
        tokenizer=vocabulary,
        transformer=transformer,
    )


def flux2_pipeline(folder: Path) -> Flux2KleinPipeline:
    """Two double and two single blocks; a language model of 28 layers, of which three are read."""
    torch.manual_seed(0)
    tokenizer, encoder = chat_tokenizer(), language_model("Qwen3Model", WIDTH, layers=28)
    # As Qwen3's: without thinking the answer begins with an empty thought.
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}"
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    torch.nn.init.normal_(vae.bn.running_mean, std=0.3)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def z_image_pipeline(folder: Path) -> ZImagePipeline:
    """One block of each kind, and a language model of three layers."""
    torch.manual_seed(0)
    tokenizer, encoder = chat_model(2 * WIDTH)
    transformer = ZImageTransformer2DModel(
        in_channels=FLOW_CHANNELS,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=2 * WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 64, 64],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token, std=0.2)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def qwen_image_pipeline(folder: Path) -> QwenImagePipeline:
    """Two blocks, a VAE of two levels for one frame, and a language model of three layers."""
    torch.manual_seed(0)
    tokenizer, encoder = chat_model(2 * WIDTH, "Qwen2_5_VLTextModel")
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * FLOW_CHANNELS,
        out_channels=FLOW_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    scale, shift = SCALE_AND_SHIFT
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=FLOW_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[shift * channel for channel in range(FLOW_CHANNELS)],
        latents_std=[1 / scale] * FLOW_CHANNELS,
    )
    vae.register_to_config(sample_size=16)
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02
        ),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


PIPELINES: dict[str, Callable[[Path], Any]] = {
    "sd2": sd2_pipeline,
    "sdxl": sdxl_pipeline,
    "sd3": sd3_pipeline,
    "flux": flux_pipeline,
    "chroma": chroma_pipeline,
    "flux2": flux2_pipeline,
    "z_image": z_image_pipeline,
    "qwen_image": qwen_image_pipeline,
}


def tiny_folder(family: str, path: Path) -> Path:
    """Write a complete random model of a family in diffusers' form and return its folder."""
    if family == "sd1":
        return tiny_sd_folder(path)
    PIPELINES[family](path / "words").save_pretrained(path, safe_serialization=True)
    return path
