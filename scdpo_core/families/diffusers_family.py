"""What all families share: one way to check a base model's files and to load it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..family_info import FamilyInfo
from ..types import Problem, ScdpoError
from . import checks
from .base import DEFAULTS, LoadOptions
from .component_layout import ComponentLayout
from .components import FileReader, FolderReader, Reader
from .latent_model import LatentModel
from .source import locate, model_name


class DiffusersFamily:
    """A family given by its record, its component layout and the class of its models; see `Family`."""

    def __init__(self, info: FamilyInfo, layout: ComponentLayout, model: type[LatentModel]) -> None:
        self.info, self.name, self.title = info, info.name, info.title
        self.layout = layout
        self._model = model

    def check(self, base: str | Path, options: LoadOptions = DEFAULTS) -> list[Problem]:
        """See `Family.check`."""
        return checks.check(base, self.name, self.layout, options)

    def load(
        self,
        base: str | Path,
        device: torch.device,
        dtype: torch.dtype,
        options: LoadOptions = DEFAULTS,
    ) -> LatentModel:
        """See `Family.load`."""
        problems = [problem for problem in self.check(base, options) if problem.fatal]
        if problems:
            raise ScdpoError("\n".join(f"{problem.path}: {problem.what}" for problem in problems))
        path = locate(base, checks.folders(self.layout))
        reader: Reader
        if path.is_dir():
            reader = FolderReader(path, self.layout, options)
        else:
            reader = FileReader(path, self.layout, options)
        return self._model(model_name(base), path, reader, self.layout, device, dtype, options)
