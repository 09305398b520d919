"""What a LoRA's file says of how it was made and how it did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..io.files import atomic_path, read_tensors
from ..io.printable import printable
from ..io.safetensors_container import header, parted
from ..types import ScdpoError

OWN = "scdpo_"
EVALUATION = f"{OWN}evaluation"
"""name -> a number, or name -> {"before": ..., "after": ...}, as JSON."""

_PASSED_ON = ("ss_", "sshs_", "modelspec.")


def as_metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as a safetensors file keeps them: text as it is, anything else as JSON.

    Names get the prefix `scdpo_` unless they begin with ss_, sshs_ or modelspec. already.
    """
    return {
        name if name.startswith((*_PASSED_ON, OWN)) else OWN + name: printable(value, lines=True)
        if isinstance(value, str)
        else printable(json.dumps(value, sort_keys=True, ensure_ascii=False), lines=True)
        for name, value in facts.items()
    }


def add_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Let a LoRA that we made say more of itself, for what is known only after it was written.

    The weights' bytes, and with them the hashes that hosts know the LoRA by, stay; so do other facts.

    Raises:
        ScdpoError: the file is damaged, or cannot be read or written.
    """
    try:
        read_tensors(path)
        entries, metadata, body = parted(path.read_bytes())
        with atomic_path(path) as temporary:
            temporary.write_bytes(header(entries, metadata | as_metadata(facts)) + body)
    except OSError as error:
        raise ScdpoError(f"{path} could not be rewritten ({error.strerror or error}).") from error
    except ValueError as error:
        raise ScdpoError(str(error)) from error
