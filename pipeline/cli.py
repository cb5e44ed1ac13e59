"""Commands of the project: `python -m pipeline COMMAND`, from the root folder.

    init DIR         look at a folder of images and write a params.yaml that fits it
    profile [NAME]   show the profiles, or write one to params.yaml
    check            check params.yaml, run nothing
    plan             what a run would cost on this machine: steps, memory, disk, time
    bench            images per second of loader, network and both on this machine
    schema           the JSON schema of params.yaml
    report           the report from what is there now; dvc's report stage does the same
    results          the table of the last report, and where the report is
    pictures         the README's pictures, from the last results
    run              the chain through Prefect; no server needed
    apply [NAME]     make the params and results of a run with --profile or --set the project's
    serve            the chain on Prefect's page, by hand or on a schedule
    models           versions of what the chain made: list, register, get, use, rollback

Exit codes: 0 done, 2 the user's mistake, 75 interrupted and continues, 1 a fault of ours.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline import models, profiles, run_workspace, serving
from pipeline.artifacts import first_table, profile_of
from pipeline.dvc import Workspace, is_made_with
from pipeline.report_server import start_report_server
from stages.errors import INTERRUPTED, UserError
from stages.params import PARAMS_FILE, load_params

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ROOT = Path(__file__).resolve().parents[1]
SCHEMA_FILE = Path("pipeline/params.schema.json")
REPORT = Path("report/index.html")
REPORT_TABLE = Path("report/report.md")

# A run talks to nobody: neither Prefect's server nor its client reports usage.
PRIVATE = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
# The embedded server of `run`. Its history stays in the project, apart from the user's own
# server (and from the settings that name it); a busy machine takes a minute to start it.
EMBEDDED = {
    "PREFECT_HOME": str(Path(".prefect").absolute()),
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and do what it says.

    Raises:
        UserError: the command can't do it; the message says why.
        SystemExit: with the exit code, where it is not 0.
    """
    asked = parser().parse_args(arguments)
    sys.exit(asked.command(asked))


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="python -m pipeline", description="SimCLRv2, end to end.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser("init", help="look at a folder of images, write params that fit it")
    init.add_argument("folder", type=Path, help="of images")
    init.add_argument("--labels", type=Path, help="lines of key,label (default: looked for)")
    init.add_argument(
        "--unlabelled", type=Path, nargs="+", default=[], help="further folders, without labels"
    )
    init.add_argument("--profile", choices=("quick", "gpu"), help="default: by this machine")
    init.add_argument("--dry-run", action="store_true", help="say what it would write, and why")
    init.add_argument(
        "--force", action="store_true", help="even over values kept nowhere else (to a .bak file)"
    )
    init.set_defaults(command=_init)

    profile = commands.add_parser("profile", help="show the profiles, or write one to params.yaml")
    profile.add_argument("name", nargs="?", help="write this one to params.yaml")
    profile.add_argument(
        "--force", action="store_true", help="even over values kept nowhere else (to a .bak file)"
    )
    profile.set_defaults(command=_profile)

    check = commands.add_parser("check", help="check params.yaml, run nothing")
    check.set_defaults(command=_check)

    plan = commands.add_parser("plan", help="what each stage would cost on this machine")
    plan.add_argument("--json", action="store_true", help="one JSON object, for programs")
    plan.set_defaults(command=_plan)

    bench = commands.add_parser("bench", help="images/s of the loader, of the network, and of both")
    bench.add_argument("--seconds", type=float, default=10.0, help="for each (default 10)")
    bench.add_argument("--batch-size", type=int, help="images of a step (default: as in params)")
    bench.add_argument("--json", action="store_true", help="one JSON object, for programs")
    bench.set_defaults(command=_bench)

    schema = commands.add_parser("schema", help="the JSON schema of params.yaml")
    schema.add_argument("--write", action="store_true", help=f"to {SCHEMA_FILE}, for editors")
    schema.set_defaults(command=_schema)

    report = commands.add_parser("report", help="the report, from what is there now")
    report.set_defaults(command=_report)

    results = commands.add_parser("results", help="the last report's table, and where it is")
    results.add_argument(
        "--into", type=Path, metavar="FILE", help="put the table of metrics/ there (README.md)"
    )
    results.set_defaults(command=_results)

    pictures = commands.add_parser("pictures", help="the README's pictures, from the last results")
    pictures.set_defaults(command=_pictures)

    run = commands.add_parser("run", help="the chain through Prefect; no server needed")
    run.add_argument("--targets", nargs="+", default=[], metavar="STAGE", help="up to these stages")
    run.add_argument("--profile", help="with this profile; params.yaml stays as it is")
    run.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="with other values: finetune.seeds=1; params.yaml stays as it is",
    )
    run.add_argument("--force", action="store_true", help="run even what has not changed")
    run.add_argument("--concurrency", type=int, default=1, help="stages at once (default 1)")
    run.add_argument("--minutes", type=float, help="then stages save and stop; a run continues")
    run.add_argument(
        "--overlap",
        choices=("queue", "skip", "cancel_new"),
        default="queue",
        help="where another run works here: wait (default), end as done, or end as cancelled",
    )
    run.add_argument(
        "--push",
        choices=("auto", "always", "never"),
        default="auto",
        help="the results to dvc's default remote: where there is one (default), always, never",
    )
    run.set_defaults(command=_run)

    apply = commands.add_parser("apply", help="make a run's params and results the project's own")
    apply.add_argument("name", nargs="?", help="of the run's workspace; none: show them")
    apply.add_argument("--force", action="store_true", help="even over what is kept nowhere else")
    apply.set_defaults(command=_apply)

    serve = commands.add_parser("serve", help="the chain on Prefect's page, or on a schedule")
    serve.add_argument(
        "--cron", help='when (UTC), as cron writes it: "0 2 * * *" is 2:00 every night'
    )
    serve.add_argument(
        "--unprotected", action="store_true", help="also from a server that asks for no password"
    )
    serve.set_defaults(command=_serve)

    models.add_commands(commands)
    return root


