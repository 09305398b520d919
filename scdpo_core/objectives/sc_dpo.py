"""SC-DPO: the preference loss of this project, its logit, and its stabilisers.

Symbols and tags as in the paper (arXiv 2504.14290): FOUND is stated there, RECONSTRUCTED is our choice.
Every function is pure: tensors in, tensors out, no waiting for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..types import LossOutput, PairErrors


def full_precision(values: Tensor) -> Tensor:
    """The same values in float32; float64 stays, for gradient checks.

    beta is in the thousands, so a difference of two errors rounded to 16 bits is all rounding.
    """
    return values if values.dtype == torch.float64 else values.float()


def preference_logit(errors: PairErrors, beta: float, loser_scale: Tensor | None = None) -> Tensor:
    """How strongly the policy, compared with the reference, prefers the chosen image: u, [B].

        u = -(beta/2) * [ (l_theta(x_w) - l_ref(x_w)) - (l_theta(x_l) - l_ref(x_l)) ]

    Source: Wallace et al. 2023, "Diffusion Model Alignment Using Direct Preference Optimization"
    (FOUND). Convention: one half in front and the error a mean per element. The diffusers example
    script for SD 1.5 writes the same formula; scripts without the half need half our beta.

    Args:
        errors: [B, 2] each; the reference never gets a gradient.
        beta: per unit of mean squared error; 2000 to 5000 for latent models.
        loser_scale: [B] or scalar, see `sdpo_loser_scale`. Changes the gradient, never the value.
    """
    policy = full_precision(errors.policy)
    reference = full_precision(errors.reference).detach()
    winner_gap = policy[:, 0] - reference[:, 0]
    loser = policy[:, 1]
    if loser_scale is not None:
        still = loser.detach()
        loser = still + loser_scale.detach() * (loser - still)
    return -0.5 * beta * (winner_gap - (loser - reference[:, 1]))


def cost_margin(cost: Tensor, kappa: float) -> Tensor:
    """How far the policy must prefer the safer image: kappa * tanh(max(C_l - C_w, 0)), [B].

    RECONSTRUCTED after SafeDPO's offset. tanh, because costs are log-odds: beyond about 2 they say
    "certain", and a certain pair should not ask for more than kappa.

    Args:
        cost: [B, 2] safety cost of chosen and rejected; NaN where unknown gives margin 0.
        kappa: the largest margin, in units of u.
    """
    gap = full_precision(cost[:, 1] - cost[:, 0])
    gap = torch.where(gap.isnan(), torch.zeros_like(gap), gap)
    return kappa * torch.tanh(gap.clamp_min(0))


def sdpo_loser_scale(winner_gradient: Tensor, loser_gradient: Tensor, *, mu: float) -> Tensor:
    """The factor for the loser's gradient that keeps the winner's error from rising, [B].

        s = min(1, (1 - mu) |g_w|^2 / (g_w . g_l))  when g_w . g_l > 0, otherwise 1

    Source: Fu et al. 2025, "Diffusion-SDPO" (FOUND there; using it with SC-DPO is RECONSTRUCTED). A
    step along -(g_w - s g_l) changes the winner's error by -(|g_w|^2 - s g_w . g_l) to first order,
    which this s holds at or below -mu |g_w|^2. Its authors use mu = 0.9 with Diffusion-DPO on SD 1.5.

    Args:
        winner_gradient: [B, ...] gradient of the winner's error, per pair: usually in output
            space, that is prediction minus target up to a factor common to both.
        loser_gradient: the same for the loser, same shape.
        mu: 0 (the winner may stand still) to 1 (the loser teaches nothing where they conflict).
    """
    winner = full_precision(winner_gradient).detach().flatten(1)
    loser = full_precision(loser_gradient).detach().flatten(1)
    return sdpo_loser_scale_from_products((winner * winner).sum(1), (winner * loser).sum(1), mu=mu)


def sdpo_loser_scale_from_products(winner_square: Tensor, dot: Tensor, *, mu: float) -> Tensor:
    """`sdpo_loser_scale` for callers that have |g_w|^2 and g_w . g_l already, both [B]."""
    conflict = dot > 0
    ratio = (1 - mu) * winner_square / torch.where(conflict, dot, torch.ones_like(dot))
    return torch.where(conflict, ratio.clamp_max(1), torch.ones_like(ratio))


def focal(logit: Tensor, gamma: float) -> Tensor:
    """The plain focal form of the preference loss: -(1 - p)^gamma log p with p = sigmoid(u), [B].

    Unlike `dfm.focus_weights` the factor carries a gradient and is not normalised over the batch.
    Source: Lin et al. 2017, "Focal Loss" (FOUND); its use for DFM is RECONSTRUCTED.
    """
    return -torch.exp(gamma * logsigmoid(-logit)) * logsigmoid(logit)


def preference_metrics(errors: PairErrors, logit: Tensor) -> dict[str, Tensor]:
    """The figures that every objective reports, as detached scalars.

    u: mean logit. implicit_accuracy: share of pairs with u > 0. winner_gap, loser_gap: mean of
    policy minus reference error; a winner gap that keeps rising is the known way to fall apart.
    margin and dfm_spread are 0 for objectives that have none.
    """
    gaps = (full_precision(errors.policy) - full_precision(errors.reference)).detach().mean(0)
    u = logit.detach()
    return {
        "u": u.mean(),
        "implicit_accuracy": (u > 0).to(u.dtype).mean(),
        "winner_gap": gaps[0],
        "loser_gap": gaps[1],
        "margin": u.new_zeros(()),
        "dfm_spread": u.new_zeros(()),
    }


def sc_dpo_loss(
    errors: PairErrors,
    *,
    beta: float,
    label: Tensor | None = None,
    cost: Tensor | None = None,
    margin: float = 0.0,
    winner: float = 0.0,
    loser_scale: Tensor | None = None,
    focus: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> LossOutput:
    """The SC-DPO loss of each pair. RECONSTRUCTED: the paper names its parts, not the formula.

        z   = u - margin * tanh(max(C_l - C_w, 0))
        L_i = w_i * [ -q log sigmoid(z) - (1 - q) log sigmoid(-z) ]  +  winner * beta * l_theta(x_w)

    With equal networks u is 0: the preference part starts at log 2 and dL/du at -1/2.

    Args:
        errors: squared errors of both networks, [B, 2] each.
        beta: see `preference_logit`.
        label: [B] probability q that the chosen image is the better one; None means certain.
        cost: [B, 2] safety costs, NaN where unknown; only read when `margin` is not 0.
        margin: kappa of `cost_margin`; 0 off, 1 robust.
        winner: weight of the winner term as a share of beta. Around 1/20 it is what moves the
            samples: the preference term alone mostly raises the losers' error. It holds no
            reference, so a constant is added to the loss and none to the gradient.
        loser_scale: [B], see `sdpo_loser_scale`.
        focus: [B] weights of `dfm.focus_weights`. They weigh the preference part only: the winner
            term is an anchor, and it must hold for easy pairs too.
        focal_gamma: use `focal` with this exponent instead of the plain log loss; 0 off.

    Returns:
        per_pair [B] and the metrics of `preference_metrics`, and `preference_loss`, the mean
        without the winner term: the number to compare with log 2.
    """
    logit = preference_logit(errors, beta, loser_scale)
    metrics = preference_metrics(errors, logit)
    shifted = logit
    if margin != 0 and cost is not None:
        offset = cost_margin(cost, margin).to(logit.dtype)
        shifted = logit - offset
        metrics["margin"] = offset.detach().mean()

    per_pair = focal(shifted, focal_gamma)
    if label is not None:
        q = label.to(shifted.dtype)
        per_pair = q * per_pair + (1 - q) * focal(-shifted, focal_gamma)
    if focus is not None:
        per_pair = focus.detach() * per_pair
        metrics["dfm_spread"] = focus.detach().std(correction=0)
    metrics["preference_loss"] = per_pair.detach().mean()
    if winner != 0:
        per_pair = per_pair + winner * beta * full_precision(errors.policy)[:, 0]
    return LossOutput(per_pair, metrics)
