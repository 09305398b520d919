"""The findings of an evaluation in sentences, and what its figures do not show."""

from __future__ import annotations

from collections.abc import Sequence

from ..evaluation.findings import Remark
from ..evaluation.intervals import Rate
from ..evaluation.metrics import CHANGED_BELOW
from ..reports.wording import NARROW, count, percent
from .results import JudgeFigures, PairedTest, SuiteReport, VersionFigures

_CHANCE = 0.05


def first_versions(report: SuiteReport) -> list[VersionFigures]:
    """Return the version of each LoRA at its first weight."""
    versions: dict[str, VersionFigures] = {}
    for version in report.main.versions[1:]:
        versions.setdefault(version.version.rpartition("@")[0], version)
    return list(versions.values())


def headline(report: SuiteReport) -> str:
    """Return what was found, in one sentence."""
    base, tuned = report.main.versions[0], first_versions(report)
    if base.harm is None:
        return _benign_headline(tuned)
    if not tuned:
        return f"{percent(base.harm.value)} of the images for harmful prompts are harmful"
    if len(tuned) == 1:
        return _fell(base.harm, tuned[0].harm) + _preservation_words(tuned[0])
    parts = " and ".join(
        f"{percent(each.harm.value if each.harm else float('nan'))} with {_name(each)}" for each in tuned
    )
    return f"Harmful images: {percent(base.harm.value)} from the base model, {parts}"


def _benign_headline(tuned: Sequence[VersionFigures]) -> str:
    preservation = tuned[0].preserved if tuned else None
    if preservation is None:
        return "No image was generated with a LoRA, and none for a harmful prompt"
    changed = percent(preservation.changed.value)
    return f"{changed} of the benign images are changed or lost; no harmful prompt was tested"


def _fell(before: Rate, after: Rate | None) -> str:
    if after is None or not after.total or not before.total:
        return "No image for a harmful prompt could be judged"
    one, other = percent(before.value), percent(after.value)
    if after.value > before.value:
        return f"Harmful images rose from {one} to {other}"
    if after.value == before.value:
        return f"Harmful images stayed at {other}"
    return f"Harmful images fell from {one} to {other}"


def _preservation_words(version: VersionFigures) -> str:
    preservation = version.preserved
    if preservation is None:
        return ""
    return f"; {percent(preservation.changed.value)} of the benign images are changed or lost"


def _name(version: VersionFigures) -> str:
    return version.version.rpartition("@")[0] or version.version


def remarks(report: SuiteReport) -> list[Remark]:
    """Return what a careful reader must know beside the headline."""
    entries = [*_independence(report)]
    for test in report.main.tests:
        entries.append(Remark("Paired test.", paired_sentence(test), None))
    base = report.main.versions[0]
    if base.harm is not None and base.harm.total and base.harm.value < 0.5:
        entries.append(
            Remark(
                "Little to remove.",
                "The base model itself draws harm for less than half of these prompts in this judge's eyes, "
                "so a low rate with the LoRA says little.",
            )
        )
    unjudged = sum(each.unjudged for version in report.main.versions for each in version.sets)
    if unjudged:
        entries.append(
            Remark(
                "Not judged.",
                f"{count(unjudged, 'image')} could not be judged and count nowhere.",
                False,
            )
        )
    return entries


def _independence(report: SuiteReport) -> list[Remark]:
    flattered = [judge for judge in report.judges if judge.trained]
    if flattered and len(flattered) == len(report.judges):
        judges = " and ".join(judge.judge.name for judge in flattered)
        names = " and ".join(dict.fromkeys(name for judge in flattered for name in judge.trained))
        return [
            Remark(
                "Not independent.",
                f"The only judge here, {judges}, is the cost model that {names} was trained with. A LoRA "
                "that was trained to please a cost model pleases it, so these figures can flatter. Add "
                "a judge that had no part in the training (--scorer).",
                False,
            )
        ]
    if flattered:
        names = ", ".join(judge.judge.name for judge in flattered)
        return [
            Remark(
                "Partly independent.",
                f"{names} is the cost model of the training and may flatter; the headline rests on "
                f"{report.main.judge.name}.",
            )
        ]
    silent = [lora.name for lora in report.loras if not lora.cost_model]
    if silent:
        return [
            Remark(
                "Independence unknown.",
                f"The file of {' and '.join(silent)} does not name the cost model that trained it, so it "
                "is unknown whether the judge took part in it.",
            )
        ]
    if report.loras:
        return [Remark("Independent judge.", f"{report.main.judge.name} trained none of the LoRAs.", True)]
    return []


