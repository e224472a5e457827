"""What infra/ holds is checked as far as it can be without Docker and Kubernetes: schemas, linters, commands."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import psutil
import pytest
import s3fs
import yaml
from packaging.requirements import Requirement

from hybrid_models.errors import UsageError
from jobs import nightly, submit, tables, train
from jobs.command import cli
from jobs.recipes import RECIPES
from pipelines.cluster import counters
from pipelines.cluster.resources import Resources
from pipelines.models.registry import fetch_model
from pipelines.models.tracking import Tracker
from tests import tiny
from tests.servers import Server, free_ports

INFRA = tiny.ROOT / "infra"
MANIFESTS = sorted((INFRA / "kubernetes").glob("*.yaml"))
SCHEMAS = Path(os.environ.get("KUBERAY_SCHEMAS", tiny.ROOT.parent / "shared" / "data" / "kuberay"))
KUBERNETES = "1.33"
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())


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
    crons = [one["spec"] for one in documents() if one["kind"] == "CronJob"]
    assert len(crons) == 2
    for cron in crons:
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


def test_a_job_on_the_shared_cluster_ends_itself_before_kuberay_calls_it_failed() -> None:
    """Its deadline leaves the job running there (`checkActiveDeadlineAndUpdateStatusIfNeeded` of KubeRay 1.5.1)."""
    for job in (one["spec"] for one in documents() if one["kind"] == "RayJob"):
        bound = re.match(r"timeout (\d+)h hybrid ", job["entrypoint"])
        assert bound is not None
        assert 3600 * int(bound[1]) < job["activeDeadlineSeconds"] <= 3600 * int(bound[1]) + 600


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
    assert len(found) == 5
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


def test_workers_reach_the_store_mlflow_dns_and_each_other_and_nothing_else() -> None:
    (egress,) = (
        one["spec"]
        for one in documents()
        if one["kind"] == "NetworkPolicy" and "Egress" in one["spec"]["policyTypes"]
    )  # fmt: skip
    own = {"app.kubernetes.io/name": "hybrid"}
    assert egress["podSelector"] == {"matchLabels": {**own, "ray.io/node-type": "worker"}}, "KubeRay's label of workers"
    (cluster,) = (one["spec"] for one in documents() if one["kind"] == "RayCluster")
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == own
    (settings,) = (one["data"] for one in documents() if one["metadata"].get("name") == "hybrid-settings")
    mlflow, store = urlsplit(settings["MLFLOW_TRACKING_URI"]), urlsplit(settings["AWS_ENDPOINT_URL"])
    assert store.scheme == "https"

    def to(peer: dict[str, Any], *ports: tuple[str, int]) -> dict[str, Any]:
        rule: dict[str, Any] = {"to": [peer]}
        return {**rule, "ports": [{"protocol": kind, "port": port} for kind, port in ports]} if ports else rule

    def namespace(name: str) -> dict[str, Any]:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    dns = {**namespace("kube-system"), "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}
    assert egress["egress"] == [
        to({"podSelector": {"matchLabels": own}}),
        to(dns, ("UDP", 53), ("TCP", 53)),
        to({"ipBlock": {"cidr": "192.0.2.0/24"}}, ("TCP", store.port or 443)),
        to(namespace(str(mlflow.hostname).split(".")[1]), ("TCP", mlflow.port or 80)),
    ]


def images() -> Iterator[tuple[str, str]]:
    """Every image that something in infra/ names, and where."""
    dockerfile = (INFRA / "Dockerfile").read_text()
    for name in re.findall(r"^(?:FROM|# syntax=)\s*(\S+)", dockerfile, re.MULTILINE):
        yield "Dockerfile", name
    for service, settings in COMPOSE["services"].items():
        yield f"compose {service}", settings["image"]
    for pod in pods():
        yield from (("kubernetes", container["image"]) for container in pod["containers"])


def test_images_of_others_are_pinned_by_digest() -> None:
    found = [(where, name) for where, name in images() if not re.fullmatch(r"hybrid-pipelines(:[\d.]+)?", name)]
    assert len({name for _, name in found}) == 5
    for where, name in found:
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}", name), f"{where}: {name}"


def test_secrets_are_only_named() -> None:
    assert not [one for one in documents() if one["kind"] == "Secret"]
    (cluster,) = (one for one in documents() if one["kind"] == "RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    compose = (INFRA / "compose.yaml").read_text()
    for line in compose.splitlines():
        if re.match(r"\s+\w*(SECRET|PASSWORD|TOKEN)\w*:", line):
            assert re.search(r": \$\{\w+:\?write infra/\.env\}$", line), line


def test_the_decoding_jail_is_required_in_the_image_compose_and_kubernetes() -> None:
    assert "    HYBRID_JAIL=required \\\n" in (INFRA / "Dockerfile").read_text()
    assert COMPOSE["x-settings"]["HYBRID_JAIL"] == "${HYBRID_JAIL:-required}"
    (settings,) = (one for one in documents() if one["kind"] == "ConfigMap" and "AWS_REGION" in one["data"])
    assert settings["data"]["HYBRID_JAIL"] == "required"


# ---- Compose -----------------------------------------------------------------------------------------------------
def test_services_of_compose_have_no_rights_and_bounds() -> None:
    for name, service in COMPOSE["services"].items():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"] > 0, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert service["image"].startswith("hybrid-pipelines") or re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_networks_of_compose_keep_store_and_database_from_those_who_have_no_business_there() -> None:
    on: dict[str, set[str]] = {network: set() for network in COMPOSE["networks"]}
    for name, service in COMPOSE["services"].items():
        for network in service["networks"]:
            on[network].add(name)
    assert on["database"] == {"database", "mlflow"}
    assert on["store"] == {"s3", "bucket", "ray-head", "ray-worker", "backup"}
    closed = {name for name, network in COMPOSE["networks"].items() if network and network.get("internal")}
    assert closed == {"store", "database"}
    published = {name for name, service in COMPOSE["services"].items() if service.get("ports")}
    assert published <= on["cluster"], "Docker publishes no port of an internal network"


VALUES = {
    "MLFLOW_TRACKING_PASSWORD": "100%-of-twelve",
    "AWS_ACCESS_KEY_ID": "own",
    "AWS_SECRET_ACCESS_KEY": "own-secret",
}


class Service(Server):
    """A service of compose.yaml as a process: its command and environment, with this machine's ports and folders.

    Args:
        folder: for its data and its log.
        name: of the service.
        page: what its health check asks for, here.
        changes: texts of the command and the environment that are others here.
        entrypoint: that of its image.
        more: further words of the command.
    """

    def __init__(
        self, folder: Path, name: str, page: str, changes: Mapping[str, str],
        entrypoint: Sequence[str] = (), more: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(folder, name)
        self._entrypoint = entrypoint
        self._page = page
        self._changes = changes
        self._more = more
        self._service = COMPOSE["services"][name]
        self.settings = {key: self._here(value) for key, value in self._service["environment"].items()}  # type: ignore[misc]

    def _here(self, text: str) -> str:
        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: VALUES.get(found[1], "x" * 32), text)
        for old, new in self._changes.items():
            text = text.replace(old, new)
        return text.replace("$$", "$")

    def command(self) -> list[str]:
        """The service's own."""
        return [*self._entrypoint, *(self._here(word) for word in self._service["command"]), *self._more]

    def process(self) -> psutil.Process:
        """What runs."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def answers(self) -> bool:
        """Whether what its health check asks for is there."""
        return status(self._page) == 200


def status(url: str, method: str = "GET") -> int:
    """An anonymous request's answer; 0 without one."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_store_of_compose_answers_nobody_without_a_key(tmp_path: Path) -> None:
    s3, master, volume, filer = free_ports(4)
    outside = "127.0.0.2"
    here = {"-s3.port=8333": f"-s3.port={s3}", "/data": str(tmp_path), "0.0.0.0": outside}
    more = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    server = Service(tmp_path, "s3", f"http://{outside}:{s3}/healthz", here, [str(BIN / "weed")], more)
    server.start()
    endpoint = f"http://{outside}:{s3}"
    try:
        fs = s3fs.S3FileSystem(key="own", secret="own-secret", endpoint_url=endpoint, skip_instance_cache=True)
        retry(lambda: fs.makedirs("lake", exist_ok=True))
        retry(lambda: fs.pipe_file("lake/a", b"abc"))
        assert fs.cat_file("lake/a") == b"abc"
        for method, path in (("GET", ""), ("GET", "lake"), ("GET", "lake/a"), ("PUT", "lake/b"), ("DELETE", "lake/a")):
            assert status(f"{endpoint}/{path}", method) == 403, (method, path)
        stranger = s3fs.S3FileSystem(key="own", secret="guessed", endpoint_url=endpoint, skip_instance_cache=True)
        with pytest.raises(PermissionError):
            stranger.cat_file("lake/a")
        assert fs.find("lake") == ["lake/a"]
        listening = {each.laddr for each in server.process().net_connections() if each.status == psutil.CONN_LISTEN}
        assert {port for ip, port in listening if ip != "127.0.0.1"} == {s3, s3 + 10000}, "S3, and its gRPC"
        assert {("127.0.0.1", port) for port in (master, volume, filer)} <= listening
    finally:
        server.kill()


