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

from .checkpoints import Checkpoint, checkpoint_of, weights_taken

# The LoRA extension of every host is no package, so these are its modules' names.
_NETWORKS, _NETWORK = "networks", "network"


def option(name: str) -> Any:
    """A setting, also one that the host has not got yet because the extension is new."""
    return getattr(shared.opts, name, None)


def device() -> str:
    """Where the host draws."""
    from modules import devices

    return str(devices.device)


def cost_models_folder() -> Path:
    """Where cost models lie."""
    return Path(paths_internal.models_path) / "safety_cost"


def output_folder() -> Path:
    """Where the host's images go, whatever its settings say: those can be changed through the API."""
    return Path(paths_internal.default_output_dir)


def roots() -> list[Path]:
    """The folders whose images the API may score: the host's own and those of --scdpo-folder."""
    return [output_folder(), *(Path(folder).expanduser() for folder in shared.cmd_opts.scdpo_folder)]


def loras() -> dict[str, Path]:
    """File of every LoRA by its name; empty where the host's LoRA extension is switched off."""
    networks = sys.modules.get(_NETWORKS)
    found = getattr(networks, "available_networks", {})
    return {name: Path(entry.filename) for name, entry in sorted(found.items())}


def find_loras_again() -> None:
    """Let the host look into its LoRA folder."""
    networks = sys.modules.get(_NETWORKS)
    if networks is not None:
        networks.list_available_networks()


def lora_file(name: str) -> Path:
    """The file of a LoRA.

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
    """Where the host looks for LoRAs; what is trained here goes into the first one."""
    # Forge Neo has further ones.
    return [Path(folder) for folder in (shared.cmd_opts.lora_dir, *getattr(shared.cmd_opts, "lora_dirs", ()))]


def lora_versions() -> list[str]:
    """What the "sd version" of a LoRA's card can be; empty where the host does not say."""
    module = sys.modules.get(_NETWORK)
    # A list in Forge Neo, an enumeration in the others.
    names = getattr(module, "SD_VERSION", None) or getattr(
        getattr(module, "SdVersion", None), "__members__", ()
    )
    return [*names]


def why_not_applied(name: str) -> str:
    """Why a LoRA that the host was to take up just now changes nothing; '' if no reason can be seen."""
    networks = sys.modules.get(_NETWORKS)
    found = next((net for net in getattr(networks, "loaded_networks", ()) if net.name == name), None)
    if found is None:
        return f"This host could not load the safety LoRA '{name}'; its log says why."
    if weights_taken(found, getattr(shared.sd_model, "forge_objects_after_applying_lora", None)):
        return ""
    title = checkpoint().title or "the checkpoint in use"
    return (
        f"The safety LoRA '{name}' changes nothing: this host found no weight in it that fits {title}. "
        "Choose a LoRA for this base model."
    )


def checkpoint() -> Checkpoint:
    """The checkpoint that the host draws with."""
    return checkpoint_of(shared.sd_model)


def stop() -> None:
    """End the generation before its next step."""
    shared.state.interrupted = True


def log(sentence: str) -> None:
    """Write a sentence where the host's other errors go, with the traceback of an exception that is none of
    ours."""
    kind = sys.exc_info()[0]
    errors.report(f"SC-DPO: {sentence}", exc_info=kind is not None and not issubclass(kind, ScdpoError))


def veil(change: Callable[[Any], Any] | None) -> None:
    """Let previews pass through a function from now on; None for as they are.

    All previews of both hosts go through one method of the state, which this covers up.
    """
    vars(shared.state).pop("assign_current_image", None)
    if change is not None:
        show = shared.state.assign_current_image
        shared.state.assign_current_image = lambda image: show(change(image))


def credentials() -> dict[str, str]:
    """Names and passwords of --api-auth; empty if it is not used."""
    given = shared.cmd_opts.api_auth or ""
    return dict(part.partition(":")[::2] for part in given.split(",") if part)


def welcomes(origin: str) -> bool:
    """Whether the host was started to answer the web pages of that origin too."""
    given = shared.cmd_opts.cors_allow_origins or ""
    if origin in (part.strip() for part in given.split(",") if part.strip()) or given.strip() == "*":
        return True
    pattern = shared.cmd_opts.cors_allow_origins_regex
    return bool(pattern and re.fullmatch(pattern, origin))


def serves_api() -> bool:
    """Whether the host was started with an API."""
    return bool(shared.cmd_opts.api or shared.cmd_opts.nowebui)


def cost_model_files() -> Iterator[Path]:
    """Cost models that lie in their folder."""
    folder = cost_models_folder()
    return iter(sorted(folder.glob("*.safetensors"))) if folder.is_dir() else iter(())
