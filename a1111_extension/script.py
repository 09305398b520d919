"""The script that stands under txt2img and img2img, and runs in the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import scripts as host_scripts
from PIL import Image

from scdpo_core.cost.protocol import Scorer, provenance
from scdpo_core.scoring.views import score_views
from scdpo_core.types import CostScore, ScdpoError

from . import controls, host, infotext, packages, panel, prompts, quarantine, settings, watch
from .guard import Guard
from .policy import Policy
from .shelf import Shelf

SHELF = Shelf()
"""The scorer of this host; the API uses it too."""


class SafetyScript(host_scripts.Script):
    """Scores every image, hides what has to be hidden, and puts the safety LoRA into the prompts."""

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
        watch.leave()
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
                _check_lora(p, wish.lora)
                prompts.add_to(p, wish.lora, wish.weight)
            watch.enter(p, guard)
        except Exception as error:
            _refuse(p, error)

    def after_extra_networks_activate(self, p: Any, *values: Any, **_: Any) -> None:
        """Make sure, in both passes, that the host took the LoRA up; it only logs when it did not.

        The hires pass may draw with another checkpoint than the first one.
        """
        name = p.extra_generation_params.get(infotext.LORA)
        if watch.guard_of(p) is None or not name:
            return
        try:
            _check_lora(p, name)
            if reason := host.why_not_applied(name):
                raise ScdpoError(reason)
        except Exception as error:
            _refuse(p, error)

    def postprocess_image_after_composite(self, p: Any, pp: Any, *values: Any) -> None:
        """Let a finished image pass, or what stands for it."""
        watch.finished_image(p, pp)

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        """Look at what else is handed out: masks laid over images, images of other scripts."""
        watch.finished(p, processed)


def without_our_tag(text: str, params: dict[str, Any]) -> None:
    """Take the safety LoRA out of a pasted prompt: its own control brings it back."""
    name = params.get(infotext.LORA)
    for field in ("Prompt", "Hires prompt"):
        if name and isinstance(params.get(field), str):
            params[field] = prompts.without_tag(params[field], name)


def _check_lora(p: Any, name: str) -> None:
    """Make sure that a LoRA fits the checkpoint in use, and tell the artist what could not be checked.

    Raises:
        ScdpoError: it does not fit.
    """
    if caution := prompts.check(host.lora_file(name), host.checkpoint()):
        p.comment(f"Safety: {caution}")


def _refuse(p: Any, error: Exception) -> None:
    """End a generation that cannot be watched, and let no image of it pass."""
    sentence = str(error) if isinstance(error, ScdpoError) else f"{type(error).__name__}: {error}"
    host.log(sentence)
    guard = watch.guard_of(p) or Guard(Policy(), _never, _never)
    guard.failure = sentence
    watch.enter(p, guard)
    p.extra_generation_params[infotext.ERROR] = sentence
    p.comment(f"Safety: nothing was drawn. {sentence}")
    host.stop()


def _scorer() -> Scorer:
    try:
        return SHELF.get(settings.cost_model(), settings.device())
    except ScdpoError as error:
        raise ScdpoError(packages.hint() or str(error)) from error


def _never(image: Image.Image, *_: object) -> CostScore:
    raise ScdpoError("An image of a stopped generation is not judged.")


def _score_with(scorer: Scorer) -> Callable[[Image.Image], CostScore]:
    return lambda image: score_views(scorer.score, image)


def _keeper(p: Any) -> Callable[[Image.Image, CostScore], None]:
    def keep(image: Image.Image, score: CostScore) -> None:
        texts = {
            infotext.COST: f"{score.value:+.4f}",
            infotext.SCORER: f"{score.scorer}@{score.scorer_hash}",
            "Seed": str(p.seeds[p.batch_index]),
            "Prompt": p.prompts[p.batch_index],
        }
        path = quarantine.keep(settings.quarantine(), image, texts)
        p.comment(f"Safety: the original is kept as {path}")

    return keep
