"""Whether the program that loads the extension is a host in which images can be scored at all."""

from __future__ import annotations

from importlib import import_module

# Without one of these an image could go out unscored: module, what has it, its name.
_HOOKS = (
    ("modules.scripts", "ScriptRunner", "postprocess_image_after_composite"),
    ("modules.scripts", "ScriptRunner", "postprocess"),
    ("modules.script_callbacks", "", "before_image_saved_callback"),
    ("modules.script_callbacks", "", "image_grid_callback"),
)
UNSUPPORTED = (
    "SC-DPO safety is not supported in this program and is switched off: images would go unscored, because "
    "SD.Next (or whatever this is) lacks the hook for finished images. Use it in Forge Neo, Forge, A1111 or "
    "ComfyUI."
)


def why_unsupported() -> str:
    """Return a sentence for the log of a host that lacks a requirement; '' if supported."""
    return "" if all(_has(*hook) for hook in _HOOKS) else UNSUPPORTED


def _has(module: str, owner: str, name: str) -> bool:
    try:
        loaded = import_module(module)
    except ImportError:
        return False
    return hasattr(getattr(loaded, owner, None) if owner else loaded, name)
