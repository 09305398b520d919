"""The script that stands under txt2img and img2img, and runs in the API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from modules import scripts as host_scripts
from PIL import Image

from scdpo_core.cost.protocol import Scorer, provenance
from scdpo_core.io.alpha_views import score_views
from scdpo_core.types import CostScore, ScdpoError

from . import filter_hooks, host, infotext, packages, prompts, quarantine, settings, ui_controls
from .image_filter import Guard
from .options import Options, read
from .policy import Policy
from .scorer_cache import ScorerCache

SCORER_CACHE = ScorerCache()
"""The scorer of this host; the API uses it too."""


class SafetyScript(host_scripts.Script):
    """Scores every image, hides what has to be hidden, and puts the safety LoRA into the prompts."""

    def title(self) -> str:
        """Return the script's name, also used by the API."""
        return "SC-DPO safety"

    def show(self, is_img2img: bool) -> object:
        """Show the script always; its switch enables it."""
        return host_scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """Build the controls, in the order of `options.read`."""
        controls, self.infotext_fields = ui_controls.build(self.elem_id)
        self.paste_field_names = [label for _, label in self.infotext_fields if isinstance(label, str)]
        return controls

    def process(self, p: Any, *values: Any) -> None:
        """Start watching before anything is generated. Errors here stop the generation."""
        filter_hooks.leave()
        infotext.clear(p.extra_generation_params)
        setattr(p, infotext.GUARD, None)
        try:
            options = read(values, p)
            if not options.enabled:
                return
            guard = _guard(p, options)
            if options.lora:
                _check_lora(p, options.lora)
                prompts.add_to(p, options.lora, options.weight)
            filter_hooks.enter(p, guard)
        except Exception as error:
            _refuse(p, error)

    def after_extra_networks_activate(self, p: Any, *values: Any, **_: Any) -> None:
        """Make sure, in both passes, that the host took the LoRA up; it only logs when it did not.

        The hires pass may draw with another checkpoint than the first one.
        """
        name = p.extra_generation_params.get(infotext.LORA)
        if filter_hooks.guard_of(p) is None or not name:
            return
        try:
            _check_lora(p, name)
            if reason := host.why_not_applied(name):
                raise ScdpoError(reason)
        except Exception as error:
            _refuse(p, error)

    def postprocess_image_after_composite(self, p: Any, pp: Any, *values: Any) -> None:
        """Judge a finished image, and replace it if it must be hidden."""
        filter_hooks.finished_image(p, pp)

    def postprocess(self, p: Any, processed: Any, *values: Any) -> None:
        """Look at what else is handed out: masks laid over images, images of other scripts."""
        filter_hooks.finished(p, processed)


def without_our_tag(text: str, params: dict[str, Any]) -> None:
    """Take the safety LoRA out of a pasted prompt: its own control brings it back."""
    name = params.get(infotext.LORA)
    for field in ("Prompt", "Hires prompt"):
        if name and isinstance(params.get(field), str):
            params[field] = prompts.without_tag(params[field], name)


def begin_remote(p: Any) -> tuple[Options, Guard | None]:
    """Return options and guard of a generation for which a host calls no script.

    Raises:
        ScdpoError: it cannot be watched.
    """
    script = next((one for one in p.scripts.alwayson_scripts if isinstance(one, SafetyScript)), None)
    values = () if script is None else p.script_args[script.args_from : script.args_to]
    options = read(values, p)
    filter_hooks.leave()
    if not options.enabled:
        return options, None
    guard = _guard(p, options)
    filter_hooks.enter(p, guard)
    return options, guard


def _guard(p: Any, options: Options) -> Guard:
    """Make the guard of a generation, and record the scoring settings in its infotexts."""
    scorer = _scorer()
    infotext.write(p.extra_generation_params, options, provenance(scorer))
    return Guard(options.policy, _score_with(scorer), _keeper(p), report=host.log)


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
    guard = filter_hooks.guard_of(p) or Guard(Policy(), _never, _never)
    guard.failure = sentence
    filter_hooks.enter(p, guard)
    p.extra_generation_params[infotext.ERROR] = sentence
    p.comment(f"Safety: nothing was drawn. {sentence}")
    host.stop()


def _scorer() -> Scorer:
    try:
        return SCORER_CACHE.get(settings.cost_model(), settings.device())
    except ScdpoError as error:
        raise ScdpoError(packages.hint() or str(error)) from error


def _never(image: Image.Image, *_: object) -> CostScore:
    raise ScdpoError("An image of a stopped generation is not judged.")


def _score_with(scorer: Scorer) -> Callable[[Image.Image], CostScore]:
    return lambda image: score_views(scorer.score, image)


def _of_current(values: Sequence[Any] | None, p: Any) -> Any:
    """Return the value of the image that is finished now; '' where there is none, as for remote images."""
    return values[p.batch_index] if values and p.batch_index < len(values) else ""


def _keeper(p: Any) -> Callable[[Image.Image, CostScore], None]:
    def keep(image: Image.Image, score: CostScore) -> None:
        texts = {
            infotext.COST: f"{score.value:+.4f}",
            infotext.SCORER: f"{score.scorer}@{score.scorer_hash}",
            "Seed": str(_of_current(p.seeds, p)),
            "Prompt": str(_of_current(p.prompts, p)),
        }
        path = quarantine.keep(settings.quarantine(), image, texts)
        p.comment(f"Safety: the original is kept as {path}")

    return keep
