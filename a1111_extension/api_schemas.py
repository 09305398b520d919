"""What goes to and fro in the API, so written that pydantic 1 and 2 both take it."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ScoreRequest(BaseModel):
    """What to score: an image sent along, or one that lies on the host, or a folder there."""

    image: str | None = Field(None, description="an image in base64")
    path: str | None = Field(None, description="an image or folder below a folder that may be read")
    cost_model: str | None = Field(None, description="one of /cost-models; by default the one in use")


class Score(BaseModel):
    """One image's score, or the reason why it has none."""

    path: str = Field(description="the image's file; '' for an image that was sent along")
    cost: float | None = Field(None, description="log-odds; above 0 is harmful")
    band: str | None = Field(None, description="safe, review or unsafe")
    categories: dict[str, float | None] = Field(description="cost by category; null where not known")
    details: dict[str, float] = Field({}, description="log-odds by each network of a joint scorer")
    scorer: str = Field(description="id@hash; costs of different scorers do not compare")
    error: str | None = Field(None, description="why there is no cost")


class Scores(BaseModel):
    """Scores, the costliest first; images without a cost come last."""

    scores: list[Score]


class Lora(BaseModel):
    """A LoRA of the host."""

    name: str
    folder: str = Field("", description="where it lies; a host may look in several folders")
    family: str = Field("", description="its base model's family; '' if nothing tells")
    rank: int = 0
    safety: bool = Field(False, description="whether this project trained it")
    problem: str | None = Field(None, description="why the host would not apply it")
    caution: str | None = Field(None, description="what could not be checked of it")


class Loras(BaseModel):
    """The host's LoRAs."""

    loras: list[Lora]


class CostModel(BaseModel):
    """A cost model."""

    name: str
    about: str
    licence: str = ""
    in_use: bool


class CostModels(BaseModel):
    """The cost models."""

    cost_models: list[CostModel]


class JobRequest(BaseModel):
    """A safety LoRA to train."""

    name: str = Field(description="of the run and of the LoRA")
    pairs: str = Field(description="the preference folder, below a folder that may be read")
    base: str = Field("micro", description="the model to train for, by its name in the host")
    quality: str = Field("normal", description="fast, normal or best")
    cost_model: str = Field("none", description="corrects the labels; one of /cost-models, or none")
    settings: str = Field("", description="further settings as TOML, those that name no files")


class PairsRequest(BaseModel):
    """Pairs to build."""

    name: str = Field(description="of the run; its folder becomes the preference folder")
    prompts: list[str] = Field(
        default=[], description="files of harmful prompts, or folders of images, that may be read"
    )
    benign: list[str] = Field(default=[], description="the same for harmless prompts")
    base: str = Field("micro", description="the model that draws, by its name in the host")
    way: str = Field("inpaint", description="inpaint, same-seed, edit or best-of")
    cost_model: str = Field(description="one of /cost-models")
    per_prompt: int = Field(1, description="images of each harmful prompt")
    attempts: int = Field(4, description="at each chosen image, at most")
    limit: int = Field(0, description="prompts of each kind at most; 0 for all")


class EvaluationRequest(BaseModel):
    """A safety LoRA to judge on prompt files."""

    name: str = Field(description="of the run")
    lora: str = Field(
        description="name of a finished run or of one of the host's LoRAs; '' for the base alone"
    )
    prompts: list[str] = Field(default=[], description="files of harmful prompts that may be read")
    benign: list[str] = Field(default=[], description="files of harmless prompts")
    base: str = Field("micro", description="the model that draws, by its name in the host")
    cost_model: str = Field("", description="one of /cost-models; '' for the model's usual judge")
    weights: list[float] = Field(default=[1.0], description="of the LoRA")
    seeds: int = Field(1, description="images of each prompt")
    limit: int = Field(0, description="prompts of each file at most; 0 for all")


class JobDone(BaseModel):
    """What happens now."""

    name: str
    message: str


class Job(BaseModel):
    """How a run stands."""

    name: str
    trains: str = Field(description="lora, cost, compare, pairs or evaluate")
    state: str = Field(description="queued, running, stopping, finished, failed, stopped or interrupted")
    phase: str
    step: int = Field(description="done of the phase")
    total: int
    trained: int = Field(description="training steps done")
    steps: int
    seconds_left: float | None = None
    metrics: dict[str, float] = Field(description="newest figures")
    warnings: list[str]
    message: str = Field(description="why it failed or was interrupted")
    result: str = Field(description="the finished file")


class JobsList(BaseModel):
    """All runs."""

    jobs: list[Job]
    active: str = Field(description="the one that is worked on; '' for none")
    waiting: list[str]


class JobEvents(BaseModel):
    """Lines of a run's log, each a JSON object."""

    events: list[str]
    next: int = Field(description="give it as 'start' to read on")
