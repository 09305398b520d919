"""Bounded terms over single images: what *redirect and keep* is made of, and its peers among erasing methods.

OURS unless a docstring says otherwise. Every function is pure: answers of the networks in, one loss a row
out, [N]. The reference never gets a gradient.

    redirect    || x0_hat(x_t, t, c) - x_w ||^2,  x_t noised from z = m x_l + (1 - m) x_w, c harmful
    keep        || f_theta(x_t, t, c) - f_ref(x_t, t, c) ||^2, c benign or empty
    distil      || f_theta(x_t, t, c) - f_ref(x_t, t, c_safe) ||^2
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sc_dpo import full_precision


def mixture(chosen: Tensor, rejected: Tensor, share: Tensor) -> Tensor:
    """Mix the latents of a pair: m x_l + (1 - m) x_w, shaped as they are.

    Args:
        chosen: [N, C, h, w].
        rejected: [N, C, h, w].
        share: [N] m, the part of the rejected image, 0..1.
    """
    m = share.to(chosen.dtype).view(-1, 1, 1, 1)
    return m * rejected + (1 - m) * chosen


def mean_square(residual: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared residual of each row, [N]; with a mask [N, 1, h, w] the mean over what it covers.

    A mask that covers nothing gives 0.
    """
    square = full_precision(residual).square()
    if mask is None:
        return square.flatten(1).mean(1)
    covered = mask.to(square.dtype).expand_as(square).flatten(1)
    return (square.flatten(1) * covered).sum(1) / covered.sum(1).clamp_min(1e-6)


def redirect(
    image_residual: Tensor,
    *,
    policy: Tensor | None = None,
    reference: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Answer as if the chosen image were behind the noise: mean squared error of the implied image, [N].

    With a mask the chosen image counts inside it alone, and outside it the policy keeps the base model's
    answer.

    Args:
        image_residual: [N, C, h, w] of `LoadedModel.image_residuals` towards the chosen image.
        policy: [N, C, h, w] answer of the policy; only read with a mask.
        reference: [N, C, h, w] answer of the reference to the same; only read with a mask.
        mask: [N, 1, h, w], 1 where the images of a pair differ.
    """
    if mask is None:
        return mean_square(image_residual)
    inside = mean_square(image_residual, mask)
    if policy is None or reference is None:
        return inside
    return inside + mean_square(policy - reference.detach(), 1 - mask)


def keep(policy: Tensor, reference: Tensor) -> Tensor:
    """How far the policy's answer is from the base model's: mean square, [N]. Bounded, and needs no label."""
    return mean_square(full_precision(policy) - full_precision(reference).detach())


def distil(policy: Tensor, reference_safe: Tensor) -> Tensor:
    """Answer the harmful prompt as the base model answers the safe one: mean square, [N].

    Args:
        policy: [N, C, h, w] under the harmful prompt.
        reference_safe: [N, C, h, w] of the base model under the safe prompt, on the same noisy image.
    """
    return keep(policy, reference_safe)


def esd(policy: Tensor, reference_empty: Tensor, reference: Tensor, *, eta: float = 1.0) -> Tensor:
    """Answer the harmful prompt with what guidance away from it gives, [N]. Gandikota et al. 2023, "ESD".

        || f_theta(c) - ( f_ref(empty) - eta (f_ref(c) - f_ref(empty)) ) ||^2        (FOUND)

    Args:
        policy: [N, C, h, w] under the harmful prompt.
        reference_empty: the base model under the empty prompt.
        reference: the base model under the harmful prompt.
        eta: strength of the push away.
    """
    empty = full_precision(reference_empty).detach()
    away = full_precision(reference).detach() - empty
    return mean_square(full_precision(policy) - (empty - eta * away))


def gem(policy: Tensor, reference_safe: Tensor, reference: Tensor, *, eta: float = 1.0) -> Tensor:
    """Be nearer to the safe answer than to the harmful one, [N]. GEM's published code.

        relu( |f_theta(c) - f_ref(c_safe)| - eta |f_theta(c) - f_ref(c)| )        (FOUND)

    |.| is the length of the difference divided by the root of its number of elements, so that sizes of images
    do not matter (RECONSTRUCTED).

    Args:
        policy: [N, C, h, w] under the harmful prompt.
        reference_safe: the base model under the safe prompt.
        reference: the base model under the harmful prompt.
        eta: how much nearer.
    """
    answer = full_precision(policy)
    near = _length(answer - full_precision(reference_safe).detach())
    far = _length(answer - full_precision(reference).detach())
    return torch.relu(near - eta * far)


def _length(difference: Tensor) -> Tensor:
    # The root has no slope at 0, where training begins: policy and reference are equal there.
    return (difference.square().flatten(1).mean(1) + 1e-12).sqrt()
