"""Making a run folder ours, and finding out where a resumed run goes on."""

from __future__ import annotations

from ..config import TrainSettings, to_toml
from ..files import write_text
from . import checkpoint
from .run_folder import RunFolder
from .team import Team, identity_of


def claim(
    folder: RunFolder, settings: TrainSettings, resume: bool, team: Team
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """The checkpoint to go on from, if there is one, and sentences for the artist. Then the folder is ours.

    Args:
        folder: of the run.
        settings: of the run; they become its job.toml.
        resume: whether an interrupted run is to go on.
        team: its first process writes, all of them read.

    Raises:
        ScdpoError: the checkpoint was made with other settings, or processes do not see the same one.
    """
    state, damaged = checkpoint.latest(folder.checkpoints) if resume else (None, [])
    if state is not None:
        checkpoint.check_same_run(state, identity_of(settings, team))
    team.agree(0 if state is None else state.step, "The newest checkpoint")
    if team.rank:
        return state, []
    folder.path.mkdir(parents=True, exist_ok=True)
    notes = [f"The checkpoint {path.name} is damaged; an older one is used." for path in damaged]
    if resume and state is None:
        notes.append("The run was interrupted before its first checkpoint; it begins again.")
    folder.sweep()
    write_text(folder.job, to_toml(settings))
    return state, notes
