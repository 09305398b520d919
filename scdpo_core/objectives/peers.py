"""Other people's objectives over the same errors, so that a comparison changes the loss and nothing else.

Defaults are the values their authors report as typical. Each takes `PairErrors` ([B, 2], chosen first)
and returns a `LossOutput`; formulas are theirs (FOUND) unless a docstring says otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..types import LossOutput, PairErrors
from .sc_dpo import (
    full_precision,
    preference_logit,
    preference_metrics,
    sc_dpo_loss,
)


def winner_only(errors: PairErrors, *, beta: float = 5000.0, winner: float = 0.05) -> LossOutput:
    """Plain fine-tuning on the chosen images: winner * beta * l_theta(x_w).

    The control that every preference objective has to beat. It is SC-DPO's winner term alone, in
    the same units, so the same learning rate fits.
    """
    metrics = preference_metrics(errors, preference_logit(errors, beta))
    return LossOutput(winner * beta * full_precision(errors.policy)[:, 0], metrics)


def diffusion_dpo(errors: PairErrors, *, beta: float = 5000.0) -> LossOutput:
    """-log sigmoid(u). Wallace et al. 2023, "Diffusion-DPO"."""
    return sc_dpo_loss(errors, beta=beta)


def safetydpo(errors: PairErrors, *, beta: float = 5000.0) -> LossOutput:
    """Diffusion-DPO's loss on safe and unsafe twins. Liu et al. 2024, "SafetyDPO".

    What sets it apart lies outside the loss: LoRA of rank 4 on q, k, v and out, learning rate 1e-5.
    """
    return sc_dpo_loss(errors, beta=beta)


def duo_prior(policy: Tensor, reference: Tensor) -> Tensor:
    """How far the two networks disagree on pure noise at the last timestep: mean squared error, [B].

    DUO's output-preserving term: what the network makes of pure noise decides the layout of a
    image, and a safety LoRA has no business there.

    Args:
        policy: [B, ...] prediction with the LoRA on.
        reference: the same with the LoRA off; gets no gradient.
    """
    return (full_precision(policy) - full_precision(reference).detach()).square().flatten(1).mean(1)


def duo(
    errors: PairErrors, *, beta: float = 500.0, prior: Tensor | None = None, prior_weight: float = 1e4
) -> LossOutput:
    """-log sigmoid(-beta [...]) without the half, plus a prior term. Park et al. 2024, "DUO".

    Args:
        errors: [B, 2] each.
        beta: theirs; equals 2 * beta in the convention of `preference_logit`.
        prior: [B] from `duo_prior`, or None for the preference part alone.
        prior_weight: as a share of beta. Theirs is 1e6 * beta / 100, which is 1e4 * beta.
    """
    output = sc_dpo_loss(errors, beta=2 * beta)
    if prior is None:
        return output
    metrics = {**output.metrics, "prior": prior.detach().mean()}
    return LossOutput(output.per_pair + prior_weight * beta * prior, metrics)


def safedpo(errors: PairErrors, *, beta: float = 5000.0, cost: Tensor, margin: float = 10.0) -> LossOutput:
    """DPO with safety indicators instead of costs. Kim et al. 2025, "SafeDPO", carried over to diffusion.

    With h = 1 for a harmful image (cost > 0): a pair whose chosen image alone is harmful is
    turned round, a pair with two harmful images counts nothing (its loss is 0), and the logit
    is moved by (h_l - h_w) * margin. Unknown costs (NaN) count as harmless.

    Args:
        errors: [B, 2] each.
        beta: see `preference_logit`.
        cost: [B, 2] safety cost of chosen and rejected.
        margin: their Delta, in units of u.
    """
    harmful = cost > 0
    swap = (harmful[:, 0] & ~harmful[:, 1])[:, None]
    ordered = PairErrors(
        torch.where(swap, errors.policy.flip(1), errors.policy),
        torch.where(swap, errors.reference.flip(1), errors.reference),
    )
    logit = preference_logit(ordered, beta)
    offset = margin * (harmful[:, 0] ^ harmful[:, 1]).to(logit.dtype)
    kept = ~(harmful[:, 0] & harmful[:, 1])
    metrics = preference_metrics(ordered, logit)
    metrics["margin"] = offset.mean()
    return LossOutput(torch.where(kept, -logsigmoid(logit - offset), 0.0), metrics)


def mapo(errors: PairErrors, *, beta: float = 0.1, snr: float = 0.5, timesteps: int = 1000) -> LossOutput:
    """l_w - beta log sigmoid(T (phi_w - phi_l)), phi = s l / (e^(s l) - 1). Hong et al. 2024, "MaPO".

    Needs no reference: `errors.reference` is only read for the gaps among the metrics.

    Args:
        errors: [B, 2] each.
        beta: weight of the preference part; not the beta of DPO.
        snr: s, the constant that stands for the signal-to-noise ratio.
        timesteps: T, the length of the noise schedule.
    """
    policy = full_precision(errors.policy)
    scaled = snr * policy
    # x e^-x / (1 - e^-x) is x / (e^x - 1) without the overflow; at x = 0 its limit is 1.
    positive = scaled > 0
    x = torch.where(positive, scaled, torch.ones_like(scaled))
    phi = torch.where(positive, x * torch.exp(-x) / -torch.expm1(-x), 1 - 0.5 * scaled)
    logit = timesteps * (phi[:, 0] - phi[:, 1])
    return LossOutput(policy[:, 0] - beta * logsigmoid(logit), preference_metrics(errors, logit))


def diffusion_kto(
    errors: PairErrors,
    *,
    beta: float = 1000.0,
    desirable: float = 1.0,
    undesirable: float = 1.0,
    reference_point: Tensor | None = None,
) -> LossOutput:
    """w (1 - sigmoid(+-beta (l_ref - l_theta - z))). Li et al. 2024, "Diffusion-KTO".

    Judges images one by one. Here a pair is one desirable and one undesirable image, and its
    loss is the mean of both (RECONSTRUCTED; the paper needs no pairs).

    Args:
        errors: [B, 2] each.
        beta: per unit of error.
        desirable: w of chosen images.
        undesirable: w of rejected images.
        reference_point: z, scalar, in units of error; None: the batch's mean of l_ref - l_theta,
            not below 0, without gradient.
    """
    policy = full_precision(errors.policy)
    gain = full_precision(errors.reference).detach() - policy
    z = gain.detach().mean().clamp_min(0) if reference_point is None else reference_point.detach()
    value = beta * (gain - z)
    chosen = desirable * torch.sigmoid(-value[:, 0])
    rejected = undesirable * torch.sigmoid(value[:, 1])
    metrics = preference_metrics(errors, preference_logit(errors, beta))
    return LossOutput((chosen + rejected) / 2, metrics)
