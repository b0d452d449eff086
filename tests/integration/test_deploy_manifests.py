"""deploy/kubernetes fits its schemas, the server, and itself. None of it was run on a cluster here: see docs/deploy.md."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml
from manifests import (
    COMMAND,
    DEPLOY,
    DOCKERFILE,
    ROOTS,
    SERVERS,
    SERVICES,
    SUPERVISOR_PATIENCE,
    Pod,
    accepts,
    compose,
    compose_environment,
    environment,
    named,
    objects,
    pods,
    server,
)
from places import ROOT
from typer.main import get_command

import engine.__main__
import search_jobs.__main__
from deploy import check
from deploy.kubernetes.rules import FILE, prometheus_rule
from server import config

PORT = int(COMMAND[COMMAND.index("--port") + 1])
ROUTES = set(re.findall(r'"(/\w+)"', (ROOT / "server" / "http" / "probes.py").read_text()))  # importing it imports torch
EVERY_POD = [pytest.param(root, pod, id=pod.owner) for root in ROOTS for pod in pods(root)]


KINDS = ["Deployment", "NetworkPolicy", "PodMonitor", "PrometheusRule", "ScaledObject", "AnalysisTemplate", "Rollout"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_notices_a_field_that_there_is_not(kind):
    document = next(one for one in objects("overlays/gpu-canary") if one["kind"] == kind)
    assert not list(check.faults_of(document))
    wrong = copy.deepcopy(document)
    wrong["spec"]["tpyo"] = {}
    assert any("tpyo" in fault for fault in check.faults_of(wrong))


def test_the_check_notices_a_kind_without_a_schema():
    assert any("no schema" in fault for fault in check.faults_of({"apiVersion": "example.com/v1", "kind": "Nonsense"}))


@pytest.mark.parametrize("root", SERVERS)
def test_a_server_of_an_overlay_accepts_its_settings_and_ends_them_before_its_pod_is_killed(root, monkeypatch):
    pod = server(root)
    settings = accepts(monkeypatch, environment(root, pod))
    unhurried = pod.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod.spec["terminationGracePeriodSeconds"] > unhurried + settings.drain_seconds + SUPERVISOR_PATIENCE
    assert settings.api_keys is not None
    assert not settings.allow_anonymous


@pytest.mark.parametrize(("root", "pod"), EVERY_POD)
def test_every_variable_is_a_setting(root: str, pod: Pod):
    names = {name for name in environment(root, pod) if name.startswith("FLEXI_")}
    assert {name.removeprefix("FLEXI_").lower() for name in names} <= config.Settings.model_fields.keys()


@pytest.mark.parametrize("root", SERVERS)
def test_probes_ask_routes_of_the_server_on_its_own_port(root):
    container = server(root).container
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in asked.items()} == {
        "startup": "/readyz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert {probe["path"] for probe in asked.values()} <= ROUTES
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    assert {probe["port"] for probe in asked.values()} == {"http"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert named(root, "Service")["spec"]["ports"][0]["targetPort"] == "http"
    assert f"EXPOSE {PORT}" in DOCKERFILE


def test_every_server_is_run_by_the_images_own_command():
    assert COMMAND[:3] == ["bentoml", "serve", "server.service:Flexiffusion"]
    for given in [server(root).container for root in SERVERS] + [compose()["services"][name] for name in SERVICES]:
        assert not {"command", "args", "entrypoint"} & given.keys()


@pytest.mark.parametrize(("root", "pod"), EVERY_POD)
def test_no_container_is_root_or_can_write_to_its_image(root: str, pod: Pod):
    assert not pod.spec.get("initContainers")
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert pod.spec["securityContext"]["runAsNonRoot"]
    assert pod.spec["securityContext"]["runAsUser"] == int(user)
    assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod.container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod.spec["automountServiceAccountToken"]
    assert not pod.spec["enableServiceLinks"]  # FLEXIFFUSION_PORT is no setting, but a service named flexi would make one
    assert {"requests", "limits"} <= pod.container["resources"].keys()


def test_images_are_pinned_and_those_of_cuda_say_so():
    images = [pod.container["image"] for root in ROOTS for pod in pods(root)]
    images += [service["image"] for service in compose()["services"].values()]
    assert all(re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", image) for image in images), images
    for service in compose()["services"].values():
        if "build" in service:
            build = service["build"]["args"]["CUDA"]
            assert service["image"].endswith({"cpu": ":0.1.0"}.get(build, f":0.1.0-{build}"))
    for root in ROOTS:
        for pod in pods(root):
            wants_gpu = environment(root, pod).get("FLEXI_DEVICE") == "cuda"
            assert ("nvidia.com/gpu" in pod.container["resources"]["limits"]) >= wants_gpu
            assert ("-cu" in pod.container["image"]) >= wants_gpu


def test_no_secret_is_written_down():
    secret = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY")
    for root in ROOTS:
        assert not [one for one in objects(root) if one["kind"] == "Secret"]
        for pod in pods(root):
            assert not [name for name in environment(root, pod) if secret.search(name)]
    for service in compose()["services"].values():
        for name, value in compose_environment(service).items():
            assert not secret.search(name) or value.startswith("${" + name + ":?"), name
    assert re.search(r"^AWS_SECRET_ACCESS_KEY=$", (DEPLOY / ".env.example").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("root", "pod"), EVERY_POD)
def test_what_a_pod_mounts_is_there(root: str, pod: Pod):
    claims = {one["metadata"]["name"] for one in objects(root) if one["kind"] == "PersistentVolumeClaim"}
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    assert {
        volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if "persistentVolumeClaim" in volume
    } <= claims
    mounts = {mount["mountPath"]: mount for mount in pod.container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == volumes.keys()
    values = environment(root, pod)
    for name, writable in (("FLEXI_STATE", True), ("FLEXI_COMPILE_CACHE", True), ("FLEXI_TRUSTED_KEYS", False)):
        if name in values and (name != "FLEXI_STATE" or pod.container["name"] == "server"):
            assert mounts[values[name]].get("readOnly", False) is not writable
    if values.get("FLEXI_MODEL", "").startswith("/"):
        assert mounts["/models"]["readOnly"]
    assert "/tmp" in mounts


@pytest.mark.parametrize("root", ROOTS)
def test_selectors_select_pods(root):
    labels = [pod.labels for pod in pods(root)]
    for one in objects(root):
        spec = one.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        wanted = selector.get("matchLabels", {} if "matchLabels" in selector else selector)
        assert not wanted or any(wanted.items() <= those.items() for those in labels), one["metadata"]["name"]


def options(container: dict[str, Any]) -> tuple[list[str], list[str]]:
    """A container's Python module with its command; the names of the options that follow."""
    words = [*container["command"], *container.get("args", [])]
    assert words[:2] == ["python", "-m"]
    return words[2:4], [word.split("=")[0] for word in words[4:]]


