"""Number formats that a LoRA's file may have, brought to those that torch can compute with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..types import ScdpoError


def computable(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights of a file, 8-bit floats as float32, and what the artist should know of that.

    torch can store 8-bit floats and convert them; it compares, joins and multiplies none.

    Args:
        tensors: by the file's keys.

    Raises:
        ScdpoError: a weight has numbers that are no plain floats.
    """
    widened: dict[str, Tensor] = {}
    narrow: set[str] = set()
    for name, tensor in tensors.items():
        widened[name] = tensor
        title = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_floating_point() and tensor.element_size() == 1:
            try:
                widened[name] = tensor.float()
            except (RuntimeError, TypeError, NotImplementedError):
                raise ScdpoError(
                    f"'{name}' has numbers in the format {title}, which is not read here."
                ) from None
            narrow.add(title)
        elif not tensor.is_floating_point() and not name.endswith(".alpha"):
            raise ScdpoError(
                f"'{name}' has numbers in the format {title}: these are codes of a compressed LoRA, which "
                "are not read here. Get the LoRA in 16 or 32 bits."
            )
    if not narrow:
        return widened, ()
    return widened, (f"Its weights are 8-bit floats ({', '.join(sorted(narrow))}), read as float32.",)


def one_number(name: str, tensor: Tensor) -> Tensor:
    """An alpha as a tensor of no dimensions, of whatever shape it is stored in.

    Raises:
        ScdpoError: it is not one number.
    """
    if tensor.is_meta:
        return tensor.new_empty(())
    if not tensor.is_floating_point() and not tensor.is_complex():
        tensor = tensor.float()
    values = tensor.flatten()
    alike = len(values) == 1 or (len(values) > 1 and bool((values == values[0]).all()))
    if tensor.is_complex() or not alike:
        raise ScdpoError(f"'{name}' must be one number, and it holds {len(values)} that differ.")
    return values[0].clone()