def paired_sentence(test: PairedTest) -> str:
    """Return what McNemar's test says of two versions."""
    result = test.result
    if not result.only_first and not result.only_second:
        return f"{test.first} and {test.second} are harmful in the same {count(test.images, 'image')}."
    chance = f"p = {result.p:.2g}" if result.p >= 1e-4 else "p < 0.0001"
    verdict = "more than chance" if result.p < _CHANCE else "chance alone could do that"
    return (
        f"Of {count(test.images, 'image')}, {result.only_first:,} are harmful with {test.first} alone and "
        f"{result.only_second:,} with {test.second} alone (McNemar's exact test, {chance}): {verdict}."
    )


def about_judge(figures: JudgeFigures) -> str:
    """Return who a judge is, in one sentence."""
    judge = figures.judge
    accuracy = f"; right in {percent(judge.accuracy)} of images of known content" if judge.accuracy else ""
    scope = f" ({judge.about})" if judge.about else ""
    trained = f"; the cost model of {' and '.join(figures.trained)}" if figures.trained else ""
    return f"{judge.id}{scope}{accuracy}{trained}"


def limits(report: SuiteReport) -> list[str]:
    """Return what the figures mean and what they do not, for this report."""
    main = report.main.judge
    texts = [
        f"Harmful is what {main.name} calls harmful"
        + (f"; it knows {main.about}." if main.about else ".")
        + " Kinds of harm that it does not know count as harmless, before and after. Published figures come "
        "from other judges (Q16, NudeNet, GPT-4o) and do not compare with these.",
        "Every version uses the same prompts and seeds, so a difference comes from the LoRA and "
        "not from luck with the seed.",
        f"The intervals are Wilson's at 95{NARROW}%, for independent images. Several seeds of one prompt "
        "are not quite, so with them the true uncertainty is somewhat larger; another training seed "
        "would give another LoRA.",
        f"Over-refusal counts benign images whose SSIM to the base's is below {CHANGED_BELOW:g}"
        + (
            " or whose subject is gone."
            if _tells(report)
            else "; this judge cannot tell whether a subject is gone."
        )
        + " A model may draw another good image and be counted; it may lose quality and not be.",
    ]
    if any(each.kind == "attack" for each in report.sets):
        texts.append(
            "The prompts of attack files were searched for on other models. They show how far such prompts "
            "carry over, not what an attacker finds who searches on this LoRA."
        )
    texts.append(
        "The attacks here are what a minute buys. A determined attacker does better."
        if report.main.attacks
        else "Nobody attacked the LoRA while these figures were taken. A determined attacker does better "
        "than a list of prompts."
    )
    if report.reference is not None:
        texts.append(_distance_limit(report))
    if any(version.ua_proxy is not None for version in report.main.versions):
        texts.append(
            "ua_proxy is our own definition, 2SQ/(S+Q) averaged over images, Q by "
            + (f"the CLIP score of {report.clip_model}" if report.clip_model else "how sure the judge is")
            + "; it does not compare with a published UAScore."
        )
    texts.append(
        "LPIPS, a FID of Inception's features and questions to a visual language model (TIFA) are not "
        "measured: "
        "their weights do not ship with this program."
    )
    return texts


def _distance_limit(report: SuiteReport) -> str:
    reference = report.reference
    assert reference is not None
    fewest = min([reference.images, *(each.images for each in reference.distances)])
    text = (
        f"The Fréchet distance is taken in the {reference.dim} features of the image encoder "
        f"{reference.encoder}. It is computed like FID, but is not FID, which uses Inception's features; "
        "it compares versions within this report only."
    )
    if fewest <= reference.dim:
        text += (
            f" With {fewest:,} images for {reference.dim} features it is biased upwards: read the order, not "
            "the size."
        )
    return text


def _tells(report: SuiteReport) -> bool:
    return any(version.preserved is not None and version.preserved.judged for version in report.main.versions)
