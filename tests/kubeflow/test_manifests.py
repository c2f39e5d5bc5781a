"""The manifests: taken by Kubernetes, right for the job. And the image's Dockerfile, as text."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from espalier import Config, ConfigError, cpu
from espalier.cli import app
from espalier.kubeflow.manifests import SERVING_VERSION, needs, render, write

ROOT = Path(__file__).parents[2]
CRDS = json.loads(Path(__file__).with_name("crds.json").read_text(encoding="utf-8"))
KUBERNETES = ("1.28", kubernetes_validate.latest_version())  # gRPC probes are stable from 1.27
BUCKET, VOLUME = "gs://bucket/models/reviews", "/mnt/models/reviews"
# What changes which files there are, and what stands in them.
JOBS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "volume": ({"push": {"to": VOLUME}}, {}),
    "bucket": ({"push": {"to": BUCKET}}, {"canary": 10, "namespace": "ml", "replicas": 3}),
    "s3": ({"push": {"to": "s3://bucket/models/reviews"}}, {"canary": 0}),
    "int8": ({"push": {"to": BUCKET}, "export": {"cpu": "int8"}}, {}),
    "auto": (
        {"push": {"to": VOLUME}, "export": {"cpu": "auto"}},
        {"image": "r.example:5000/e@sha256:0"},
    ),
    "gpu": (
        {
            "push": {"to": BUCKET},
            "cluster": {
                "image": "me/espalier:1",
                "resources": {
                    "Trainer": {
                        "cpu": 8,
                        "memory": "32Gi",
                        "accelerator": {"type": "nvidia.com/gpu", "count": 2},
                    }
                },
            },
        },
        {},
    ),
}


def config(**changed: Any) -> Config:
    sections: dict[str, Any] = {
        "name": "reviews",
        "data": {"csv": "reviews.csv", "text": "text", "label": "label"},
        "model": {"family": "bert", "start": "tiny"},
    }
    return Config(**(sections | changed))


def documents(files: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, text in files.items():
        for document in yaml.safe_load_all(text):
            yield name, document


def one(files: dict[str, str], kind: str) -> dict[str, Any]:
    """The first object of a kind."""
    return next(found for _, found in documents(files) if found["kind"] == kind)


def model_server(files: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod of the Deployment, and its container."""
    pod = one(files, "Deployment")["spec"]["template"]["spec"]
    assert len(pod["containers"]) == 1
    return pod, pod["containers"][0]


def probed(files: dict[str, str]) -> set[str]:
    container = model_server(files)[1]
    return {container[f"{when}Probe"]["httpGet"]["path"] for when in ("startup", "readiness")}


@pytest.fixture(params=JOBS)
def files(request: pytest.FixtureRequest) -> dict[str, str]:
    sections, options = JOBS[request.param]
    return render(config(**sections), **options)


# --- Kubernetes takes them ----------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(files: dict[str, str], version: str) -> None:
    checked = 0
    for _, document in documents(files):
        if document["kind"] not in ("Kustomization", *CRDS):
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked == {12: 10, 11: 9, 2: 0}[len(files)]


def test_kserve_and_the_training_operator_take_theirs(files: dict[str, str]) -> None:
    checked = []
    for _, document in documents(files):
        if document["kind"] in CRDS:
            jsonschema.Draft202012Validator(CRDS[document["kind"]]).validate(document)
            checked.append(document["kind"])
    assert checked in (["InferenceService", "TFJob"], ["InferenceService"])


def test_the_schemas_refuse_what_is_not_theirs() -> None:
    service = one(render(config(push={"to": BUCKET})), "InferenceService")
    service["spec"]["predictor"]["model"]["storageURI"] = BUCKET
    with pytest.raises(jsonschema.ValidationError, match="storageURI"):
        jsonschema.Draft202012Validator(CRDS["InferenceService"]).validate(service)


def test_a_kustomization_names_its_folder(files: dict[str, str]) -> None:
    for name, document in documents(files):
        if document["kind"] == "Kustomization":
            folder = Path(name).parent
            beside = {Path(one).name for one in files if Path(one).parent == folder}
            assert {*document["resources"], "kustomization.yaml"} == beside


def test_nothing_is_left_unfilled(files: dict[str, str]) -> None:
    for name, text in files.items():
        assert "{{" not in text and "{%" not in text, name
        assert text.endswith("\n") and "\n\n" not in text, name


# --- They are right for the job -----------------------------------------------------------


