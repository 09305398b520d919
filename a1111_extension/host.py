"""All that is known of A1111 and Forge: where they keep things. Nothing else imports their modules but the
script itself, so that the rest runs without them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modules import errors, paths_internal, shared

from scdpo_core.types import ScdpoError

from .checkpoints import Checkpoint, applies_weights, checkpoint_of

# The LoRA extension of every host is no package, so these are its modules' names.
_NETWORKS, _NETWORK = "networks", "network"


def option(name: str) -> Any:
    """Return a setting, also one that the host does not have yet because the extension is new."""
    return getattr(shared.opts, name, None)


def device() -> str:
    """Return the host's device."""
    from modules import devices

    return str(devices.device)


def cost_models_folder() -> Path:
    """Return the folder of cost models."""
    return Path(paths_internal.models_path) / "safety_cost"


def output_folder() -> Path:
    """Return the host's output folder, independent of settings that the API can change."""
    return Path(paths_internal.default_output_dir)


def roots() -> list[Path]:
    """Return the folders whose images the API may score: the host's and those of --scdpo-folder."""
    return [output_folder(), *(Path(folder).expanduser() for folder in shared.cmd_opts.scdpo_folder)]


def loras() -> dict[str, Path]:
    """Return the file of every LoRA by name; empty where the host's LoRA extension is off."""
    networks = sys.modules.get(_NETWORKS)
    networks_by_name = getattr(networks, "available_networks", {})
    return {name: Path(entry.filename) for name, entry in sorted(networks_by_name.items())}


def find_loras_again() -> None:
    """Let the host look into its LoRA folder."""
    networks = sys.modules.get(_NETWORKS)
    if networks is not None:
        networks.list_available_networks()


def lora_file(name: str) -> Path:
    """Return the file of a LoRA.

    Raises:
        ScdpoError: there is none.
    """
    if name not in loras():
        find_loras_again()
    if name not in loras():
        where = " or ".join(map(str, lora_folders()))
        if _NETWORKS not in sys.modules:
            where = "no folder: LoRAs are switched off"
        raise ScdpoError(
            f"There is no LoRA '{name}' in {where}. Put '{name}.safetensors' there, or choose another one."
        )
    return loras()[name]


def lora_folders() -> list[Path]:
    """Return the folders where the host looks for LoRAs; trained ones go into the first."""
    # Forge Neo has further ones.
    return [Path(folder) for folder in (shared.cmd_opts.lora_dir, *getattr(shared.cmd_opts, "lora_dirs", ()))]


def lora_versions() -> list[str]:
    """Return the possible "sd version" values of a LoRA's card; empty where the host lists none."""
    module = sys.modules.get(_NETWORK)
    # A list in Forge Neo, an enumeration in the others.
    names = getattr(module, "SD_VERSION", None) or getattr(
        getattr(module, "SdVersion", None), "__members__", ()
    )
    return [*names]


def why_not_applied(name: str) -> str:
    """Return why a LoRA that the host just loaded changes nothing; '' if no reason can be seen."""
    networks = sys.modules.get(_NETWORKS)
    network = next((net for net in getattr(networks, "loaded_networks", ()) if net.name == name), None)
    if network is None:
        return f"This host could not load the safety LoRA '{name}'; its log says why."
    if applies_weights(network, getattr(shared.sd_model, "forge_objects_after_applying_lora", None)):
        return ""
    title = checkpoint().title or "the checkpoint in use"
    return (
        f"The safety LoRA '{name}' changes nothing: this host found no weight in it that fits {title}. "
        "Choose a LoRA for this base model."
    )


def checkpoint() -> Checkpoint:
    """Return the checkpoint in use."""
    return checkpoint_of(shared.sd_model)


def stop() -> None:
    """End the generation before its next step."""
    shared.state.interrupted = True


def log(sentence: str) -> None:
    """Write a sentence to the host's error log, with the traceback of any exception but `ScdpoError`."""
    kind = sys.exc_info()[0]
    errors.report(f"SC-DPO: {sentence}", exc_info=kind is not None and not issubclass(kind, ScdpoError))


def wrap_preview(change: Callable[[Any], Any] | None) -> None:
    """Apply a function to all previews from now on; None to show them unchanged.

    All previews of both hosts go through one method of the state, which is wrapped here.
    """
    vars(shared.state).pop("assign_current_image", None)
    if change is not None:
        show = shared.state.assign_current_image
        shared.state.assign_current_image = lambda image: show(change(image))


def credentials() -> dict[str, str]:
    """Return names and passwords of --api-auth; empty if it is not used."""
    accounts = shared.cmd_opts.api_auth or ""
    return dict(part.partition(":")[::2] for part in accounts.split(",") if part)


def welcomes(origin: str) -> bool:
    """Return whether the host was started to accept web pages of an origin."""
    origins = shared.cmd_opts.cors_allow_origins or ""
    if origin in (part.strip() for part in origins.split(",") if part.strip()) or origins.strip() == "*":
        return True
    pattern = shared.cmd_opts.cors_allow_origins_regex
    return bool(pattern and re.fullmatch(pattern, origin))


def serves_api() -> bool:
    """Return whether the host was started with an API."""
    return bool(shared.cmd_opts.api or shared.cmd_opts.nowebui)


def cost_model_files() -> Iterator[Path]:
    """Cost models that lie in their folder."""
    folder = cost_models_folder()
    return iter(sorted(folder.glob("*.safetensors"))) if folder.is_dir() else iter(())
