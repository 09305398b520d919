"""Where a base model is: the embedded one, a file, a folder, or a name on the model hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..family_info import MICRO
from ..types import ScdpoError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL = (".json", ".txt", ".model")
# Half of a hub's files are the same weights in other clothes.
_OTHER_CLOTHES = ("non_ema", "flax", "openvino", "onnx")


def is_hub_id(base: str | Path) -> bool:
    """Whether `base` reads like 'owner/model' and is nothing on this machine."""
    name = str(base)
    is_file = Path(name).suffix.lower() in (".safetensors", ".ckpt", ".pt", ".gguf")
    return bool(_HUB_ID.fullmatch(name)) and not is_file and not Path(name).exists()


def model_name(base: str | Path) -> str:
    """What the artist calls a base model: 'micro', the stem of its file, or the last part of its name."""
    if str(base) == MICRO:
        return MICRO
    path = Path(base)
    return path.stem if path.suffix == ".safetensors" else path.name


def lora_family(base: str | Path, family: str) -> str:
    """What a LoRA that is made on a base model says that it is for.

    The embedded model has a name of its own there: its LoRAs fit no other model of its `family`.
    """
    return MICRO if str(base) == MICRO else family


def vae_beside(text_encoders: Path | None) -> Path | None:
    """The VAE's folder in a folder of text encoders, as in a whole diffusers folder; None if it has none."""
    home = None if text_encoders is None else text_encoders / "vae"
    return home if home is not None and any(home.glob("*.safetensors")) else None


def locate(base: str | Path, parts: Sequence[str] = (), *, weights: bool = True) -> Path:
    """The folder or file that `base` means. What the hub has is fetched into its own cache once.

    Args:
        base: 'micro', a path, or a name on the hub.
        parts: subfolders that are wanted from the hub, beside model_index.json.
        weights: whether weights are wanted, or only the small files beside them.

    Raises:
        ScdpoError: the hub does not have it, or cannot be asked.
    """
    if str(base) == MICRO:
        from ..micro.model import WEIGHTS

        return WEIGHTS
    if is_hub_id(base):
        return _from_hub(str(base), parts, weights=weights)
    return Path(base).expanduser()


def wanted_files(files: Sequence[str], parts: Sequence[str], *, weights: bool) -> list[str]:
    """What is needed of a diffusers folder on the hub; fp16 weights only where there are no others."""
    chosen = ["model_index.json"] if "model_index.json" in files else []
    for part in parts:
        own = [file for file in files if file.startswith(f"{part}/")]
        chosen += [file for file in own if file.endswith(_SMALL)]
        if weights:
            heavy = [file for file in own if file.endswith(".safetensors")]
            heavy = [file for file in heavy if not any(word in file for word in _OTHER_CLOTHES)]
            # 'model.fp16.safetensors', and in parts 'model.fp16-00001-of-00002.safetensors'.
            chosen += [file for file in heavy if not re.search(r"\.fp16[.-]", file)] or heavy
    return sorted(set(chosen))


def _from_hub(name: str, parts: Sequence[str], *, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        wanted = wanted_files(HfApi().list_repo_files(name), parts, weights=weights)
        return Path(snapshot_download(name, allow_patterns=wanted))
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            what = "hides it: check the name, accept its terms there, and log in ('hf auth login')"
        else:
            what = "has no such model" if status == 404 else f"answered with an error ({status})"
        raise ScdpoError(f"There is no {name} on this machine, and the model hub {what}.") from error
    except Exception as error:
        # Every library below has its own errors for 'no network'; what was fetched before is still here.
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:
            raise ScdpoError(
                f"There is no {name} on this machine, and the model hub cannot be reached "
                f"({type(error).__name__}). Connect to the network, or give a .safetensors file or a folder."
            ) from error
