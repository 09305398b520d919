"""Every name in the stub of the hosts' modules is in a real host, whose source is read; nothing runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support import webui_stub

# What our code uses, and where the stub has it: module, class ('' for the module itself), names.
NAMES = (
    ("modules/scripts.py", "", ("Script", "AlwaysVisible", "scripts_data")),
    ("modules/scripts.py", "", ("ScriptRunner",)),
    ("modules/scripts.py", "ScriptRunner", ("postprocess_image_after_composite", "postprocess")),
    ("modules/script_callbacks.py", "", ("before_image_saved_callback", "image_grid_callback")),
    ("modules/scripts.py", "Script", ("elem_id", "infotext_fields", "paste_field_names")),
    ("modules/script_callbacks.py", "", webui_stub.CALLBACKS),
    ("modules/script_callbacks.py", "ImageSaveParams", ("image", "p", "pnginfo")),
    ("modules/script_callbacks.py", "ImageGridLoopParams", ("imgs", "cols", "rows")),
    ("modules/shared.py", "", ("opts", "state", "cmd_opts", "sd_model", "OptionInfo")),
    ("modules/shared_state.py", "State", ("interrupted", "current_image", "assign_current_image")),
    ("modules/shared_state.py", "State", ("begin", "end")),
    ("modules/options.py", "Options", ("add_option", "data_labels")),
    ("modules/options.py", "OptionInfo", ("default", "section", "refresh", "restrict_api", "info")),
    ("modules/errors.py", "", ("report",)),
    ("modules/paths_internal.py", "", ("models_path", "default_output_dir", "data_path")),
    ("modules/devices.py", "", ("device",)),
    ("modules/call_queue.py", "", ("queue_lock",)),
    (
        "modules/sd_models.py",
        "",
        (
            *("checkpoints_list", "model_data", "send_model_to_cpu", "send_model_to_device"),
            "unload_model_weights",
        ),
    ),
    ("modules/sd_models.py", "CheckpointInfo", ("filename", "name", "title")),
    ("modules/sd_models.py", "SdModelData", ("sd_model",)),
    ("modules/infotext_utils.py", "", ("PasteField",)),
    ("modules/ui_components.py", "", ("InputAccordion",)),
    ("modules/ui_common.py", "", ("create_refresh_button",)),
    ("scripts/xyz_grid.py", "", ("AxisOption", "axis_options")),
    ("scripts/xyz_grid.py", "AxisOption", ("label", "type", "apply", "confirm", "choices")),
    ("LORA/networks.py", "", ("available_networks", "loaded_networks", "list_available_networks")),
    ("LORA/network.py", "NetworkOnDisk", ("filename", "name")),
    ("modules/processing.py", "Processed", ("images", "extra_generation_params", "index_of_first_image")),
    (
        "modules/processing.py",
        "StableDiffusionProcessing",
        (
            *("all_prompts", "main_prompt", "prompts", "seeds", "iteration", "batch_index", "batch_size"),
            *("extra_generation_params", "disable_extra_networks", "comment", "width", "height"),
            "scripts",
        ),
    ),
    ("modules/processing.py", "StableDiffusionProcessingTxt2Img", ("all_hr_prompts", "enable_hr")),
)
# The ways out for images that Forge Neo alone has.
NEO_ALONE = (
    ("modules/images.py", "", ("save_video",)),
    ("modules/processing.py", "", ("_process_images_via_api",)),
    ("modules/scripts.py", "ScriptRunner", ("alwayson_scripts",)),
)
# Forge and Forge Neo load and unload as they need, and are never asked for these.
A1111_ALONE = {"send_model_to_cpu", "send_model_to_device"}


def names_in(source: ast.AST) -> set[str]:
    """Everything that a body defines, and every attribute that its code sets or reads on an object."""
    found = set()
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


@pytest.mark.parametrize(("file", "owner", "names"), NAMES, ids=lambda value: str(value)[:40])
def test_the_host_has_every_name(webui_dir: Path, file: str, owner: str, names: tuple[str, ...]) -> None:
    forge = (webui_dir / "modules_forge").is_dir()
    lora = "sd_forge_lora" if forge else "Lora"
    path = webui_dir / file.replace("LORA", f"extensions-builtin/{lora}")
    tree: ast.AST = ast.parse(path.read_text("utf-8"))
    source: ast.AST = tree
    if owner:
        source = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == owner)
    # `p.batch_index` is set from outside of the class.
    known = names_in(source) | ({"batch_index"} if "p.batch_index = i" in path.read_text("utf-8") else set())
    assert set(names) - (A1111_ALONE if forge else set()) <= known


@pytest.mark.parametrize(("file", "owner", "names"), NEO_ALONE, ids=lambda value: str(value)[:40])
def test_neo_has_the_ways_out_that_are_watched(
    webui_dir: Path, file: str, owner: str, names: tuple[str, ...]
) -> None:
    if not (webui_dir / "modules_forge" / "presets.py").is_file():
        pytest.skip("not Forge Neo")
    test_the_host_has_every_name(webui_dir, file, owner, names)
    calls = (webui_dir / "modules" / "processing.py").read_text("utf-8")
    assert "images.save_video(p, frames, info=" in calls and "return _process_images_via_api(p)" in calls


def test_the_hooks_are_called(webui_dir: Path) -> None:
    calls = (webui_dir / "modules" / "processing.py").read_text("utf-8")
    networks = (webui_dir / "modules" / "extra_networks.py").read_text("utf-8")
    for hook in ("process(p)", "postprocess_image_after_composite(p, pp)", "postprocess(p, res)"):
        assert f"p.scripts.{hook}" in calls
    assert "after_extra_networks_activate(" in networks
