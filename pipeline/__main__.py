"""`python -m pipeline`."""

from pipeline.cli import main
from stages.errors import run_stage

run_stage(main)
