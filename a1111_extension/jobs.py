"""Pairs, trainings, comparisons and evaluations of one runs root, as the tab and the API use them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from scdpo_core.cost.protocol import Scorer
from scdpo_core.io.images import open_image
from scdpo_core.lora.file import read_lora_info
from scdpo_core.pairs.start import PairsJob, write_pairs_job
from scdpo_core.run_store.folder import Kind, kind_of, run_folder, runs_in
from scdpo_core.run_store.state import State, state_of
from scdpo_core.runs import jobs as core_jobs
from scdpo_core.runs.comparison import CompareJob, write_comparison
from scdpo_core.runs.follow import Follower, RunView
from scdpo_core.runs.install_result import install, installed
from scdpo_core.runs.supervisor import Supervisor
from scdpo_core.suite.job import EvalJob, write_evaluation
from scdpo_core.types import CostScore, ScdpoError

_MOST_COSTS = 2000

Job = core_jobs.LoraJob | CompareJob | PairsJob | EvalJob
_WRITERS: Mapping[type, Callable[[Any], Path]] = {
    core_jobs.LoraJob: core_jobs.write,
    CompareJob: write_comparison,
    PairsJob: write_pairs_job,
    EvalJob: write_evaluation,
}


class Jobs:
    """Starts, shows and stops runs. Every method may be called by several threads at once."""

    def __init__(
        self,
        root: Path,
        *,
        lend: Callable[[str], AbstractContextManager[object]] = nullcontext,
        lora_folders: Callable[[], Sequence[Path]] = tuple,
        versions: Callable[[], Iterable[str]] = tuple,
        lora_installed: Callable[[], None] = lambda: None,
        scorer: Callable[[], Scorer] | None = None,
    ) -> None:
        """Manage the runs in `root`.

        Args:
            root: the runs root.
            lend: see `Supervisor`.
            lora_folders: folders that the host looks for LoRAs in; finished ones are copied into the first.
            versions: see `install_result.install`.
            lora_installed: called after a LoRA was copied.
            scorer: scores sample images; None for no scores.
        """
        self.root, self._scorer, self._versions = root, scorer, versions
        self._lora_folders, self._lora_installed = lora_folders, lora_installed
        self.supervisor = Supervisor(root, lend, self._ended)
        self._lock = threading.Lock()
        self._followers: dict[str, Follower] = {}
        self._costs: dict[tuple[str, int], CostScore] = {}
        self._trouble = ""

    def wake(self) -> None:
        """Continue where a closed host had stopped."""
        if not self.root.is_dir():
            return
        for folder in runs_in(self.root, "lora"):
            if installed(folder) is None and self._lora_folders() and state_of(folder) == "finished":
                self._ended(folder, "finished")
        self.supervisor.wake()

    @property
    def note(self) -> str:
        """Installation progress, or an error outside of a run."""
        return self.supervisor.note or self._trouble

    def names(self, kind: Kind | None = None) -> list[str]:
        """List runs, the most recently changed first."""
        return [folder.name for folder in runs_in(self.root, kind)]

    def folder(self, name: str) -> Path:
        """Return the folder of a run.

        Raises:
            ScdpoError: there is no run of that name.
        """
        return run_folder(self.root, name)

    def start(self, job: Job) -> str:
        """Write a job into its run folder and queue it; returns what happens, a sentence.

        Raises:
            ScdpoError: the job's problems, one sentence a line. A second click ends here.
        """
        with self._lock:
            folder = _WRITERS[type(job)](job)
        return self.supervisor.add(folder)

    def resume(self, name: str) -> str:
        """Continue a run that was stopped, failed or was interrupted.

        Raises:
            ScdpoError: there is no such run, or it is finished.
        """
        folder = self.folder(name)
        if state_of(folder) == "finished":
            raise ScdpoError(f"'{name}' is finished. To do more, start one with another name.")
        return self.supervisor.add(folder, resume=True)

    def stop(self, name: str) -> str:
        """Stop a run, or take it out of the queue.

        Raises:
            ScdpoError: there is no such run.
        """
        return self.supervisor.stop(self.folder(name))

    def waiting(self) -> list[str]:
        """List waiting runs, next one first."""
        return [entry.folder.name for entry in self.supervisor.queue.view().waiting]

    def active(self) -> str:
        """Return the active run; '' if there is none."""
        active = self.supervisor.queue.view().active
        return "" if active is None else active.name

    def kind(self, name: str) -> Kind:
        """Return the kind of a run."""
        return kind_of(self.folder(name))

    def view(self, name: str) -> RunView:
        """Return the state of a run.

        Raises:
            ScdpoError: there is no such run.
        """
        folder = self.folder(name)
        with self._lock:
            return self._followers.setdefault(name, Follower(folder)).view()

    def costs(self, view: RunView) -> Mapping[str, CostScore]:
        """Score a run's sample images; returns costs by path of those that can be scored."""
        costs: dict[str, CostScore] = {}
        for sample in view.samples if self._scorer is not None else ():
            try:
                key = (sample.path, Path(sample.path).stat().st_mtime_ns)
                if key not in self._costs:
                    if len(self._costs) > _MOST_COSTS:
                        self._costs.clear()
                    assert self._scorer is not None
                    self._costs[key] = self._scorer().score([open_image(Path(sample.path))])[0]
                if self._costs[key].finite:
                    costs[sample.path] = self._costs[key]
            except (OSError, ScdpoError):
                continue
        return costs

    def _ended(self, folder: Path, state: State) -> None:
        """Put a finished LoRA where the host looks for LoRAs."""
        folders = self._lora_folders()
        if state != "finished" or kind_of(folder) != "lora" or not folders:
            return
        # Late: a host that starts should not wait for what it may never use.
        from scdpo_core.family_info import MICRO

        try:
            # No host draws with the embedded model.
            if read_lora_info(folder / f"{folder.name}.safetensors").family == MICRO:
                return
            install(folder, folders[0], others=folders[1:], versions=self._versions())
            self._trouble = ""
            self._lora_installed()
        except ScdpoError as error:
            self._trouble = str(error)
