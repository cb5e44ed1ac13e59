"""What a run will cost on this machine, before it runs: behind `python -m pipeline plan`.

Steps, images, operations, weights, memory, disk and time of every stage that params.yaml asks for,
with what would be too much and the cheaper choice. Times come from a few real steps of the real
networks on drawn images; nothing is written.

    python -m stages.plan [--json] [--without-shards]
"""

import argparse
import json
import time
from dataclasses import asdict

import psutil

from stages.errors import run_stage
from stages.params import load_params
from stages.planning.counts import count_images
from stages.planning.estimate import Plan, estimate
from stages.planning.rates import Machine
from stages.planning.table import as_text
from stages.training.recipes import start_runtime


def main() -> None:
    # What a stage's process takes before it begins: Python, torch and our code.
    started, of_core = time.time() - psutil.Process().create_time(), time.process_time()
    asked = parse_arguments()
    begun = time.perf_counter()
    params = load_params()
    runtime = start_runtime(params)
    counts = count_images(params, by_shards=not asked.without_shards)
    machine = Machine(params, counts, runtime)
    plan = estimate(params, counts, machine, of_core if machine.is_busy else started)
    print(as_json(plan) if asked.json else as_text(plan, time.perf_counter() - begun))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stages.plan", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument(
        "--without-shards", action="store_true", help="those in data/shards are of other params"
    )
    return parser.parse_args()


def as_json(plan: Plan) -> str:
    return json.dumps(asdict(plan) | {"seconds": plan.seconds, "disk_bytes": plan.disk_bytes})


if __name__ == "__main__":
    run_stage(main)