@pytest.mark.parametrize("root", ["warm", "search/one", "search/dask"])
def test_jobs_give_options_that_their_commands_have_and_variables_that_are_set(root):
    job = next(pod for pod in pods(root) if pod.container["name"] in ("warm", "search"))
    (module, command), given = options(job.container)
    app = {"engine": engine.__main__.app, "search_jobs": search_jobs.__main__.app}[module]
    known = {option for parameter in get_command(app).commands[command].params for option in parameter.opts}
    assert set(given) <= known
    for word in job.container["args"]:
        assert set(re.findall(r"\$\((\w+)\)", word)) <= environment(root, job).keys()


def test_the_warm_up_compiles_for_the_servers_settings():
    (warm,) = pods("warm")
    assert (
        named("warm", "ConfigMap")["metadata"]["name"]
        == named("overlays/gpu", "ConfigMap", "flexiffusion-settings")["metadata"]["name"]
    )
    assert warm.container["image"] == server("overlays/gpu").container["image"]
    cache = environment("warm", warm)["FLEXI_COMPILE_CACHE"]
    assert f"--cache={cache}" in [word.replace("$(FLEXI_COMPILE_CACHE)", cache) for word in warm.container["args"]]
    parameters = get_command(engine.__main__.app).commands["warm"].params
    settings = {f"{one.opts[0]}=$({name})" for one in parameters for name in re.findall(r"As the server's (\w+)", one.help)}
    assert settings
    assert settings <= {*warm.container["args"]}


