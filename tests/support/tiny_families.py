"""Tiny random models of every family, in diffusers' form; `original_files` has the single files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
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
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from scdpo_core.family_info import trainable
from tests.support.tiny import TOKENS, WIDTH, tiny_pipeline, tiny_sd_folder, tiny_tokenizer_files
from tests.support.tiny_language import chat_tokenizer, language_model

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
FLOW_CHANNELS = 16
T5_TOKENS = 12
FLOWS = tuple(info.name for info in trainable() if info.denoiser == "transformer")
WITH_CLIP = tuple(info.name for info in trainable() if "clip" in info.texts)
WITH_T5 = tuple(info.name for info in trainable() if "t5" in info.texts)
SCALE_AND_SHIFT = (0.5, 0.1)


def _tokenizer(folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(tiny_tokenizer_files(folder), local_files_only=True)


def _clip(tokenizer: Any, cls: Any, width: int, **changes: Any) -> Any:
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return cls(CLIPTextConfig(**(config | changes)))


def _chat(width: int, name: str = "Qwen3Model") -> tuple[Any, Any]:
    return chat_tokenizer(), language_model(name, width)


def _t5(width: int = 2 * WIDTH) -> tuple[Any, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=T5_TOKENS)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return tokenizer, T5EncoderModel(config)


def _vae(channels: int, **changes: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **({"scaling_factor": 0.5} | changes),
    )


def _flow_vae() -> AutoencoderKL:
    scale, shift = SCALE_AND_SHIFT
    return _vae(
        FLOW_CHANNELS,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def sd2_pipeline(folder: Path, *, seed: int = 0) -> StableDiffusionPipeline:
    """As version 1, with the text encoder of version 2: another activation."""
    pipeline = tiny_pipeline(folder, seed=seed)
    pipeline.text_encoder = _clip(pipeline.tokenizer, CLIPTextModel, WIDTH, hidden_act="gelu")
    return pipeline


def sdxl_pipeline(folder: Path, *, prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """Two text encoders, size and crop ids, a level without attention."""
    torch.manual_seed(0)
    one, two = _tokenizer(folder / "one"), _tokenizer(folder / "two")
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
        vae=_vae(4),
        text_encoder=_clip(one, CLIPTextModel, WIDTH),
        text_encoder_2=_clip(two, CLIPTextModelWithProjection, WIDTH, hidden_act="gelu"),
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
    one, two = _tokenizer(folder / "one"), _tokenizer(folder / "two")
    words, encoder = _t5() if t5 else (None, None)
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
        vae=_flow_vae(),
        text_encoder=_clip(one, CLIPTextModelWithProjection, WIDTH // 2),
        tokenizer=one,
        text_encoder_2=_clip(two, CLIPTextModelWithProjection, WIDTH // 2, hidden_act="gelu"),
        tokenizer_2=two,
        text_encoder_3=encoder,
        tokenizer_3=words,
    )


def flux_pipeline(
    folder: Path, *, guided: bool = True, words: int = 2 * WIDTH, pooled: int = WIDTH
) -> FluxPipeline:
    """One double and one single block; dev with its guidance embedding, or schnell without."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    vocabulary, encoder = _t5(words)
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
        vae=_flow_vae(),
        text_encoder=_clip(tokenizer, CLIPTextModel, pooled),
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=vocabulary,
        transformer=transformer,
    )


def chroma_pipeline(folder: Path, *, words: int = 2 * WIDTH) -> ChromaPipeline:
    """Two double and two single blocks; T5 alone."""
    torch.manual_seed(0)
    vocabulary, encoder = _t5(words)
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
        vae=_flow_vae(),
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
    tokenizer, encoder = _chat(2 * WIDTH)
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
        vae=_flow_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def qwen_image_pipeline(folder: Path) -> QwenImagePipeline:
    """Two blocks, a VAE of two levels for one frame, and a language model of three layers."""
    torch.manual_seed(0)
    tokenizer, encoder = _chat(2 * WIDTH, "Qwen2_5_VLTextModel")
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