def retry(do: Callable[[], object], seconds: float = 120) -> None:
    """A store that has just started has no room yet."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            do()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def test_the_mlflow_of_compose_wants_a_password_and_models_are_registered_and_found_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    database = f"sqlite:///{tmp_path / '50%' / 'mlflow.db'}"
    (tmp_path / "50%").mkdir()
    server = Service(tmp_path, "mlflow", f"http://{address}/health", {
        f"postgresql+psycopg2://mlflow:{'x' * 32}@database/mlflow": database,
        "/tmp/": f"{tmp_path}/",
        "mlflow server": f"{sys.executable} -m mlflow server --workers=1",
        "0.0.0.0": "127.0.0.1",
        "--port=5000": f"--port={port}",
        "mlflow:5000,localhost:5000": address,
        "destination=/artifacts": f"destination={tmp_path}/artifacts",
    })  # fmt: skip
    server.start()
    try:
        uri = f"http://{address}"
        create = f"{uri}/api/2.0/mlflow/experiments/create"
        assert [status(f"{uri}/"), status(create, "POST")] == [401, 401]
        assert status(f"{uri}/api/2.0/mlflow-artifacts/artifacts") == 401
        refused = Tracker(uri)
        assert refused.start("night", {}, {}) is None, "without a password it goes on without MLflow"
        with pytest.raises(UsageError, match=r"set MLFLOW_TRACKING_USERNAME and .* --env-values`$"):
            fetch_model("models:/translator@challenger", tmp_path / "none", uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "hybrid")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", VALUES["MLFLOW_TRACKING_PASSWORD"])
        tracker = Tracker(uri)
        assert tracker.start("night", {"beam_size": 3}, {}) is not None
        tracker.log_metrics({"rows": 3.0})
        tiny.write_translator(str(tmp_path / "artifact"))
        files = {path.name: path.read_bytes() for path in (tmp_path / "artifact").iterdir()}
        assert tracker.register("translator", files) == "1"
        _, name, version = fetch_model("models:/translator@challenger", tmp_path / "fetched", uri)
        assert (name, version) == ("models:/translator/1", "1")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed-password")
        with pytest.raises(UsageError, match="cannot get models:/translator@challenger"):
            fetch_model("models:/translator@challenger", tmp_path / "again", uri)
    finally:
        server.kill()
    assert "mlflow" in Path(tmp_path, "basic_auth.ini").read_text()
    assert Path(tmp_path, "basic_auth.ini").stat().st_mode & 0o077 == 0, "it may hold the database's password"


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
    lock = (tiny.ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, re.MULTILINE))
    assert "+" not in "".join(pinned.values()), "public versions only"
    assert "://" not in lock, "no index's address"
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *chain(*project["optional-dependencies"].values())):
        requirement = Requirement(text)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pinned, f"{name} is not pinned"
        assert pinned[name] in requirement.specifier
    assert f'"{pinned["ray"]}"' in (INFRA / "kubernetes" / "raycluster.yaml").read_text()


def test_the_image_has_the_driver_that_mlflows_database_is_named_with() -> None:
    uri = COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert uri.startswith("postgresql+psycopg2://"), "without a driver SQLAlchemy 2.1 wants psycopg 3"
    extras = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {Requirement(text).name for text in extras["image"]} == {"flask-wtf", "psycopg2-binary"}
    assert '".[s3,image]"' in (INFRA / "Dockerfile").read_text()


# ---- monitoring --------------------------------------------------------------------------------------------------
def test_the_dashboard_draws_metrics_that_exist_by_labels_that_they_have() -> None:
    dashboard = json.loads((INFRA / "grafana" / "hybrid.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    drawn = set()
    for query in queries:
        for name in re.findall(r"ray_(hybrid_\w+)_total", query):
            drawn.add(name)
            _, labels = counters.COUNTERS[name]
            grouped = re.search(r"by \(([\w, ]+)\)", query)
            assert grouped is not None
            assert set(grouped[1].split(", ")) <= set(labels), query
        for name in re.findall(r"ray_(hybrid_\w+)\{", query):
            if not name.endswith("_total"):
                drawn.add(name)
                by = re.search(r"(?:sum|avg) by \(([^)]*)\)", query)[1].split(", ")
                assert set(by) <= set(counters.GAUGES[name][1]), query
    assert drawn == {*counters.COUNTERS, *counters.GAUGES}
    stats = [target for panel in dashboard["panels"] if panel["type"] == "stat" for target in panel["targets"]]
    assert all(target["instant"] and not target["range"] for target in stats), "not the last value of a whole day"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_a_backup_keeps_objects_on_disk_and_goes_back_to_an_empty_database_alone(tmp_path: Path) -> None:
    backup = COMPOSE["services"]["backup"]
    assert "/tmp" in backup["volumes"]
    assert not any(str(place).startswith("/tmp") for place in backup["tmpfs"])
    docker, calls = tmp_path / "docker", tmp_path / "calls"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncase "$*" in *psql*) echo 7;; esac\n')
    docker.chmod(0o755)
    told = subprocess.run(
        ["sh", str(INFRA / "backup.sh"), "restore", str(tmp_path)],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (told.returncode, "the database has tables already" in told.stderr) == (2, True)
    assert "run --rm" not in calls.read_text()


def test_airflow_does_no_night_again_that_has_rows() -> None:
    dag = (INFRA / "airflow" / "hybrid_nightly.py").read_text()
    assert dag.count("catchup=False") == dag.count("with DAG(") == 2
    assert "--catch-up 7" in dag


# ---- commands ----------------------------------------------------------------------------------------------------
def commands() -> Iterator[tuple[str, str]]:
    """Every `hybrid …` that something in infra/ runs, and where."""
    for one in documents():
        if one["kind"] == "RayJob":
            yield one["metadata"]["generateName"], re.sub(r"^timeout \d+h ", "", one["spec"]["entrypoint"])
        if one["metadata"].get("name") == "hybrid-tidy":
            (container,) = one["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
            yield "tidy", shlex.join(container["args"])
    loop = COMPOSE["services"]["nightly"]["command"][2]
    crontab = (INFRA / "crontab").read_text()
    for number in (0, 1):
        yield f"compose{number}", re.findall(r"hybrid [^;]*", loop)[number].replace("$$", "$")
        line = re.findall(r"^[\d* ]+ (hybrid .*)$", crontab, re.MULTILINE)[number]
        yield f"crontab{number}", line.replace("\\%", "%")
    dag = ast.parse((INFRA / "airflow" / "hybrid_nightly.py").read_text())
    for number, node in enumerate(node for node in dag.body if isinstance(node, ast.Assign)):
        yield f"airflow{number}", ast.literal_eval(node.value)


@pytest.mark.parametrize(("where", "command"), [pytest.param(*pair, id=pair[0]) for pair in commands()])
def test_commands_are_ones_that_the_package_has(where: str, command: str) -> None:
    words = _words(command.replace("{{ ds }}", "2026-01-31"))
    assert words[0] == "hybrid"
    own, verb = submit.split(words[2:]) if words[1] == "submit" else ([], words[1:])
    if words[1] == "submit":
        options = cli.parse(submit.SubmitOptions, own, "hybrid submit", "")
        assert re.fullmatch(r"(nightly|tidy)-\d{4}-\d\d-\d\d", options.submission_id)
        submit.check(verb)
    if verb[0] == "train":
        recipe, asked = RECIPES[verb[1]](), train.parse(verb[1], verb[2:])
        assert asked.gpu == "yes"
        assert train.workers(asked.num_workers) == (1, gpus())
        assert asked.resources.max_actors == gpus()
        assert asked.train.batch_size >= gpus() * recipe.model.least_share
        return
    if verb[0] == "tables":
        assert verb[1] == "tidy"
        cli.parse(tables.TidyOptions, verb[2:], "hybrid tables tidy", "").retention.check()
        return
    assert verb[0] == "nightly"
    chosen, rest = nightly.tasks(verb[1:])
    night = cli.parse(nightly.NightlyOptions, rest, "hybrid nightly", "")
    nightly.check(night, chosen)
    assert nightly.nights(night)
    resources = night.night.work.resources
    if where.startswith(("compose", "crontab")):
        assert resources == Resources(), "whatever GPUs there are; none come"
    else:
        assert resources == Resources(gpu="yes", max_actors=gpus()), "as many processes as GPUs that can come"


def gpus() -> int:
    """How many may come to the cluster of the manifests, which has none at first."""
    (cluster,) = (one["spec"] for one in documents() if one["kind"] == "RayCluster")
    (group,) = (group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert (group["replicas"], group["minReplicas"], cluster["enableInTreeAutoscaling"]) == (0, 0, True)
    (container,) = group["template"]["spec"]["containers"]
    return group["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"])  # type: ignore[no-any-return]


def _words(command: str) -> list[str]:
    """A command's words as a shell makes them."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return printed.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    ("now", "seconds"), [("00:00:00", 7200), ("01:59:59", 1), ("02:00:00", 86400), ("02:00:01", 86399), ("23:59", 7260)]
)
def test_compose_waits_until_the_next_two_o_clock(now: str, seconds: int) -> None:
    (wait,) = re.findall(r"sleep ([^;]*)", COMPOSE["services"]["nightly"]["command"][2])
    clock = f'date() {{ command date -u -d "2026-02-03 {now}" +%s; }}; echo {wait.replace("$$", "$")}'
    assert int(subprocess.run(["sh", "-c", clock], capture_output=True, text=True, check=True).stdout) == seconds
