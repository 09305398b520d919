"""The section of `config` that says what is minimised over the pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .bounds import Need, bounded, needing, with_bounds
from .requirements import COSTS, LOGIT_NORMAL, VALIDATION, any_of, beside, of_objective
from .terms import TERM_OBJECTIVES

ObjectiveName = Literal[
    "redirect_keep",
    "distil",
    "sc_dpo",
    "winner_only",
    "diffusion_dpo",
    "safetydpo",
    "duo",
    "safedpo",
    "mapo",
    "diffusion_kto",
    "esd",
    "gem",
]

DEFAULT_BETAS: Mapping[ObjectiveName, float] = {
    "sc_dpo": 2000.0,
    "winner_only": 2000.0,
    "diffusion_dpo": 5000.0,
    "safetydpo": 5000.0,
    "duo": 500.0,
    "safedpo": 5000.0,
    "mapo": 0.1,
    "diffusion_kto": 1000.0,
}
"""The beta of each objective when none is given; they do not mean the same thing in all of them."""

BETA_IS_NO_SCALE = frozenset({"mapo"})
"""Objectives whose beta weighs one of their parts against another, so that it is no unit for other terms."""

PAIR_LOSS = Need(
    "an objective over pairs, such as --objective sc_dpo", lambda run, family: run.objective.has_pair_loss
)
FRESH_DRAWS = Need("--reference-draws 0", lambda run, family: run.objective.reference_draws == 0)
_SC_DPO = of_objective("sc_dpo")
_DFM = (_SC_DPO, beside("objective", "dfm_gamma", "--dfm-gamma 1"))
_SCALED_BETA = of_objective(*(name for name in DEFAULT_BETAS if name not in BETA_IS_NO_SCALE))
_MIN_SNR = any_of(
    beside("objective", "weighting", "--weighting min_snr", "min_snr"),
    beside("terms", "redirect_weighting", "--redirect-weighting min_snr", "min_snr"),
)


@with_bounds
@dataclass(frozen=True)
class ObjectiveSettings:
    """What is minimised. The method's formulas and their sources are in `scdpo_core.objectives`.

    Attributes:
        objective: what is minimised: redirect_keep (ours), distil (ours, from prompts alone), SC-DPO, one of
            its controls, or a peer's loss for comparison.
        beta: strength of the preference term; not given, the objective's usual one.
        beta_scale: factor of the objective's usual beta, where none is given; presets have it for base models
            whose errors differ more or less than those of Stable Diffusion 1.
        winner: weight of the anchor on the chosen images, as a share of beta; 0 switches it off.
        margin: kappa: how far the policy must prefer the safer image; 0 off, 1 robust.
        weighting: 'native' takes the error of what the network predicts, 'exact' of the noise it implies;
            'min_snr' is exact, held down where there is little noise.
        min_snr_gamma: signal-to-noise ratio from which 'min_snr' holds down; smaller holds down more.
        timesteps: how they are drawn; 'auto' is uniform for diffusion and logit-normal for flows.
        timestep_mean: of the logit-normal law's logit; above 0 trains the noisy steps more. A schedule
            shifted by s is ln s.
        timestep_std: of the logit-normal law's logit.
        timestep_min: least noise that is trained, as a share of the schedule.
        timestep_max: most noise that is trained, as a share of the schedule.
        dfm_gamma: how much training focuses on difficult pairs; 0 switches the focus off.
        dfm_by_time: compare a pair's difficulty with what is usual at its timestep.
        dfm_warmup: share of the steps without focus.
        focal_gamma: exponent of the plain focal loss instead of the log loss; 0 off.
        loser_mu: how strictly the loser's gradient may not harm the winner, 0..1; not given, it may.
        prior_weight: DUO's weight, as a share of beta, of keeping the network's answer to pure noise.
        reference_draws: timesteps and noises that each pair gets for the whole run; what the base model makes
            of them is computed once, before training. 0 draws new ones in every step.
    """

    objective: ObjectiveName = "redirect_keep"
    beta: float | None = bounded(None, above=0, needs=PAIR_LOSS)
    beta_scale: float = bounded(
        1.0,
        above=0,
        needs=(_SCALED_BETA, Need("no --beta beside it", lambda run, family: run.objective.beta is None)),
    )
    winner: float = bounded(0.5, at_least=0, needs=of_objective("sc_dpo", "winner_only"))
    margin: float = bounded(0.0, needs=(COSTS, _SC_DPO))
    weighting: Literal["native", "exact", "min_snr"] = needing("native", any_of(PAIR_LOSS, VALIDATION))
    min_snr_gamma: float = bounded(5.0, above=0, needs=_MIN_SNR)
    timesteps: Literal["auto", "uniform", "logit_normal"] = "auto"
    timestep_mean: float = bounded(0.0, needs=LOGIT_NORMAL)
    timestep_std: float = bounded(1.0, above=0, needs=LOGIT_NORMAL)
    timestep_min: float = bounded(0.0, at_least=0, below=1)
    timestep_max: float = bounded(1.0, above=0, at_most=1)
    dfm_gamma: float = bounded(1.0, at_least=0, needs=_SC_DPO)
    dfm_by_time: bool = needing(True, *_DFM)
    dfm_warmup: float = bounded(0.1, at_least=0, at_most=1, needs=_DFM)
    focal_gamma: float = bounded(0.0, at_least=0, needs=_SC_DPO)
    loser_mu: float | None = bounded(None, at_least=0, at_most=1, needs=_SC_DPO)
    prior_weight: float = bounded(1e4, at_least=0, needs=of_objective("duo"))
    reference_draws: int = bounded(0, at_least=0, needs=PAIR_LOSS)

    @property
    def effective_beta(self) -> float:
        """`beta`, or the objective's usual one; 1 for objectives that have none."""
        if self.beta is not None:
            return self.beta
        scale = 1.0 if self.objective in BETA_IS_NO_SCALE else self.beta_scale
        return DEFAULT_BETAS[self.objective] * scale if self.has_pair_loss else 1.0

    @property
    def has_pair_loss(self) -> bool:
        """Whether a loss over both images of a pair is minimised, and not single-image terms alone."""
        return self.objective not in TERM_OBJECTIVES

    @property
    def term_unit(self) -> float:
        """What a term's weight of 1 stands for, per unit of squared error."""
        scaled = self.has_pair_loss and self.objective not in BETA_IS_NO_SCALE
        return self.effective_beta if scaled else 1.0
