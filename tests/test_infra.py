"""What infra/ holds is checked as far as it can be without Docker and Kubernetes: schemas, linters, commands."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement

from jobs import cli, nightly, submit
from jobs.recipes import RECIPES
from pipelines import metrics
from tests import tiny

INFRA = tiny.ROOT / "infra"
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))
SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS", tiny.ROOT.parent / "shared" / "data" / "kuberay"))
KUBERNETES = "1.33"
BIN = Path(sys.executable).parent


def documents() -> list[dict[str, Any]]:
    """All manifests, the RayJob that the CronJob creates among them."""
    found = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
    inner = [yaml.safe_load(text) for one in found for text in one.get("data", {}).values() if "kind: " in text]
    return [*found, *inner]


def kinds(group: str) -> list[Any]:
    return [
        pytest.param(one, id=f"{one['kind']}-{one['metadata'].get('name') or one['metadata']['generateName']}")
        for one in documents()
        if one["apiVersion"].startswith("ray.io/") == (group == "ray")
    ]


@pytest.mark.parametrize("manifest", kinds("kubernetes"))
def test_kubernetes_own_kinds_are_valid(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", kinds("ray"))
def test_kuberays_kinds_are_valid(manifest: dict[str, Any]) -> None:
    path = SCHEMAS / f"{manifest['kind']}.v1.schema.json"
    if not path.exists():
        pytest.skip(f"no schemas of KubeRay in {SCHEMAS}: KUBERAY_SCHEMAS names their folder")
    schema = strict(json.loads(path.read_text()))
    jsonschema.validate({key: value for key, value in manifest.items() if key not in ("apiVersion", "kind")}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"spec": {**manifest["spec"], "entrypont": "x"}}, schema)


def strict(schema: Any) -> Any:
    """The schema as JSON Schema: Kubernetes' extensions are understood, and unknown fields refused, as it does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    keeps = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not keeps:
        made["additionalProperties"] = False
        if "metadata" in schema["properties"]:
            made["properties"]["metadata"] = {"type": "object"}
    if isinstance(schema.get("nullable"), bool):
        made.pop("nullable")
    return made


