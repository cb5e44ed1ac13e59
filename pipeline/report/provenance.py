"""Where the numbers come from: time, machine, versions, commit, data and params."""

from html import escape

from pipeline.report.pieces import facts_list, missing
from pipeline.report.reading import Record
from pipeline.report.results import Study

STAGE_TITLES = {
    "shard": "Shards",
    "pretrain": "Pretraining",
    "probe": "Linear probe and kNN",
    "supervised": "Supervised baseline, whole grid",
    "finetune": "Fine-tuning",
    "distill_same": "Self-distillation",
    "distill_small": "Smaller student",
    "semisup": "Pseudo-label neighbours, whole grid",
    "sizes": "Nets of other sizes",
    "students": "Students of the study of sizes",
    "transfer": "Transfer",
    "gallery": "Pictures",
}


def seconds_by_stage(study: Study) -> dict[str, float]:
    """Seconds of every stage that has run, its matrix items added up."""
    total: dict[str, float] = {}
    for name in study.record_names:
        seconds = study.record(name).get("seconds")
        if seconds is not None:
            stage = name.split("/", 1)[0]
            total[stage] = total.get(stage, 0.0) + float(seconds)
    return total


def time_section(study: Study) -> str:
    total = seconds_by_stage(study)
    if not total:
        return missing("")
    most = max(total.values()) or 1.0
    rows = [
        f"<span>{STAGE_TITLES.get(stage, stage)}</span>"
        f'<div class="bar" style="width:{seconds / most * 100:.1f}%"></div>'
        f'<span class="value">{clock(seconds)}</span>'
        for stage, seconds in total.items()
    ]
    return (
        f"<p>{clock(sum(total.values()))} in all, without the time to start each process.</p>"
        f'<div class="bars">{"".join(rows)}</div>'
    )


def clock(seconds: float) -> str:
    """'42 s', '7 min 40 s' or '2 h 05 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def provenance_facts(study: Study) -> list[tuple[str, list[str]]]:
    """What the records say of commit, machine, versions and data: each value that occurs."""
    seen: dict[str, dict[str, None]] = {
        title: {} for title in ("Commit", "Processor", "Python", "Packages", "Data fingerprint")
    }
    for name in study.record_names:
        details = study.details(name)
        run = details.get("run") or {}
        packages = run.get("packages") or {}
        values = {
            "Commit": run.get("commit"),
            "Processor": machine_words(run),
            "Python": " ".join(str(run[k]) for k in ("python", "system", "machine") if run.get(k)),
            "Packages": ", ".join(f"{k} {v}" for k, v in packages.items() if v),
            "Data fingerprint": details.get("data_fingerprint")
            or (details.get("fingerprint") if name == "shard" else None),
        }
        for title, value in values.items():
            if value:
                seen[title][str(value)] = None
    return [(title, list(values)) for title, values in seen.items()]


def machine_words(run: Record) -> str:
    words = [str(run["processor"])] if run.get("processor") else []
    words += [f"{run['cores']} core{'' if run['cores'] == 1 else 's'}"] if run.get("cores") else []
    return ", ".join([*words, *([str(run["device"])] if run.get("device") else [])])


def warnings(study: Study) -> list[str]:
    """What a reader must know before trusting the numbers."""
    facts = dict(provenance_facts(study))
    if len(facts["Data fingerprint"]) > 1:
        return ["These numbers come from different data (more than one data fingerprint)."]
    return []


def remarks(study: Study) -> list[str]:
    """What a reader should know of the code behind the numbers."""
    commits = dict(provenance_facts(study))["Commit"]
    said = []
    if len(commits) > 1:
        said.append(
            "Stages ran at different commits; dvc holds those that did not run again valid."
        )
    if any(commit.endswith("+changes") for commit in commits):
        said.append("Some of it ran from code with uncommitted changes (+changes).")
    return said


def provenance_section(study: Study) -> str:
    facts = [
        (title, "<br>".join(f"<code>{escape(value)}</code>" for value in values) or "\N{EN DASH}")
        for title, values in provenance_facts(study)
    ]
    said = "".join(f"<p>{escape(remark)}</p>" for remark in remarks(study))
    return (
        f"{said}{facts_list(facts)}"
        f"<details><summary>params.yaml (profile {escape(study.params.profile)})</summary>"
        f"<pre>{escape(params_text(study))}</pre></details>"
    )


def params_text(study: Study) -> str:
    """params.yaml as written, or as read where the file is not beside the metrics."""
    path = study.root / "params.yaml"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return study.params.model_dump_json(indent=1)