def _init(asked: argparse.Namespace) -> int:
    from pipeline.init import fitted_text

    text, reasons = fitted_text(asked.folder, asked.labels, asked.unlabelled, asked.profile)
    print("\n".join(reasons))
    if asked.dry_run:
        print(f"nothing written; without --dry-run these values go to {PARAMS_FILE}")
        return 0
    profiles.replace_params(text, PARAMS_FILE, force=asked.force)
    print(f"{PARAMS_FILE} now fits {asked.folder}; run it with: make reproduce")
    print("images and labels that join that folder later are seen: dvc repro runs what they change")
    return 0


def _profile(asked: argparse.Namespace) -> int:
    if asked.name is None:
        print(profiles.listing(profiles.read_values(PARAMS_FILE)))
        return 0
    changes = profiles.switch(asked.name, PARAMS_FILE, force=asked.force)
    print("\n".join(changes) if changes else "no value changed")
    print(f"params.yaml now holds the profile {asked.name}; run it with: make reproduce")
    return 0


def _check(_: argparse.Namespace) -> int:
    params = load_params()
    print(f"params.yaml is good (from the profile {params.profile})")
    return 0


def _plan(asked: argparse.Namespace) -> int:
    load_params()
    words = ["--json"] * asked.json
    # Shards of the images before would be counted in place of those that params.yaml names now.
    if not is_made_with(Path.cwd(), "shard", "data", profiles.read_values(PARAMS_FILE)):
        words.append("--without-shards")
    return _in_a_process_with_torch("stages.plan", words)


def _bench(asked: argparse.Namespace) -> int:
    words = ["--seconds", str(asked.seconds)]
    words += ["--batch-size", str(asked.batch_size)] if asked.batch_size is not None else []
    return _in_a_process_with_torch("stages.bench", words + ["--json"] * asked.json)


