"""What a run of the chain can be asked for: the form on Prefect's page, the words of `run`."""

from typing import Annotated

from pydantic import BaseModel, Field


class ChainParameters(BaseModel, extra="forbid"):
    """What to bring up to date, and how; the form on the Prefect page."""

    targets: Annotated[
        list[str],
        Field(description="stages to bring up to date, with all before them; none: every stage"),
    ] = []
    force: Annotated[bool, Field(description="run stages even where nothing changed")] = False
    concurrency: Annotated[
        int, Field(ge=1, le=64, description="stages at once, where the graph allows it")
    ] = 1


EVERYTHING = ChainParameters()
