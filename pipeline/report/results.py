"""What the stages wrote, read back: only the files that params.yaml asks for.

Names follow from params, so a file left over from other params is never shown. A file that is not
there yet is an empty result, for the report can be built at any moment; a damaged one is an error.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, variance

import numpy as np

from pipeline.report.methods import Method, methods_of, record_name, sized_record, student
from pipeline.report.reading import Arrays, Record, read_arrays, read_curve, read_if_there
from pipeline.report.statistics import half_width
from stages.params import Params
from stages.sections.networks import encoder_name


@dataclass(frozen=True)
class Result:
    """One method at one label fraction: accuracies in [0, 1], over seeds."""

    method: Method
    label_fraction: str
    file: str  # the metrics file its numbers came from
    labels: int
    mean: float
    std: float
    validation_mean: float
    rows: list[Record]  # one per seed

    def by_seed(self, measure: str = "test_accuracy") -> dict[int, float]:
        """A measure of the test images by label subset, the mean over its initialisations.

        Empty where not every row has it.
        """
        if any(row.get(measure) is None for row in self.rows):
            return {}
        found: dict[int, list[float]] = {}
        for row in self.rows:
            found.setdefault(int(row["seed"]), []).append(float(row[measure]))
        return {seed: fmean(values) for seed, values in found.items()}

    @property
    def half_width(self) -> float | None:
        """Half of the 95% interval of the mean over label subsets; None of one."""
        return half_width([*self.by_seed().values()])

    @property
    def initialisations(self) -> int:
        """Nets for each label subset."""
        return len(self.rows) // max(len(self.by_seed()), 1)

    @property
    def spread_of_initialisations(self) -> float | None:
        """Deviation among nets of one label subset, pooled; None where each has one net."""
        found: dict[int, list[float]] = {}
        for row in self.rows:
            found.setdefault(int(row["seed"]), []).append(float(row["test_accuracy"]))
        several = [variance(values) for values in found.values() if len(values) > 1]
        return fmean(several) ** 0.5 if several else None


@dataclass(frozen=True)
class Study:
    """Everything under `root` that belongs to `params`."""

    root: Path
    params: Params

    @cached_property
    def methods(self) -> list[Method]:
        return methods_of(self.params)

    @cached_property
    def fractions(self) -> list[str]:
        """The label fractions of params, fewest labels first where their number is known."""
        asked = self.params.finetune.label_fractions
        return sorted(asked, key=lambda fraction: self.labels(fraction) or 10**12)

    def record(self, name: str) -> Record:
        """metrics/NAME.json; empty where the stage has not run."""
        return self._read(f"{name}.json")

    def details(self, name: str) -> Record:
        """metrics/NAME.run.json; empty where the stage has not run."""
        return self._read(f"{name}.run.json")

    def _read(self, file: str) -> Record:
        if file not in self._known:
            self._known[file] = read_if_there(self.root / "metrics" / file)
        return self._known[file]

    @cached_property
    def _known(self) -> dict[str, Record]:
        return {}

    @cached_property
    def shard(self) -> Record:
        return self.record("shard")

    @cached_property
    def shard_details(self) -> Record:
        return self.details("shard")

    @cached_property
    def train_images(self) -> int | None:
        return (self.shard.get("images") or {}).get("train")

    @cached_property
    def class_names(self) -> list[str]:
        names = self.shard_details.get("class_names")
        if names:
            return [str(name) for name in names]
        known = [
            row.get("per_class_accuracy") or [] for r in self.results.values() for row in r.rows
        ]
        return [f"class {number}" for number in range(max(map(len, known), default=0))]

    @cached_property
    def guessing(self) -> float | None:
        """Accuracy of the better blind guess: any class, or always the commonest of the test."""
        if not self.class_names:
            return None
        chance = 1 / len(self.class_names)
        for result in self.results.values():
            for row in result.rows:
                if row.get("confusion"):
                    per_class = np.asarray(row["confusion"]).sum(axis=1)
                    return max(chance, float(per_class.max() / max(per_class.sum(), 1)))
        return chance

    def labels(self, label_fraction: str) -> int | None:
        """Number of labelled images at a label fraction, from its subset or from a result."""
        subset = self.record(f"subsets/{label_fraction}").get("labels")
        if subset is not None:
            return int(subset)
        for method in self.methods:
            for row in self.details(record_name(method, label_fraction)).get("rows", []):
                if "labels" in row:
                    return int(row["labels"])
        return None

    @cached_property
    def results(self) -> dict[tuple[str, str], Result]:
        """By (method, label fraction); what has not run yet is not in it."""
        found = {}
        for method in self.methods:
            for fraction in self.params.finetune.label_fractions:
                result = self._result(method, fraction)
                if result is not None:
                    found[method.name, fraction] = result
        return found

    @cached_property
    def own_size(self) -> str:
        """The name of pretrain.encoder among the sizes."""
        return encoder_name(self.params.pretrain.encoder)

    @cached_property
    def small_size(self) -> str:
        """The name of the chain's smaller student."""
        return encoder_name(self.params.distill.small.encoder or self.params.pretrain.encoder)

    @cached_property
    def sizes(self) -> list[str]:
        """Nets of the study of sizes that have been run, this one first."""
        return [self.own_size, *(s for s in self.params.sizes.encoders if self.parameters_of(s))]

    def sized(self, size: str, method: str, fraction: str) -> Result | None:
        """A result of a net of this size; of the own size, that of the table."""
        if size == self.own_size:
            return self.results.get((method, fraction))
        known = next((m for m in self.methods if m.name == method), None)
        if known is None:
            return None
        return self._result(known, fraction, sized_record(known, size, fraction))

    def students(self, fraction: str) -> list[tuple[str, str, Result]]:
        """(teacher, student, result) of the grid of sizes, for each share of true labels."""
        sizes = self.params.sizes
        found = []
        for teacher in (self.own_size, *sizes.encoders):
            folder = "own" if teacher == self.own_size else teacher
            for name in sizes.students:
                for share in sizes.label_shares:
                    record = f"students/{folder}/{name}/{fraction}"
                    result = self._result(student(share), fraction, record)
                    found += [(teacher, name, result)] if result else []
        return found

    def parameters_of(self, size: str) -> int:
        """Parameters of a net of this size, from its results; 0 where it has none."""
        for fraction in self.params.finetune.label_fractions:
            for method in self.methods:
                if method.name.startswith(("finetune", "supervised")):
                    result = self.sized(size, method.name, fraction)
                    for row in result.rows if result else ():
                        if row.get("parameters"):
                            return int(row["parameters"])
        return 0

    def _result(self, method: Method, fraction: str, record: str | None = None) -> Result | None:
        name = record or record_name(method, fraction)
        numbers = self.record(name).get(method.name)
        if numbers is None:
            return None
        rows = [
            row for row in self.details(name).get("rows", []) if row.get("method") == method.name
        ]
        return Result(
            method=method,
            label_fraction=fraction,
            file=f"metrics/{name}.json",
            labels=self.labels(fraction) or 0,
            mean=numbers["test_accuracy"]["mean"],
            std=numbers["test_accuracy"]["std"],
            validation_mean=numbers["validation_accuracy"]["mean"],
            rows=sorted(rows, key=lambda row: (row["seed"], row.get("initialisation", 0))),
        )

    @cached_property
    def record_names(self) -> list[str]:
        """Every record these params lead to, in the order of the stages."""
        fractions = self.params.finetune.label_fractions
        by_stage: dict[str, None] = {}
        for method in self.methods:
            by_stage.update(dict.fromkeys(record_name(method, fraction) for fraction in fractions))
        return ["shard", "pretrain", *by_stage, *self._records_of_sizes(), "transfer", "gallery"]

    def _records_of_sizes(self) -> list[str]:
        sizes = self.params.sizes
        folders = ("own", *sizes.encoders)
        return [
            *(f"sizes/{name}/pretrain" for name in sizes.encoders),
            *(
                f"sizes/{name}/{stage}/{fraction}"
                for name in sizes.encoders
                for stage in ("supervised", "finetune")
                for fraction in sizes.label_fractions
            ),
            *(
                f"students/{teacher}/{name}/{fraction}"
                for teacher in folders
                for name in sizes.students
                for fraction in sizes.label_fractions
            ),
        ]

    def curve(self, name: str, method: str | None = None) -> list[dict[str, float]]:
        """The rows of plots/NAME.csv, or those of one method; empty fields are left out."""
        return read_curve(self.root / "plots" / f"{name}.csv", method)

    @cached_property
    def gallery(self) -> Arrays:
        return read_arrays(self.root / "artifacts" / "gallery" / "gallery.npz")

    def predictions(self, result: Result) -> Arrays:
        """What the nets of a result answered to the test images; empty where it is not here."""
        name = result.file.removeprefix("metrics/").removesuffix(".json")
        return read_arrays(self.root / "artifacts" / "predictions" / f"{name}.npz")