def test_a_night_is_scheduled_safely() -> None:
    (cron,) = (one["spec"] for one in documents() if one["kind"] == "CronJob")
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["startingDeadlineSeconds"] > 0
    assert cron["successfulJobsHistoryLimit"] > 0
    assert cron["failedJobsHistoryLimit"] > 0
    assert cron["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 0


def test_a_job_on_the_shared_cluster_is_not_tried_again_by_kuberay() -> None:
    """It would delete the cluster first."""
    jobs = [one["spec"] for one in documents() if one["kind"] == "RayJob"]
    assert len(jobs) == 2
    assert not [job for job in jobs if "clusterSelector" in job and job.get("backoffLimit")]


def pods() -> Iterator[dict[str, Any]]:
    for one in documents():
        if one["kind"] == "RayCluster":
            yield from (
                group["template"]["spec"]
                for group in (one["spec"]["headGroupSpec"], *one["spec"]["workerGroupSpecs"])
            )  # fmt: skip
        if one["kind"] == "CronJob":
            yield one["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_pods_have_least_rights_and_limits() -> None:
    found = list(pods())
    assert len(found) == 4
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["serviceAccountName"].startswith("hybrid")
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            assert re.search(r":v?\d", container["image"]), "a version, not latest"
    rules = {one["metadata"]["name"]: one["rules"] for one in documents() if one["kind"] == "Role"}
    assert rules["hybrid-nightly"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}]


def test_secrets_are_only_named() -> None:
    assert not [one for one in documents() if one["kind"] == "Secret"]
    (cluster,) = (one for one in documents() if one["kind"] == "RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    compose = (INFRA / "compose.yaml").read_text()
    for line in compose.splitlines():
        if re.match(r"\s+\w*(SECRET|PASSWORD|TOKEN)\w*:", line):
            assert re.search(r": \$\{\w+:\?write infra/\.env\}$", line), line


# ---- linters -----------------------------------------------------------------------------------------------------
def test_yaml_is_tidy() -> None:
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"
    command = [BIN / "yamllint", "--strict", "-d", rules, INFRA]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_is_sound() -> None:
    done = subprocess.run([BIN / "hadolint", INFRA / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = (INFRA / "Dockerfile").read_text()
    assert re.search(r"^USER (?!root|0)\w+$", text, re.MULTILINE)
    final = text.split("\nFROM ")[-1]
    assert "pip install" not in final


def test_the_image_is_built_of_pinned_versions_that_the_package_allows() -> None:
    pinned = dict(
        line.split("==") for line in (INFRA / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"]["s3"]):
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pinned, f"{name} is not pinned"
        assert pinned[name] in requirement.specifier
    assert f'"{pinned["ray"]}"' in (INFRA / "kubernetes" / "raycluster.yaml").read_text()


# ---- monitoring --------------------------------------------------------------------------------------------------
def test_the_dashboard_draws_metrics_that_exist_by_labels_that_they_have() -> None:
    dashboard = json.loads((INFRA / "grafana" / "hybrid.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    drawn = set()
    for query in queries:
        for name in re.findall(r"ray_(hybrid_\w+)_total", query):
            drawn.add(name)
            _, labels = metrics.COUNTERS[name]
            grouped = re.search(r"by \(([\w, ]+)\)", query)
            assert grouped is not None
            assert set(grouped[1].split(", ")) <= set(labels), query
    assert drawn == set(metrics.COUNTERS)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


# ---- commands ----------------------------------------------------------------------------------------------------
def commands() -> Iterator[tuple[str, str]]:
    """Every `hybrid …` that something in infra/ runs, and where."""
    for one in documents():
        if one["kind"] == "RayJob":
            yield one["metadata"]["generateName"], one["spec"]["entrypoint"]
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    loop = compose["services"]["nightly"]["command"][2]
    yield "compose", re.findall(r"hybrid [^;]*", loop)[0].replace("$$", "$")
    crontab = (INFRA / "crontab").read_text()
    yield "crontab", re.findall(r"^[\d* ]+ (hybrid .*)$", crontab, re.MULTILINE)[0].replace("\\%", "%")
    dag = ast.parse((INFRA / "airflow" / "hybrid_nightly.py").read_text())
    (command,) = (ast.literal_eval(node.value) for node in dag.body if isinstance(node, ast.Assign))
    yield "airflow", command


@pytest.mark.parametrize(("where", "command"), [pytest.param(*pair, id=pair[0]) for pair in commands()])
def test_commands_are_ones_that_the_package_has(where: str, command: str) -> None:
    words = _words(command.replace("{{ ds }}", "2026-01-31"))
    assert words[0] == "hybrid"
    own, verb = submit.split(words[2:]) if words[1] == "submit" else ([], words[1:])
    if words[1] == "submit":
        options = cli.parse(submit.SubmitOptions, own, "hybrid submit", "")
        assert re.fullmatch(r"nightly-\d{4}-\d\d-\d\d", options.submission_id)
        submit.check(verb)
    if verb[0] == "train":
        assert verb[1] in RECIPES
        return
    assert verb[0] == "nightly"
    chosen, rest = nightly.tasks(verb[1:])
    night = cli.parse(nightly.NightlyOptions, rest, "hybrid nightly", "")
    nightly.check(night, chosen)
    assert nightly.nights(night)


def _words(command: str) -> list[str]:
    """A command's words as a shell makes them."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return printed.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    ("now", "seconds"), [("00:00:00", 7200), ("01:59:59", 1), ("02:00:00", 86400), ("02:00:01", 86399), ("23:59", 7260)]
)
def test_compose_waits_until_the_next_two_o_clock(now: str, seconds: int) -> None:
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
    (wait,) = re.findall(r"sleep ([^;]*)", compose["services"]["nightly"]["command"][2])
    clock = f'date() {{ command date -u -d "2026-02-03 {now}" +%s; }}; echo {wait.replace("$$", "$")}'
    assert int(subprocess.run(["sh", "-c", clock], capture_output=True, text=True, check=True).stdout) == seconds
