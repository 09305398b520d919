"""Telling what a file is from its header alone: names and shapes, never a weight."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scdpo_core.families import FAMILIES, LoadOptions, family_of
from scdpo_core.families.detect import detect, of_header
from scdpo_core.family_info import FAMILY_INFO, trainable
from scdpo_core.io.files import read_tensors
from scdpo_core.io.safetensors_header import Header, block_count, numbers, read_header
from scdpo_core.types import ScdpoError
from tests.support.tiny import tiny_sd_folder

D = "model.diffusion_model."
UNET = {f"{D}input_blocks.0.0.weight": (320, 4, 3, 3)}
CONTEXT = f"{D}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FLUX = {f"{D}double_blocks.0.img_attn.qkv.weight": (9216, 3072), f"{D}img_in.weight": (3072, 64)}

QWEN_IMAGE = {
    "img_in.weight": (3072, 64),
    "txt_norm.weight": (3584,),
    "txt_in.weight": (3072, 3584),
    "transformer_blocks.0.attn.add_q_proj.weight": (3072, 3072),
    "transformer_blocks.0.img_mod.1.weight": (18432, 3072),
    "proj_out.weight": (64, 3072),
}
# Names and shapes of Comfy-Org's z_image files, as ComfyUI's detection reads them.
Z_IMAGE = {
    "cap_embedder.1.weight": (3840, 2560),
    "x_embedder.weight": (3840, 64),
    "noise_refiner.0.attention.k_norm.weight": (128,),
    "layers.0.adaLN_modulation.0.weight": (15360, 256),
    "layers.0.attention.qkv.weight": (11520, 3840),
    "final_layer.linear.weight": (64, 3840),
}
# As lodestones' checkpoints name them; ComfyUI's loader looks at the same names.
CHROMA = {
    "img_in.weight": (3072, 64),
    "txt_in.weight": (3072, 4096),
    "distilled_guidance_layer.in_proj.weight": (5120, 64),
    "distilled_guidance_layer.norms.0.scale": (5120,),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "single_blocks.0.linear1.weight": (21504, 3072),
    "final_layer.linear.weight": (64, 3072),
}
RADIANCE = {
    "img_in_patch.weight": (3072, 3, 16, 16),
    "distilled_guidance_layer.norms.0.scale": (5120,),
    "double_blocks.0.img_attn.qkv.weight": (9216, 3072),
    "nerf_blocks.0.norm.scale": (64,),
    "nerf_image_embedder.embedder.0.weight": (64, 67),
}


LUMINA = {
    "cap_embedder.1.weight": (2304, 2304),
    "x_embedder.weight": (2304, 64),
    "noise_refiner.0.attention.k_norm.weight": (96,),
    "layers.0.adaLN_modulation.1.weight": (9216, 1024),
    "layers.0.attention.qkv.weight": (3840, 2304),
}


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({**UNET, CONTEXT: (320, 768)}, "sd1"),
        ({**UNET, "cond_stage_model.transformer.text_model.x": (1,)}, "sd1"),
        ({**UNET, CONTEXT: (320, 1024)}, "sd2"),
        ({**UNET, "cond_stage_model.model.ln_final.weight": (1024,)}, "sd2"),
        ({**UNET, f"{D}label_emb.0.0.weight": (1280, 2816), CONTEXT: (640, 2048)}, "sdxl"),
        ({**UNET, "conditioner.embedders.1.model.ln_final.weight": (1280,)}, "sdxl"),
        ({f"{D}joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}, "sd3"),
        ({"joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}, "sd3"),
        (FLUX, "flux"),
        (Z_IMAGE, "z_image"),
        (QWEN_IMAGE, "qwen_image"),
        ({f"{D}{name}": shape for name, shape in QWEN_IMAGE.items()}, "qwen_image"),
        ({f"{D}{name}": shape for name, shape in Z_IMAGE.items()}, "z_image"),
        ({name.removeprefix(D): shape for name, shape in FLUX.items()}, "flux"),
        (CHROMA, "chroma"),
        ({f"{D}{name}": shape for name, shape in CHROMA.items()}, "chroma"),
    ],
)
def test_every_family_is_known_by_its_names_and_shapes(
    shapes: dict[str, tuple[int, ...]], family: str
) -> None:
    kind = of_header(Header(shapes))
    assert (kind.family, kind.title) == (family, f"a {FAMILY_INFO[family].title} model")


@pytest.mark.parametrize(
    ("shapes", "title"),
    [
        ({"lora_unet_down_blocks_0_x.lora_up.weight": (320, 4)}, "a LoRA"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)}, "a LoRA"),
        ({f"{D}double_blocks.0.img_attn.qkv.lora_A.weight": (4, 3072)}, "a LoRA"),
        ({**UNET, f"{D}input_blocks.0.0.weight": (320, 9, 3, 3), CONTEXT: (1, 768)}, "extra channels"),
        ({**UNET, "conditioner.embedders.0.model.ln_final.weight": (1280,)}, "refiner"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "a ControlNet"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "a textual inversion"),
        ({**FLUX, f"{D}img_in.weight": (3072, 384)}, "Fill, Depth or Canny"),
        ({**FLUX, f"{D}double_blocks.0.img_attn.qkv.weight.absmax": (9,)}, "bitsandbytes"),
        ({f"{D}{name}": shape for name, shape in RADIANCE.items()}, "a Chroma1-Radiance model"),
        (RADIANCE, "a Chroma1-Radiance model"),
        ({f"{D}double_stream_modulation_img.lin.weight": (9, 9)}, "a FLUX.2 model"),
        ({**QWEN_IMAGE, "time_text_embed.addition_t_embedding.weight": (2, 3072)}, "of layers"),
        ({**QWEN_IMAGE, "img_in.weight": (3072, 128)}, "built like Qwen-Image"),
        (LUMINA, "a Lumina Image 2.0 model"),
        ({**Z_IMAGE, "siglip_embedder.0.weight": (1152,)}, "also reads images"),
        ({**Z_IMAGE, "x_embedder.weight": (3840, 3072), "dec_net.cond_embed.weight": (9, 9)}, "of pixels"),
        ({"all_x_embedder.2-1.weight": (3840, 64)}, "denoiser of a diffusers folder"),
        ({"model.embed_tokens.weight": (151936, 2560)}, "a text encoder alone"),
        ({**UNET, "edm_mean": (4,)}, "an EDM model"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "a VAE alone"),
        ({"text_model.embeddings.position_ids": (1, 77)}, "a text encoder alone"),
        ({"down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}, "denoiser of a diffusers folder"),
        ({"transformer_blocks.0.attn.to_q.weight": (3072, 3072)}, "denoiser of a diffusers folder"),
        ({"weights": (1,)}, "no model that is known here"),
    ],
)
def test_whatever_cannot_be_trained_is_called_by_its_name(
    shapes: dict[str, tuple[int, ...]], title: str
) -> None:
    kind = of_header(Header(shapes))
    assert kind.family is None
    assert title in kind.title
    assert kind.advice


def test_every_record_of_a_base_model_has_its_family() -> None:
    assert [info.name for info in trainable()] == [*FAMILIES]
    assert all(family.title == FAMILY_INFO[name].title for name, family in FAMILIES.items())


def _save(path: Path, names: dict[str, tuple[int, ...]], **metadata: str) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, str(path), metadata or None)
    return path


@pytest.mark.parametrize(
    ("names", "metadata", "prediction", "zero_snr"),
    [
        ({}, {}, None, False),
        ({"v_pred": (0,)}, {}, "v_prediction", False),
        ({"v_pred": (0,), "ztsnr": (0,)}, {}, "v_prediction", True),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
        ({}, {"modelspec.prediction_type": "something new"}, None, False),
        ({}, {"prediction_type": "v_prediction"}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": " V-Pred "}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "?", "prediction_type": "epsilon"}, "epsilon", False),
        ({}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, "v_prediction", True),
        ({}, {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, None, False),
        ({}, {"ss_v_parameterization": "True", "prediction_type": "epsilon"}, "epsilon", False),
    ],
)
def test_marks_of_fine_tunes_are_read(
    tmp_path: Path,
    names: dict[str, tuple[int, ...]],
    metadata: dict[str, str],
    prediction: str | None,
    zero_snr: bool,
) -> None:
    header = read_header(_save(tmp_path / "model.safetensors", {"x": (1,)} | names, **metadata))
    assert (header.prediction, header.zero_snr) == (prediction, zero_snr)
    assert header.shape("y", "x") == (1,)
    assert header.shape("y") == ()


def test_a_prediction_that_is_not_known_is_asked_about(tmp_path: Path) -> None:
    names = {f"{D}input_blocks.0.0.weight": (1, 4, 1, 1), CONTEXT: (1, 2048), "first_stage_model.x": (1,)}
    names |= {"conditioner.embedders.0.transformer.x": (1,), "conditioner.embedders.1.model.x": (1,)}
    path = _save(tmp_path / "xl.safetensors", names, **{"modelspec.prediction_type": "flow"})
    (problem,) = FAMILIES["sdxl"].check(path)
    assert problem.fatal and "predicts 'flow', which is not known here" in problem.what
    assert FAMILIES["sdxl"].check(path, LoadOptions(prediction="epsilon")) == []


def test_block_numbers_are_read() -> None:
    odd = ["joint_blocks.²", "joint_blocks.٣", "joint_blocks." + "9" * 5000]
    assert numbers(odd, "joint_blocks.") == {3}


def test_blocks_are_counted_only_where_none_is_missing() -> None:
    assert block_count(["joint_blocks.1.x", "joint_blocks.0.x"], "joint_blocks.") == 2
    for names in ([], ["joint_blocks.0.x", "joint_blocks.99999999.x"]):
        with pytest.raises(ScdpoError, match="is missing: the file is incomplete"):
            block_count(names, "joint_blocks.")


def test_tensors_without_dimensions_are_no_model() -> None:
    for shapes in ({f"{D}input_blocks.0.0.weight": (5,)}, {**UNET, CONTEXT: ()}):
        assert of_header(Header(shapes)).title  # whatever it is called, it does not stumble
    assert numbers(["a.joint_blocks.0.x", "joint_blocks.11.y", "other.3"], "joint_blocks.") == {0, 11}


def test_a_wrong_file_says_what_it_is_and_what_was_expected(tmp_path: Path) -> None:
    xl = _save(tmp_path / "xl.safetensors", {**{k: (1, 4, 1, 1) for k in UNET}, CONTEXT: (1, 2048)})
    (problem,) = FAMILIES["sd1"].check(xl)
    assert problem.path == xl
    assert problem.what == (
        "This is a Stable Diffusion XL model; a Stable Diffusion 1.x model was expected. "
        "Set the family to 'sdxl' or 'auto', or give another base."
    )
    assert family_of("auto", xl) is FAMILIES["sdxl"]
    lora = _save(tmp_path / "lora.safetensors", {"lora_unet_x.alpha": (1,)})
    with pytest.raises(ScdpoError, match=r"lora\.safetensors: This is a LoRA, not a base model"):
        family_of("auto", lora)
    with pytest.raises(ScdpoError, match="damaged"):
        (tmp_path / "broken.safetensors").write_bytes(b"\x10")
        family_of("auto", tmp_path / "broken.safetensors")
    with pytest.raises(ScdpoError, match="GGUF"):
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        detect(tmp_path / "model.gguf")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_renamed_pickle_is_called_one_whatever_its_age(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weight": [1.0]}, protocol))
    with pytest.raises(ScdpoError, match="renamed pickle"):
        family_of("auto", path)
    with pytest.raises(ValueError, match="is a pickle file"):
        read_tensors(path)


def test_a_file_that_may_not_be_read_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"secret")

    def locked(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("scdpo_core.io.safetensors_header.is_pickle", locked)
    with pytest.raises(ScdpoError, match=r"cannot be read \(Permission denied\)"):
        family_of("auto", path)


def test_a_folder_with_an_edm_schedule_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}', "utf-8")
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.write_text('{"_class_name": "EDMDPMSolverMultistepScheduler"}', "utf-8")
    assert detect(tmp_path).family is None and "EDM" in detect(tmp_path).title
    scheduler.write_text('{"_class_name": "EulerDiscreteScheduler"}', "utf-8")
    assert detect(tmp_path).family == "sdxl"


def test_a_single_file_says_which_parts_it_lacks_and_where_to_get_them(tmp_path: Path) -> None:
    names = {"double_blocks.0.x": (1,), "img_in.weight": (1, 64)}
    flux = _save(tmp_path / "flux.safetensors", names)
    told = " ".join(problem.what for problem in FAMILIES["flux"].check(flux))
    for part in ("the VAE", "--vae", "clip_l", "t5xxl", "--text-encoders"):
        assert part in told
    texts = tmp_path / "texts"
    texts.mkdir()
    _save(texts / "clip_l.safetensors", {"text_model.x": (1,)})
    _save(texts / "t5xxl_fp16.safetensors", {"encoder.block.x": (1,)})
    vae = _save(tmp_path / "ae.safetensors", {"decoder.conv_in.weight": (1,)})
    (problem,) = FAMILIES["flux"].check(flux, LoadOptions(vae=vae, text_encoders=texts))
    assert "tokenizer of t5xxl" in problem.what
    assert problem.fatal
    (texts / "tokenizer.json").write_text("{}", "utf-8")
    assert FAMILIES["flux"].check(flux, LoadOptions(vae=vae, text_encoders=texts)) == []
    gone = LoadOptions(vae=tmp_path / "none", text_encoders=tmp_path / "nowhere")
    told = " ".join(problem.what for problem in FAMILIES["flux"].check(flux, gone))
    assert "no such VAE" in told
    assert "no folder" in told
    wrong = FAMILIES["flux"].check(flux, LoadOptions(vae=flux, text_encoders=texts, prediction="epsilon"))
    assert [problem.what.split(",")[0] for problem in wrong] == [
        "This file holds no VAE.",
        "FLUX.1 predicts a flow",
    ]


def test_what_a_base_would_never_hear_is_refused(tmp_path: Path) -> None:
    folder, texts = tiny_sd_folder(tmp_path / "sd"), tmp_path / "texts"
    texts.mkdir()
    (problem,) = FAMILIES["sd1"].check(folder, LoadOptions(text_encoders=texts))
    assert problem.fatal
    assert problem.what == (
        "This model holds its own text encoders, and another folder of them is not read: leave "
        "--text-encoders out."
    )
    schnell = _save(tmp_path / "schnell.safetensors", {"double_blocks.0.x": (1,), "img_in.weight": (1, 64)})
    dev = {"double_blocks.0.x": (1,), "img_in.weight": (1, 64), "guidance_in.in_layer.weight": (1, 1)}
    told = [problem.what for problem in FAMILIES["flux"].check(schnell, LoadOptions(guidance=3.5))]
    assert any("takes no guidance embedding" in what for what in told)
    both = (
        FAMILIES["flux"].check(schnell),
        FAMILIES["flux"].check(_save(tmp_path / "dev.safetensors", dev), LoadOptions(guidance=3.5)),
    )
    assert not any("guidance" in problem.what for problems in both for problem in problems)
