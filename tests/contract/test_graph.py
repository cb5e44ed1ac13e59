"""dvc.yaml against the code: what a stage imports, it depends on; what it reads, it declares."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from stages.params import Params
from stages.sections.kinds import Section

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
NAMES = sorted(STAGES)

# Keys that make the graph itself: they are in the names of the matrix items, so a stage that
# runs for one of them needs no other trace of them.
MATRIX_KEYS = {"finetune.label_fractions"}
MATRIX_KEYS |= {"sizes.encoders", "sizes.students", "sizes.label_fractions"}
# What only the stage subsets reads; the others depend on the subsets it makes.
OF_THE_SUBSETS = {"finetune.label_lists"}
# Where a run happens decides no result, so no stage is out of date when it changes; and a
# profile's name is only a name.
DECIDE_NOTHING = {"runtime", "profile"}


def module_of(stage: str) -> str:
    """The module that a stage's command runs."""
    found = re.search(r"python -m ((?:stages|pipeline)[\w.]*)", STAGES[stage]["cmd"])
    assert found, f"{stage} runs no module of ours: {STAGES[stage]['cmd']}"
    return found[1]


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("stages", "pipeline", cache_dir=None)  # its cache can be stale


def code_behind(stage: str) -> set[Path]:
    """Every file of ours that runs when the stage runs."""
    start = module_of(stage)
    start = start if file_of(start).stem != "__main__" else f"{start}.__main__"
    modules = {start} | imports().find_upstream_modules(start)
    return {file_of(module) for module in modules if not (ROOT / module.replace(".", "/")).is_dir()}


def declared(stage: str) -> set[str]:
    """Params that a stage names, all in params.yaml."""
    return {name for name in STAGES[stage].get("params", []) if isinstance(name, str)}


@pytest.mark.parametrize("stage", NAMES)
def test_stage_depends_on_every_file_it_imports(stage: str):
    deps = [ROOT / dep for dep in STAGES[stage]["deps"]]
    missing = [
        str(file.relative_to(ROOT))
        for file in sorted(code_behind(stage))
        if not any(file.is_relative_to(dep) for dep in deps)
    ]
    assert missing == []


@pytest.mark.parametrize("stage", NAMES)
def test_code_that_a_stage_depends_on_is_there_and_is_used(stage: str):
    for dep in STAGES[stage]["deps"]:
        if dep.startswith(("stages/", "pipeline/")) and dep != "stages/label_lists":  # it is data
            assert (ROOT / dep).exists(), dep
            assert any(file.is_relative_to(ROOT / dep) for file in code_behind(stage)), dep


@pytest.mark.parametrize("stage", NAMES)
def test_params_that_a_stage_declares_exist(stage: str):
    for name in declared(stage):
        model: Any = Params
        for key in name.split("."):
            assert key in model.model_fields, f"{stage}: {name}"
            model = model.model_fields[key].annotation


@pytest.mark.parametrize("stage", NAMES)
def test_stage_declares_every_section_its_own_file_reads(stage: str):
    tree = ast.parse(file_of(module_of(stage)).read_text(encoding="utf-8"))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in Params.model_fields
        and isinstance(node.value, ast.Name | ast.Call)
        and "params" in ast.unparse(node.value)
    }
    assert read - DECIDE_NOTHING <= {name.split(".")[0] for name in declared(stage)}


def leaves(model: type[Section], prefix: str = "") -> set[str]:
    """The fields of a section, by dotted name; a section inside counts as one."""
    return {f"{prefix}{name}" for name in model.model_fields}


@pytest.mark.parametrize("section", sorted(set(Params.model_fields) - DECIDE_NOTHING))
def test_every_param_makes_some_stage_out_of_date(section: str):
    model = Params.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, Section)
    everywhere = {name for stage in NAMES if stage != "report" for name in declared(stage)}
    if section == "report":
        everywhere |= declared("report")
    unseen = {
        name
        for name in leaves(model, f"{section}.")
        if section not in everywhere
        and not any(seen == name or seen.startswith(f"{name}.") for seen in everywhere)
    }
    assert unseen - MATRIX_KEYS == set()


def test_finetune_declares_every_param_of_its_section():
    fields = leaves(Params.model_fields["finetune"].annotation, "finetune.")  # ty: ignore
    assert fields - MATRIX_KEYS - OF_THE_SUBSETS <= declared("finetune")


def test_nets_of_other_sizes_depend_on_the_params_that_those_of_the_chain_do():
    def of(stage: str, section: str) -> set[str]:
        return {name for name in declared(stage) if name.startswith(section)}

    of_one_student = {"distill.same", "distill.small", "distill.label_share"}
    assert of("finetune", "finetune.") <= declared("finetune_size")
    for stage in ("student", "own_student"):
        assert of("distill_same", "distill.") - of_one_student <= declared(stage)


@pytest.mark.parametrize("stage", NAMES)
def test_numbers_and_curves_are_kept_in_git_and_not_in_the_cache(stage: str):
    listed = [*STAGES[stage].get("metrics", []), *STAGES[stage].get("plots", [])]
    for entry in listed:
        assert isinstance(entry, dict), entry
        for path, options in entry.items():
            assert options["cache"] is False, path
            assert path.startswith(("metrics/", "plots/")), path


def test_outs_of_different_stages_do_not_hold_each_other():
    outs = [
        (stage, out if isinstance(out, str) else next(iter(out)))
        for stage in NAMES
        for out in STAGES[stage].get("outs", [])
    ]
    inside = [
        (one, other)
        for one, path in outs
        for other, folder in outs
        if one != other and path.startswith(f"{folder}/")
    ]
    assert inside == []


def test_what_an_image_is_evaluated_as_makes_every_stage_that_scores_out_of_date():
    scoring = {"gallery", "probe", "supervised", "finetune", "transfer", "report"}
    scoring |= {"distill_same", "distill_small", "semisup", "supervised_size", "finetune_size"}
    scoring |= {"student", "own_student"}
    assert {stage for stage in NAMES if "evaluation" in declared(stage)} == scoring
