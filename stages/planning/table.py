"""A plan as a table to read."""

from collections.abc import Callable

from stages.planning.amounts import count, duration, size
from stages.planning.estimate import Plan, StagePlan

Column = tuple[str, Callable[[StagePlan], str]]


def as_text(plan: Plan, probe_seconds: float) -> str:
    counts, hardware = plan.counts, plan.hardware
    cores = f"{hardware.cores} core{'' if hardware.cores == 1 else 's'}"
    rows = [[title for title, _ in COLUMNS]]
    rows += [[show(stage) for _, show in COLUMNS] for stage in plan.stages]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    lines = [
        f"Profile {plan.profile} on {hardware.gpu or cores}: "
        f"{counts.train:,} training, {counts.validation:,} validation and {counts.test:,} test "
        f"images ({counts.known_from})",
        "",
        *("  ".join(_placed(row, widths)).rstrip() for row in rows),
        "",
        f"{duration(plan.seconds)} in all; "
        f"{size(max(stage.memory_bytes for stage in plan.stages))} of "
        f"{size(hardware.memory_bytes)} memory at most; {size(plan.disk_bytes)} of disk with dvc's "
        f"copies, {size(hardware.disk_free_bytes)} are free",
        f"Measured in {probe_seconds:.0f} s, on drawn images.{_busy(plan)}",
    ]
    instead = {s.measured_on: s.stage for s in reversed(plan.stages) if s.measured_on}
    lines += [f"Too large to try: {stage}'s time is from {what}" for what, stage in instead.items()]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def _busy(plan: Plan) -> str:
    if not plan.was_busy:
        return ""
    return (
        f" Other work kept the cores busy (load {plan.hardware.busy_cores:g}): times are of one "
        "core where more would help."
    )


def _placed(row: list[str], widths: list[int]) -> list[str]:
    first, *rest = (
        cell.ljust(width) if place == 0 else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return [first, *rest]


COLUMNS: list[Column] = [
    ("stage", lambda stage: stage.stage),
    ("nets", lambda stage: count(stage.nets)),
    ("steps", lambda stage: count(stage.steps)),
    ("images", lambda stage: count(stage.images)),
    ("operations", lambda stage: count(stage.flops)),
    ("weights", lambda stage: count(stage.parameters)),
    ("memory", lambda stage: size(stage.memory_bytes) if stage.memory_bytes else "-"),
    ("disk", lambda stage: size(stage.disk_bytes) if stage.disk_bytes else "-"),
    ("time", lambda stage: duration(stage.seconds)),
]
