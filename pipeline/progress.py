"""How far a stage is, from the numbers that its trainings leave in a folder."""

from dataclasses import dataclass
from pathlib import Path

from stages.records import read_json


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        share: of all its steps, in [0, 1].
        line: for people.
    """

    share: float
    line: str


def read_progress(folder: Path) -> Progress | None:
    """How far the trainings are that write to a folder; None while there are none to see."""
    trainings = [read_json(path) for path in sorted((folder / "training").glob("*.json"))]
    if not trainings:
        return None
    shares = [one["step"] / one["total_steps"] for one in trainings]
    announced = folder / "trainings.json"
    count = len(trainings)
    if announced.exists():
        count = max(count, read_json(announced)["trainings"])
    running = [one for one in trainings if one["step"] < one["total_steps"]]
    if count == 1:
        words = [f"step {trainings[0]['step']:,} of {trainings[0]['total_steps']:,}"]
    else:
        words = [f"{len(trainings) - len(running)} of {count} trainings done"]
        words += [f"at step {one['step']:,} of {one['total_steps']:,}" for one in running[:1]]
    losses = [one["loss"] for one in running or trainings if "loss" in one]
    words += [f"loss {losses[0]:.4g}"] if losses else []
    rate = sum(one.get("images_per_second", 0) for one in running)
    words += [f"{rate:,.0f} images/s"] if rate else []
    left = [one["seconds_left"] for one in running if one["seconds_left"] is not None]
    if left and count == len(trainings):
        words.append(f"about {duration(max(left))} left")
    return Progress(sum(shares) / count, ", ".join(words))


def duration(seconds: float) -> str:
    """As people say it: "40 s", "3 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
