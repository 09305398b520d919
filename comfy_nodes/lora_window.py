"""Patch weights for the whole of sampling, or for a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.hooks
from comfy.patcher_extension import WrappersMP

_KEY = "scdpo_window"


@dataclass(frozen=True)
class Window:
    """The part of sampling in which a LoRA is active, 0..1 from the first step to the end of the last."""

    start: float = 0.0
    end: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether it is all of sampling."""
        return self.start <= 0.0 and self.end >= 1.0


def patched(model: Any, patches: Mapping[Any, Any], strength: float, window: Window) -> Any:
    """Clone ComfyUI's model and add patches.

    Args:
        model: of ComfyUI; stays as it is.
        patches: of `comfy.lora.load_lora`.
        strength: factor of all of them.
        window: when they are active. The weights are switched at its edges, which takes a moment.
    """
    clone = model.clone()
    if window.whole:
        clone.add_patches(patches, strength)
        return clone
    hook = comfy.hooks.WeightHook(strength_model=strength, strength_clip=0.0)
    hook.weights, hook.need_weight_init = patches, False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    frames = comfy.hooks.HookKeyframeGroup()
    # No guaranteed steps: the frame before the window would otherwise always get the first step.
    for value, start in ((0.0, 0.0), (1.0, window.start), (0.0, window.end)):
        frames.add(comfy.hooks.HookKeyframe(strength=value, start_percent=start, guarantee_steps=0))
    group.set_keyframes_on_hooks(frames)
    clone.add_hook_patches(hook, patches, strength_patch=strength)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, _hooking(group))
    return clone


def _hooking(group: Any) -> Any:
    """Make a sampling wrapper that adds a hook group to every conditioning.

    ComfyUI schedules weights by hooks, which belong to conditionings, while a LoRA belongs to the model.
    """

    def wrapper(executor: Any, *arguments: Any, **options: Any) -> Any:
        combined: dict[int, Any] = {}
        for conditioning in (cond for conds in executor.class_obj.conds.values() for cond in conds):
            before = conditioning.get("hooks")
            # The same object for the same hooks, so that positive and negative still run as one batch.
            if id(before) not in combined:
                combined[id(before)] = comfy.hooks.HookGroup.combine_all_hooks([before, group])
            conditioning["hooks"] = combined[id(before)]
        return executor(*arguments, **options)

    return wrapper
