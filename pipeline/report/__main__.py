"""`python -m pipeline.report`: the report stage."""

from pathlib import Path

from pipeline.report.build import build_report
from stages.errors import run_stage
from stages.params import load_params


def main() -> None:
    build_report(Path.cwd(), load_params())


if __name__ == "__main__":
    run_stage(main)
