"""Modules of transformers in their original checkpoints -> in diffusers, one table a family.

'#' is the number of a block; brackets list what the original keeps as one matrix, in the order of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping

_FLUX = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "double_blocks.#.img_mod.lin": "transformer_blocks.#.norm1.linear",
    "double_blocks.#.txt_mod.lin": "transformer_blocks.#.norm1_context.linear",
    "double_blocks.#.img_attn.qkv": "transformer_blocks.#.attn.(to_q,to_k,to_v)",
    "double_blocks.#.txt_attn.qkv": "transformer_blocks.#.attn.(add_q_proj,add_k_proj,add_v_proj)",
    "double_blocks.#.img_attn.proj": "transformer_blocks.#.attn.to_out.0",
    "double_blocks.#.txt_attn.proj": "transformer_blocks.#.attn.to_add_out",
    "double_blocks.#.img_mlp.0": "transformer_blocks.#.ff.net.0.proj",
    "double_blocks.#.img_mlp.2": "transformer_blocks.#.ff.net.2",
    "double_blocks.#.txt_mlp.0": "transformer_blocks.#.ff_context.net.0.proj",
    "double_blocks.#.txt_mlp.2": "transformer_blocks.#.ff_context.net.2",
    "single_blocks.#.modulation.lin": "single_transformer_blocks.#.norm.linear",
    "single_blocks.#.linear1": "single_transformer_blocks.#.(attn.to_q,attn.to_k,attn.to_v,proj_mlp)",
    "single_blocks.#.linear2": "single_transformer_blocks.#.proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
# FLUX.1 schnell without its modulations: one small network makes all of them.
_CHROMA = {
    path: modules
    for path, modules in _FLUX.items()
    if not path.startswith(("time_in.", "vector_in.", "guidance_in."))
    and not path.endswith(("_mod.lin", ".modulation.lin", ".adaLN_modulation.1"))
} | {
    "distilled_guidance_layer.in_proj": "distilled_guidance_layer.in_proj",
    "distilled_guidance_layer.layers.#.in_layer": "distilled_guidance_layer.layers.#.linear_1",
    "distilled_guidance_layer.layers.#.out_layer": "distilled_guidance_layer.layers.#.linear_2",
    "distilled_guidance_layer.out_proj": "distilled_guidance_layer.out_proj",
}
_FLUX2 = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "double_blocks.#.img_attn.qkv": "transformer_blocks.#.attn.(to_q,to_k,to_v)",
    "double_blocks.#.txt_attn.qkv": "transformer_blocks.#.attn.(add_q_proj,add_k_proj,add_v_proj)",
    "double_blocks.#.img_attn.proj": "transformer_blocks.#.attn.to_out.0",
    "double_blocks.#.txt_attn.proj": "transformer_blocks.#.attn.to_add_out",
    "double_blocks.#.img_mlp.0": "transformer_blocks.#.ff.linear_in",
    "double_blocks.#.img_mlp.2": "transformer_blocks.#.ff.linear_out",
    "double_blocks.#.txt_mlp.0": "transformer_blocks.#.ff_context.linear_in",
    "double_blocks.#.txt_mlp.2": "transformer_blocks.#.ff_context.linear_out",
    "single_blocks.#.linear1": "single_transformer_blocks.#.attn.to_qkv_mlp_proj",
    "single_blocks.#.linear2": "single_transformer_blocks.#.attn.to_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_SD3 = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "joint_blocks.#.x_block.adaLN_modulation.1": "transformer_blocks.#.norm1.linear",
    "joint_blocks.#.context_block.adaLN_modulation.1": "transformer_blocks.#.norm1_context.linear",
    "joint_blocks.#.x_block.attn.qkv": "transformer_blocks.#.attn.(to_q,to_k,to_v)",
    "joint_blocks.#.context_block.attn.qkv": "transformer_blocks.#.attn.(add_q_proj,add_k_proj,add_v_proj)",
    "joint_blocks.#.x_block.attn.proj": "transformer_blocks.#.attn.to_out.0",
    "joint_blocks.#.context_block.attn.proj": "transformer_blocks.#.attn.to_add_out",
    "joint_blocks.#.x_block.attn2.qkv": "transformer_blocks.#.attn2.(to_q,to_k,to_v)",
    "joint_blocks.#.x_block.attn2.proj": "transformer_blocks.#.attn2.to_out.0",
    "joint_blocks.#.x_block.mlp.fc1": "transformer_blocks.#.ff.net.0.proj",
    "joint_blocks.#.x_block.mlp.fc2": "transformer_blocks.#.ff.net.2",
    "joint_blocks.#.context_block.mlp.fc1": "transformer_blocks.#.ff_context.net.0.proj",
    "joint_blocks.#.context_block.mlp.fc2": "transformer_blocks.#.ff_context.net.2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}

_BLOCKS_OF_Z_IMAGE = ("noise_refiner", "context_refiner", "layers")
_Z_IMAGE = {
    "x_embedder": "all_x_embedder.2-1",
    "cap_embedder.1": "cap_embedder.1",
    "t_embedder.mlp.0": "t_embedder.mlp.0",
    "t_embedder.mlp.2": "t_embedder.mlp.2",
    **{
        f"{blocks}.#.{original}": f"{blocks}.#.{module}"
        for blocks in _BLOCKS_OF_Z_IMAGE
        for original, module in (
            ("adaLN_modulation.0", "adaLN_modulation.0"),
            ("attention.qkv", "attention.(to_q,to_k,to_v)"),
            ("attention.out", "attention.to_out.0"),
            ("feed_forward.w1", "feed_forward.w1"),
            ("feed_forward.w2", "feed_forward.w2"),
            ("feed_forward.w3", "feed_forward.w3"),
        )
    },
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    "final_layer.linear": "all_final_layer.2-1.linear",
}

# Its checkpoints have diffusers' names.
_QWEN_IMAGE = {
    module: module
    for module in (
        "img_in",
        "txt_in",
        "time_text_embed.timestep_embedder.linear_1",
        "time_text_embed.timestep_embedder.linear_2",
        *(
            f"transformer_blocks.#.{inner}"
            for inner in (
                "img_mod.1",
                "txt_mod.1",
                "attn.to_q",
                "attn.to_k",
                "attn.to_v",
                "attn.add_q_proj",
                "attn.add_k_proj",
                "attn.add_v_proj",
                "attn.to_out.0",
                "attn.to_add_out",
                "img_mlp.net.0.proj",
                "img_mlp.net.2",
                "txt_mlp.net.0.proj",
                "txt_mlp.net.2",
            )
        ),
        "norm_out.linear",
        "proj_out",
    )
}

TABLES: Mapping[str, Mapping[str, str]] = {
    "sd3": _SD3,
    "flux": _FLUX,
    "chroma": _CHROMA,
    "flux2": _FLUX2,
    "z_image": _Z_IMAGE,
    "qwen_image": _QWEN_IMAGE,
}
"""By family: original path -> diffusers' path or paths."""

PROPORTIONS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "single_blocks.#.linear1": {"flux": (7, 1), "chroma": (7, 1), "flux2": (9, 1)},
    "single_blocks.#.linear2": {"flux": (1, 5), "chroma": (1, 5), "flux2": (1, 4)},
    "double_blocks.#.img_mlp.0": {"flux": (4, 1), "chroma": (4, 1), "flux2": (6, 1)},
    "double_blocks.#.img_mlp.2": {"flux": (1, 4), "chroma": (1, 4), "flux2": (1, 3)},
    "double_blocks.#.txt_mlp.0": {"flux": (4, 1), "chroma": (4, 1), "flux2": (6, 1)},
    "double_blocks.#.txt_mlp.2": {"flux": (1, 4), "chroma": (1, 4), "flux2": (1, 3)},
}
"""Original path -> by family, rows to inputs of its matrix: what tells layouts apart that share all names."""
