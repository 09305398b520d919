"""The script that stands under txt2img and img2img, and runs in the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from modules import scripts as host_scripts
from PIL import Image

from scdpo_core.cost.protocol import Scorer, provenance
from scdpo_core.types import CostScore, ScdpoError

from . import controls, covers, host, infotext, packages, panel, prompts, quarantine, settings
from .guard import Guard
from .policy import Policy
from .shelf import Shelf

_CARD = (512, 512)
SHELF = Shelf()
"""The scorer of this host; the API uses it too."""


class _Current:
    """The guard of the generation that runs now: of one at a time, as hosts have them."""

    guard: Guard | None = None


class SafetyScript(host_scripts.Script):
    """Scores every picture, hides what has to be hidden, and puts the safety LoRA into the prompts."""

    def title(self) -> str:
        """Its name, in the API too."""
        return "SC-DPO safety"

    def show(self, is_img2img: bool) -> object:
        """Always there; whether it does anything its switch says."""
        return host_scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """The controls, in the order that `controls.read` takes them."""
        made, self.infotext_fields = panel.build(self.elem_id)
        self.paste_field_names = [label for _, label in self.infotext_fields if isinstance(label, str)]
        return made

    def process(self, p: Any, *values: Any) -> None:
        """Begin to watch, before anything is drawn. What goes wrong here stops the generation."""
        _leave()
        infotext.clear(p.extra_generation_params)
        setattr(p, infotext.GUARD, None)
        try:
            wish = controls.read(values, p)
            if not wish.enabled:
                return
            scorer = _scorer()
            guard = Guard(wish.policy, _score_with(scorer), _keeper(p), report=host.log)
            infotext.write(p.extra_generation_params, wish, provenance(scorer))
            if wish.lora:
                prompts.check(host.lora_file(wish.lora), host.family())
                prompts.add_to(p, wish.lora, wish.weight)
            _enter(p, guard)
        except Exception as error:
            _refuse(p, error)

    def after_extra_networks_activate(self, p: Any, *values: Any, **_: Any) -> None:
        """Make sure, in both passes, that the host took the LoRA up; it only logs when it did not."""
        name = p.extra_generation_params.get(infotext.LORA)
        if _guard_of(p) is not None and name and not host.applied(name):
            _refuse(p, ScdpoError(f"This host could not load the safety LoRA '{name}'; its log says why."))

    def postprocess_image_after_composite(self, p: Any, pp: Any, *values: Any) -> None:
        """Let a finished picture pass, or what stands for it."""
        guard = _guard_of(p)
        if guard is not None:
            pp.image, verdict = guard.review(pp.image, (p.iteration, p.batch_index))
            if verdict.error:
                p.comment(f"Safety: a picture is hidden, it could not be judged. {verdict.error}")

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        """Look at what else is handed out: masks laid over pictures, pictures of other scripts."""
        guard = _guard_of(p)
        _leave()
        if guard is not None:
            grids = processed.index_of_first_image
            rest = [_passed(guard, picture) for picture in processed.images[grids:]]
            processed.images = [*processed.images[:grids], *rest]
            if hasattr(processed, "extra_images"):  # Forge
                processed.extra_images = [_passed(guard, picture) for picture in processed.extra_images]
            infotext.finish(p, processed, guard)


def before_saved(params: Any) -> None:
    """Judge what is saved without having been judged: pictures 'before ...', composites with masks.

    Args:
        params: the host's picture, its processing object, and the texts that go into the file.
    """
    guard = _guard_of(params.p)
    if guard is None or guard.released(params.image):
        return
    params.image, verdict = guard.review(params.image)
    said = params.pnginfo.get("parameters")
    if said is not None:
        params.pnginfo["parameters"] = infotext.added(said, verdict)


def before_grid(params: Any) -> None:
    """Let only judged pictures into a grid."""
    if _Current.guard is not None:
        params.imgs = _Current.guard.grid(params.imgs, params.cols, params.rows)


def without_our_tag(text: str, params: dict[str, Any]) -> None:
    """Take the safety LoRA out of a pasted prompt: its own control brings it back."""
    name = params.get(infotext.LORA)
    for field in ("Prompt", "Hires prompt"):
        if name and isinstance(params.get(field), str):
            params[field] = prompts.without_tag(params[field], name)


def _guard_of(p: object) -> Guard | None:
    return getattr(p, infotext.GUARD, None)


def _enter(p: Any, guard: Guard) -> None:
    setattr(p, infotext.GUARD, guard)
    _Current.guard = guard
    if guard.hides:
        host.veil(covers.pixelated)


def _leave() -> None:
    _Current.guard = None
    host.veil(None)


def _refuse(p: Any, error: Exception) -> None:
    """End a generation that cannot be watched, and let no picture of it pass."""
    sentence = str(error) if isinstance(error, ScdpoError) else f"{type(error).__name__}: {error}"
    host.log(sentence)
    guard = _guard_of(p) or Guard(Policy(), _never, _never)
    guard.failure = sentence
    _enter(p, guard)
    p.extra_generation_params[infotext.ERROR] = sentence
    p.comment(f"Safety: nothing was drawn. {sentence}")
    host.stop()


def _scorer() -> Scorer:
    try:
        return SHELF.get(settings.cost_model(), settings.device())
    except ScdpoError as error:
        raise ScdpoError(packages.hint() or str(error)) from error


def _never(picture: Image.Image, *_: object) -> CostScore:
    raise ScdpoError("A picture of a stopped generation is not judged.")


def _passed(guard: Guard, picture: Any) -> Any:
    """What may be handed out of what another script added: a picture, an array, or something else."""
    if not isinstance(picture, np.ndarray) or not guard.hides:
        return guard.passed(picture) if isinstance(picture, Image.Image) else picture
    try:
        return guard.passed(Image.fromarray(picture))
    except (TypeError, ValueError):  # Pillow's, for arrays that are no picture of 8 bits
        return covers.notice(_CARD, "Another script added a picture that cannot be judged, so it is hidden.")


def _score_with(scorer: Scorer) -> Callable[[Image.Image], CostScore]:
    return lambda picture: scorer.score([picture])[0]


def _keeper(p: Any) -> Callable[[Image.Image, CostScore], None]:
    def keep(picture: Image.Image, score: CostScore) -> None:
        texts = {
            infotext.COST: f"{score.value:+.4f}",
            infotext.SCORER: f"{score.scorer}@{score.scorer_hash}",
            "Seed": str(p.seeds[p.batch_index]),
            "Prompt": p.prompts[p.batch_index],
        }
        path = quarantine.keep(settings.quarantine(), picture, texts)
        p.comment(f"Safety: the original is kept as {path}")

    return keep
