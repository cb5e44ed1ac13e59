"""What a run of the chain can be asked for: the form on Prefect's page, the words of `run`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, field_validator

from pipeline import profiles
from pipeline.holder import Overlap
from pipeline.params_text import with_values
from stages.errors import UserError
from stages.params import check_params

OF_THIS_RUN = "params of this run"
Push = Literal["auto", "always", "never"]


class ChainParameters(BaseModel, extra="forbid"):
    """What to bring up to date, and how."""

    targets: Annotated[
        list[str],
        Field(
            description="stages to bring up to date, with all before them, like finetune or "
            "finetune@0.01; none: every stage"
        ),
    ] = []
    profile: Annotated[
        # The names stand beside `str`, where the form looks for what to offer.
        Annotated[str, Field(json_schema_extra={"enum": [*profiles.names()]})] | None,
        Field(description="run with this profile in place of params.yaml, which stays as it is"),
    ] = None
    overrides: Annotated[
        dict[str, Any],
        Field(
            description="values in place of those written, by dotted key: "
            '{"finetune.label_fractions": [0.01]}; params.yaml stays as it is'
        ),
    ] = {}
    force: Annotated[bool, Field(description="run stages even where nothing changed")] = False
    concurrency: Annotated[
        int, Field(ge=1, le=64, description="stages at once, where the graph allows it")
    ] = 1
    time_limit_minutes: Annotated[
        float | None,
        Field(gt=0, description="then stages save and stop; the next run continues there"),
    ] = None
    overlap: Annotated[
        Overlap,
        Field(
            description="where another run or a dvc command works in the same folder: wait for it "
            "(queue), end at once as Completed (skip) or as Cancelled (cancel_new)"
        ),
    ] = "queue"
    push: Annotated[
        Push,
        Field(
            description="copy the results to dvc's default remote at the end: where there is one "
            "(auto), always, or never"
        ),
    ] = "auto"

    @field_validator("profile")
    @classmethod
    def _profile_exists(cls, name: str | None) -> str | None:
        if name is not None and name not in profiles.names():
            raise ValueError(f"there is no profile {name}; there are: {profiles.names()}")
        return name

    @property
    def has_own_params(self) -> bool:
        """Whether it runs with other params than those in params.yaml."""
        return self.profile is not None or bool(self.overrides)

    def params_text(self, written: str) -> str:
        """The params.yaml of this run, comments kept.

        Args:
            written: the project's params.yaml, which a profile takes the place of.

        Raises:
            UserError: a key or a value can't be used; nothing has run.
        """
        base = profiles.text_of(self.profile) if self.profile else written
        text = with_values(base, self.overrides)
        check_params(yaml.safe_load(text), OF_THIS_RUN)
        return text


EVERYTHING = ChainParameters()


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words of a command line by key, values as YAML reads them.

    Raises:
        UserError: a word has no "=", or a value is not YAML.
    """
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"--set {word}: write it as KEY=VALUE, like pretrain.seed=1")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {word}: the value is not YAML: {error}") from None
    return values