def test_the_model_server_is_told_which_model_and_where() -> None:
    files = render(config(push={"to": VOLUME}))
    pod, container = model_server(files)
    assert container["image"] == f"tensorflow/serving:{SERVING_VERSION}"
    assert "--model_name=reviews" in container["args"]
    assert f"--model_base_path={VOLUME}" in container["args"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["models"] == {"name": "models", "mountPath": "/mnt/models", "readOnly": True}
    claims = [v["persistentVolumeClaim"] for v in pod["volumes"] if v["name"] == "models"]
    assert claims == [{"claimName": "reviews-models", "readOnly": True}]
    assert one(files, "PersistentVolumeClaim")["metadata"]["name"] == "reviews-models"
    model = one(files, "InferenceService")["spec"]["predictor"]["model"]
    assert model["storageUri"] == "pvc://reviews-models/reviews"


def test_a_bucket_needs_no_volume() -> None:
    files = render(config(push={"to": BUCKET + "/"}))
    pod, container = model_server(files)
    assert f"--model_base_path={BUCKET}" in container["args"]
    assert {volume["name"] for volume in pod["volumes"]} == {"settings", "tmp"}
    assert "serving/volume.yaml" not in files
    assert one(files, "InferenceService")["spec"]["predictor"]["model"]["storageUri"] == BUCKET


def test_s3_is_for_kserve_alone() -> None:
    files = render(config(push={"to": "s3://bucket/reviews"}))
    assert sorted(files) == ["kserve/inference-service.yaml", "kserve/kustomization.yaml"]


def test_the_version_served_by_is_the_one_exported_with() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"tensorflow-serving-api=={SERVING_VERSION}"' in text


def test_probes_ask_for_what_only_a_loaded_model_answers() -> None:
    # /v1/models/NAME itself is 200 with a version that failed (http_rest_api_handler.cc).
    files = render(config(push={"to": VOLUME}))
    assert probed(files) == {"/v1/models/reviews/metadata"}
    container = model_server(files)[1]
    assert container["livenessProbe"]["grpc"] == {"port": 8500, "service": "PredictionService"}
    assert "--enable_grpc_healthcheck_service=true" in container["args"]


def test_prometheus_finds_the_page_that_the_server_opens() -> None:
    files = render(config(push={"to": VOLUME}))
    told = one(files, "Deployment")["spec"]["template"]["metadata"]["annotations"]
    settings = one(files, "ConfigMap")["data"]
    assert told["prometheus.io/path"] in settings["monitoring.config"]
    container = model_server(files)[1]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    flags = dict(flag.lstrip("-").split("=", 1) for flag in container["args"])
    assert str(Path(flags["monitoring_config_file"]).parent) in mounted
    assert Path(flags["monitoring_config_file"]).name in settings
    assert told["prometheus.io/port"] == flags["rest_api_port"]


def test_the_servers_own_settings_can_be_read(tmp_path: Path) -> None:
    from espalier.serving import config_files

    settings = one(render(config(push={"to": VOLUME})), "ConfigMap")["data"]
    for name, text in settings.items():
        (tmp_path / name).write_text(text)
    path = config_files.monitoring_path(tmp_path / "monitoring.config", "/else")
    assert path == "/monitoring/prometheus/metrics"
    assert config_files.batching(tmp_path / "batching.config").max_batch_size == 32


def test_the_model_server_may_do_little() -> None:
    pod, container = model_server(render(config(push={"to": VOLUME})))
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_services_find_the_pods_and_one_of_them_is_headless() -> None:
    files = render(config(push={"to": VOLUME}))
    labels = one(files, "Deployment")["spec"]["template"]["metadata"]["labels"]
    services = {
        d["metadata"]["name"]: d["spec"] for _, d in documents(files) if d["kind"] == "Service"
    }
    assert services["reviews-grpc"]["clusterIP"] == "None"
    assert {port["port"] for port in services["reviews"]["ports"]} == {8500, 8501}
    for selector in (
        *(service["selector"] for service in services.values()),
        one(files, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(files, "Deployment")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def test_replicas_canary_and_namespace_go_where_they_belong() -> None:
    files = render(config(push={"to": BUCKET}), canary=10, namespace="ml", replicas=3)
    scaler = one(files, "HorizontalPodAutoscaler")["spec"]
    predictor = one(files, "InferenceService")["spec"]["predictor"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 12)
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (3, 12)
    assert predictor["canaryTrafficPercent"] == 10
    spaces = [d["namespace"] for _, d in documents(files) if d["kind"] == "Kustomization"]
    assert spaces == ["ml", "ml", "ml"]
    plain = render(config(push={"to": BUCKET}))
    assert "canaryTrafficPercent" not in one(plain, "InferenceService")["spec"]["predictor"]
    assert "namespace" not in one(plain, "Kustomization")


def test_workers_train_together_if_the_job_says_so() -> None:
    many = config(push={"to": VOLUME}, train={"distribute": "multi_worker"})
    for workers, replicas in ((None, 2), (5, 5)):
        job = one(render(many, workers=workers), "TFJob")["spec"]
        assert job["tfReplicaSpecs"]["Worker"]["replicas"] == replicas
        assert job["runPolicy"]["cleanPodPolicy"] == "Running"


def test_training_runs_the_same_job_in_our_image() -> None:
    job = config(push={"to": VOLUME}, cluster={"image": "me/espalier:1"})
    files = render(job)
    worker = one(files, "TFJob")["spec"]["tfReplicaSpecs"]["Worker"]
    container = worker["template"]["spec"]["containers"][0]
    assert worker["replicas"] == 1  # several would each do the whole work
    assert (container["name"], container["image"]) == ("tensorflow", "me/espalier:1")
    assert container["workingDir"] == "/mnt/models"
    inside = yaml.safe_load(files["training/config.yaml"])["data"]["config.yaml"]
    assert inside == job.to_yaml()
    assert (
        one(render(job, image="other:2"), "TFJob")["spec"]["tfReplicaSpecs"]["Worker"]["template"][
            "spec"
        ]["containers"][0]["image"]
        == "other:2"
    )


def test_training_asks_for_what_the_trainer_asks_for() -> None:
    sections, _ = JOBS["gpu"]
    worker = one(render(config(**sections)), "TFJob")["spec"]["tfReplicaSpecs"]["Worker"]
    asked = worker["template"]["spec"]["containers"][0]["resources"]
    assert asked["limits"] == {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "2"}


# --- Which CPUs ---------------------------------------------------------------------------

BF16 = "feature.node.kubernetes.io/cpu-cpuid.AVX512BF16"
VNNI = "feature.node.kubernetes.io/cpu-cpuid.AVX512VNNI"


@pytest.mark.parametrize(
    ("exported", "labels"), [("any", []), ("bf16", [BF16]), ("int8", [VNNI, BF16])]
)
def test_an_export_for_some_cpus_goes_to_nodes_with_those(exported: str, labels: list[str]) -> None:
    files = render(config(push={"to": BUCKET}, export={"cpu": exported}))
    pod, container = model_server(files)
    if not labels:
        assert "affinity" not in pod and "env" not in container
        return
    for spec in (pod, one(files, "InferenceService")["spec"]["predictor"]):
        terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        asked = terms["nodeSelectorTerms"][0]["matchExpressions"]
        assert asked == [{"key": key, "operator": "In", "values": ["true"]} for key in labels]
    assert container["env"] == [{"name": "TF_ENABLE_ONEDNN_OPTS", "value": "1"}]


def test_what_auto_chose_is_only_guessed_until_it_is_seen() -> None:
    pod, _ = model_server(render(config(push={"to": BUCKET}, export={"cpu": "auto"})))
    assert list(pod["affinity"]["nodeAffinity"]) == [
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]


def test_a_version_that_can_be_seen_says_what_it_needs(tmp_path: Path) -> None:
    version = tmp_path / "models" / "reviews" / "17"
    (version / "assets.extra").mkdir(parents=True)
    (version / "saved_model.pb").touch()
    facts = {"graph": {"cpu": "bf16", "needs": [cpu.BFLOAT16]}}
    (version / "assets.extra" / "espalier.json").write_text(json.dumps(facts))
    found = needs(config(push={"to": str(version.parent)}))
    assert (found.labels, found.certain) == ([BF16], True)
    assert found.reason == "Version 17 was made for CPUs with bfloat16 products."
    assert needs(config(push={"to": BUCKET}, export={"cpu": "any"})).labels == []


# --- What cannot be used, in one sentence -------------------------------------------------


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("models/reviews", "a cluster's pods cannot see.*gs://BUCKET/reviews or s3://.*absolute"),
        ("./models", "cannot see"),
        ("/models/../reviews", "cannot see"),
        ("/models/the reviews", "without blanks"),
        ("gs://bucket", "cannot see"),
        ("minio://bucket/reviews", "cannot see"),
        ("/models", "cannot be mounted at /.*/models/reviews"),
    ],
)
def test_a_place_that_pods_cannot_see(to: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^push.to is {re.escape(to)}.*{said}"):
        render(config(push={"to": to}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"canary": 101}, "--canary is 101. Expected .* from 0 to 100"),
        ({"canary": -1}, "--canary is -1"),
        ({"replicas": 0}, "--replicas is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"workers": 2}, "--workers is 2, and train.distribute is auto"),
        ({"namespace": "My_Space"}, "--namespace is My_Space. Expected at most 63"),
        ({"image": 'x"\ny: z'}, "--image is"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        render(config(push={"to": BUCKET}), **options)
    assert len(str(raised.value).splitlines()) == 1


def test_a_canary_on_a_volume_would_be_none() -> None:
    with pytest.raises(ConfigError, match="--canary needs a bucket in push.to"):
        render(config(push={"to": VOLUME}), canary=10)


@pytest.mark.parametrize("name", ["a" * 51, "reviews-"])
def test_names_that_a_cluster_does_not_take(name: str) -> None:
    with pytest.raises(ConfigError, match="at most 50 characters, the last a letter or a digit"):
        render(config(name=name, push={"to": BUCKET}))


# --- The command --------------------------------------------------------------------------


def test_the_whole_command_line_is_cheap_to_import() -> None:
    code = (
        "import sys, espalier.cli;"
        "early = {'tensorflow', 'tfx', 'kfp', 'pydantic', 'jinja2'} & set(sys.modules);"
        "sys.exit(', '.join(early) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"imported too early: {done.stderr}"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.yaml"
    path.write_text(config(push={"to": VOLUME}).to_yaml(), encoding="utf-8")
    return path


def test_the_command_writes_a_folder_and_says_what_is_next(job: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    done = CliRunner().invoke(app, ["manifests", str(job), "-o", str(folder), "--namespace", "ml"])
    assert done.exit_code == 0, done.output
    assert f"next: kubectl apply -k {folder / 'serving'}" in done.output.replace("\n", "")
    written = {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}
    assert written == set(render(config(push={"to": VOLUME})))
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_the_command_leaves_what_is_there(job: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = CliRunner().invoke(app, ["manifests", str(job), "-o", str(tmp_path / "mine")])
    assert done.exit_code == 2
    assert "exists already, and is left as it is" in " ".join(done.output.split())
    assert list((tmp_path / "mine").iterdir()) == []


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write({"a/one.yaml": "1\n", "b/c/two.yaml": "2\n"}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_laptops_path_is_one_sentence(job: Path, tmp_path: Path) -> None:
    arguments = [
        "manifests",
        str(job),
        "--set",
        "push.to=models/reviews",
        "-o",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert "error: push.to is models/reviews" in done.output and "Traceback" not in done.output


def test_other_cpus_and_s3_are_told(job: Path, tmp_path: Path) -> None:
    changed = ["--set", "push.to=s3://b/reviews", "--set", "export.cpu=bf16"]
    done = CliRunner().invoke(app, ["manifests", str(job), *changed, "-o", str(tmp_path / "o")])
    said = " ".join(done.output.split())
    assert f"Pods go to nodes labelled {BF16} alone." in said
    assert "does not read s3:// itself" in said and "/o/kserve" in done.output.replace("\n", "")


# --- The image ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dockerfile() -> str:
    text = (ROOT / "kubeflow" / "Dockerfile").read_text(encoding="utf-8")
    return re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")


def test_the_image_runs_as_nobody_special(dockerfile: str) -> None:
    last = dockerfile.split("\nFROM ")[-1]
    assert re.findall(r"^USER (\d+)$", last, re.M) == ["10001"]  # a number, for runAsNonRoot
    assert "ENTRYPOINT" not in dockerfile  # KFP's commands are whole: python -m ...


def test_the_image_holds_what_the_lock_names_by_hash(dockerfile: str) -> None:
    installs = re.findall(r"pip [^&\n]*?\binstall\b[^&\n]*", dockerfile)
    assert len(installs) == 3
    for line in installs:
        own = line.split()[-1] == "."  # the project itself, which needs no hash
        assert "--no-deps" in line and (own or "--require-hashes" in line), line
    assert "-r requirements.lock" in installs[1]
    assert "://" not in dockerfile and 'ARG PIP_INDEX_URL=""' in dockerfile


def test_the_image_has_its_setuptools_from_the_lock() -> None:
    # What the Dockerfile's sed takes out of it.
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.search(
        r"^setuptools==\S+ \\\n(    --hash=sha256:\S+ \\\n)*    --hash=\S+$", lock, re.M
    )
    assert found, "kubeflow/Dockerfile builds with the lock's setuptools"


def test_no_tools_for_building_are_left_in_the_image(dockerfile: str) -> None:
    last = dockerfile.split("\nFROM ")[-1]
    assert last.startswith("python:${PYTHON}-slim") and "pip uninstall" in last
    assert "apt-get" not in last and "--without-pip" in dockerfile
    environment = re.search(r"^ENV (.*)$", last, re.M)
    assert environment
    assert {"PYTHONWARNINGS=ignore", "TF_USE_LEGACY_KERAS=1"} <= set(environment[1].split())


def test_the_context_is_the_package_alone() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    needed = {*folders, "*.py", "README.md", "pyproject.toml", "requirements.lock"}
    assert {line[1:] for line in patterns if line.startswith("!")} == needed
