"""The manifest for Kubernetes: what its API takes, and what our stage needs."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stages.errors import INTERRUPTED, USER_MISTAKE

Manifest = dict[str, dict[str, Any]]
SCHEMAS = json.loads(Path(__file__).with_name("kubernetes_1_31.json").read_text("utf-8"))


@pytest.fixture
def manifest(root: Path) -> Manifest:
    text = (root / "pipeline/docs/kubernetes.yaml").read_text("utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def check(manifest: Manifest) -> None:
    for kind, document in manifest.items():
        jsonschema.Draft202012Validator(SCHEMAS[kind]).validate(document)


def test_the_manifest_is_what_the_api_takes(manifest: Manifest):
    assert set(manifest) == {"Service", "Job"}
    check(manifest)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(completion=2),
        lambda job: job["spec"].update(parallelism="two"),
        lambda job: job["spec"].pop("template"),
        lambda job: job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"].pop("operator"),
        lambda job: job["spec"]["template"]["spec"]["containers"][0].update(command="python"),
    ],
)
def test_the_schema_would_see_a_mistake(manifest: Manifest, spoil: Callable[[Any], object]):
    spoilt = copy.deepcopy(manifest)
    spoil(spoilt["Job"])
    with pytest.raises(jsonschema.ValidationError):
        check(spoilt)


def test_pods_find_each_other_and_exit_codes_mean_what_ours_do(manifest: Manifest, root: Path):
    service, job = manifest["Service"], manifest["Job"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": manifest["Job"]["metadata"]["name"]}
    assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"]
    rules = {
        tuple(rule["onExitCodes"]["values"]): rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules == {(USER_MISTAKE,): "FailJob", (INTERRUPTED,): "Ignore"}
    assert (root / f"{container['command'][-1].replace('.', '/')}.py").is_file()