def _in_a_process_with_torch(module: str, arguments: list[str]) -> int:
    load_params()  # a mistake shows before the seconds that torch takes to start
    words = [sys.executable, "-m", module, *arguments]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(words, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode


def _schema(asked: argparse.Namespace) -> int:
    text = profiles.schema_text()
    if asked.write:
        SCHEMA_FILE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def _report(_: argparse.Namespace) -> int:
    from pipeline.report.__main__ import main as build  # its own stage in dvc.yaml

    build()
    print(f"report: {REPORT.absolute()}")
    return 0


def _pictures(_: argparse.Namespace) -> int:
    from pipeline.report.pictures import make_pictures  # matplotlib takes seconds to import

    for path in make_pictures(Path.cwd(), load_params()):
        print(path)
    return 0


def _results(asked: argparse.Namespace) -> int:
    if asked.into is not None:
        from pipeline.report.into_file import results_table, write_table

        changed = write_table(asked.into, results_table(Path.cwd(), load_params()))
        print(f"{asked.into}: {'the table is new' if changed else 'its table is that of metrics/'}")
        return 0
    if not REPORT_TABLE.is_file():
        raise UserError(f"there is no {REPORT_TABLE} yet.\n  Make it with: make reproduce")
    text, now = REPORT_TABLE.read_text(encoding="utf-8"), load_params().profile
    profile = profile_of(text) or now
    others = ", ".join(name for name in profiles.names() if name != profile)
    print(f"\n{first_table(text)}\n")
    print(f"report:  {REPORT.absolute()}")
    print(f"profile: {profile} (others: {others}; python -m pipeline profile NAME, then repeat)")
    if profile != now:
        print(f"params.yaml holds the profile {now} by now; for its results: make reproduce")
    return 0


def _run(asked: argparse.Namespace) -> int:
    from pipeline.parameters import ChainParameters, read_settings

    try:
        parameters = ChainParameters(
            targets=asked.targets,
            profile=asked.profile,
            overrides=read_settings(asked.set),
            force=asked.force,
            concurrency=asked.concurrency,
            time_limit_minutes=asked.minutes,
            overlap=asked.overlap,
            push=asked.push,
        )
    except ValidationError as error:
        raise UserError("\n  ".join(_line(problem) for problem in error.errors())) from None
    # A mistake shows before the seconds that Prefect takes to start.
    if asked.profile is None:
        load_params()
    if parameters.has_own_params:
        written = PARAMS_FILE.read_text(encoding="utf-8") if PARAMS_FILE.exists() else ""
        parameters.params_text(written)
    # SIGTERM ends as Ctrl-C does: the flow stops its stages, and the embedded server goes too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.update({**PRIVATE, **os.environ})
    if "PREFECT_API_URL" not in os.environ:
        os.environ.update({**EMBEDDED, **os.environ})
    else:
        serving.wait_for_server("\n  or unset PREFECT_API_URL: then the run brings its own")
    from prefect.exceptions import CancelledRun

    from pipeline import flows  # slow, and it reads the settings made above
    from pipeline.run_graph import StageFailed, TimeIsUp
    from pipeline.sharing import PushFailed

    try:
        result = flows.simclr_chain(parameters)
    except CancelledRun as reason:
        print(f"stopped: {reason}", file=sys.stderr)
        return INTERRUPTED
    except (StageFailed, PushFailed) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.exit_code
    except TimeIsUp as reason:
        print(f"stopped: {reason}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("stopped: every stage has ended; the same command continues", file=sys.stderr)
        return INTERRUPTED
    if not result:
        print("skipped: nothing was run, for the workspace is in use")
        return 0
    statuses, name = result
    ran = [stage for stage, status in statuses.items() if status == "ran"]
    print(f"{len(statuses)} stages up to date; {len(ran)} had to be run: {', '.join(ran) or '-'}")
    if parameters.has_own_params:
        print(f"they are in {run_workspace.FOLDER / name}; python -m pipeline apply {name}")
    return 0


def _line(problem: "ErrorDetails") -> str:
    """What is wrong with a word of `run`: which, why, and what was written."""
    key = ".".join(str(part) for part in problem["loc"])
    return f"{key}: {problem['msg'].removeprefix('Value error, ')} (you wrote {problem['input']!r})"


def _apply(asked: argparse.Namespace) -> int:
    project = Workspace.here()
    if asked.name is None:
        print(run_workspace.listing(project) or "no run had params of its own yet")
        return 0
    changes = run_workspace.apply(project, asked.name, force=asked.force)
    print("\n".join(changes) if changes else "no value changed")
    print(f"params.yaml and the results are now those of {asked.name}")
    return 0


def _serve(asked: argparse.Namespace) -> int:
    load_params()
    os.environ.update({**PRIVATE, **os.environ})
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    warnings = serving.check_server(
        api.url,
        has_password=api.auth_string is not None or api.key is not None,
        unprotected=asked.unprotected,
    )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    from pipeline.page import REPORT_URL

    address = start_report_server(Path.cwd())
    if address is not None:
        os.environ[REPORT_URL] = address
    serving.serve(asked.cron)
    return 0