def test_dask_workers_and_the_search_find_the_scheduler():
    service = named("search/dask", "Service")
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    by_name = {pod.container["name"]: pod.container for pod in pods("search/dask")}
    assert f"--scheduler={address}" in by_name["search"]["args"]
    assert address in by_name["worker"]["command"]
    assert f"--port={by_name['scheduler']['ports'][0]['containerPort']}" in by_name["scheduler"]["command"]
    assert by_name["worker"]["image"] == by_name["search"]["image"] == by_name["scheduler"]["image"]
    paths = ("/models", "/runs")
    for path in paths:
        claims = [
            mount["name"]
            for name in ("search", "worker")
            for mount in by_name[name]["volumeMounts"]
            if mount["mountPath"] == path
        ]
        assert len(claims) == 2


def test_the_operators_rules_are_prometheus_own():
    assert yaml.safe_load(FILE.read_text()) == prometheus_rule(), "run python -m deploy.kubernetes.rules"
    assert named("overlays/gpu", "PrometheusRule")["spec"] == prometheus_rule()["spec"]


def test_all_three_ways_to_scrape_are_one():
    plain, composed = (
        yaml.safe_load((DEPLOY / f).read_text()) for f in ("prometheus/prometheus.yml", "compose/prometheus.yml")
    )
    ((target,),) = [one.pop("targets") for one in composed["scrape_configs"][0]["static_configs"]]
    plain["scrape_configs"][0]["static_configs"] = [{}]
    assert plain == composed
    host, port = target.split(":")
    assert int(port) == PORT
    assert all(host in compose()["services"][name]["networks"]["watch"]["aliases"] for name in SERVICES)
    (job,) = plain["scrape_configs"]
    monitor = named("overlays/gpu", "PodMonitor")["spec"]
    assert server("overlays/gpu").labels[monitor["jobLabel"]] == job["job_name"]
    assert monitor["sampleLimit"] == job["sample_limit"]
    assert monitor["podMetricsEndpoints"] == [
        {"port": "http", "path": job["metrics_path"], "interval": plain["global"]["scrape_interval"]}
    ]


@pytest.mark.parametrize("kind", ["PodMonitor", "PrometheusRule"])
def test_the_operator_selects_what_is_for_it(kind):
    """kube-prometheus-stack takes what has the name of its Helm release as a label, and nothing else, unless told otherwise."""
    assert named("overlays/gpu", kind)["metadata"]["labels"] == {"release": "kube-prometheus-stack"}
    assert "release" not in named("overlays/gpu", "Deployment")["metadata"].get("labels", {})


def test_a_release_is_judged_by_every_alert_that_wakes_somebody_but_those_of_starting_and_ending():
    alerts = {
        rule["alert"]: rule for group in prometheus_rule()["spec"]["groups"] for rule in group["rules"] if "alert" in rule
    }
    queries = check.queries(objects("overlays/gpu-canary"))
    (names,) = [found for query in queries for found in re.findall(r'alertname=~"Flexi\((.+?)\)"', query)]
    wake = {name for name, rule in alerts.items() if rule["labels"]["severity"] == "page"}
    assert {f"Flexi{name}" for name in names.split("|")} == wake - {"FlexiTargetDown", "FlexiNoServers", "FlexiEngineNotReady"}


def test_servers_are_scaled_before_they_refuse(monkeypatch):
    (trigger,) = named("overlays/gpu", "ScaledObject")["spec"]["triggers"]
    settings = accepts(monkeypatch, environment("overlays/gpu", server("overlays/gpu")))
    assert float(trigger["metadata"]["threshold"]) < settings.max_queue_seconds
    assert "flexi_queue_seconds" in trigger["metadata"]["query"]
    assert trigger["metadata"]["ignoreNullValues"] == "false", "or no figures are no load, and the fallback never counts"
    target = named("overlays/gpu-canary", "ScaledObject")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "flexiffusion"}
    for root in SERVERS:
        assert "replicas" not in named(root, "Deployment")["spec"]
