"""Manifests follow the published schemas, and give each process what it needs to find the others."""

import json
import os
from pathlib import Path

import pytest

CRD = os.environ.get("JOBSET_CRD", "")  # the file jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset
COMMAND = ("python", "-m", "experiments.mnist_cnn", "--workdir", "gs://bucket/mnist", "--dataset", "yes")
SWEEP = ("python", "-m", "dl", "sweep", "mnist_mlp", "seed=0,1", "--workdir", "gs://bucket/tune", "--worker")
TPU = ("--tpu", "v5e:4x4", "--image", "registry:5000/lab/dl:1")
GPU = ("--gpus", "8", "--nodes", "2", "--gpu-type", "nvidia-h100-80gb", "--image", "dl:cuda")
WORKERS = ("--workers", "3", "--image", "dl:cpu")
EVERYTHING = (
    "--spot",
    "--namespace",
    "lab",
    "--service-account",
    "runner",
    "--claim",
    "disk",
    "--mount",
    "/runs",
)
SIZES = ("--cpu", "4", "--memory", "16Gi", "--grace-seconds", "60", "--max-restarts", "3")
SHAPES = {
    "tpu": (*TPU, "--", *COMMAND),
    "one host": ("--tpu", "v5e:2x4", "--image", "dl:tpu", "--", *COMMAND),
    "slices": (*TPU, "--slices", "2", *EVERYTHING, "--", *COMMAND),
    "gpu": (*GPU, *EVERYTHING, *SIZES, "--", *COMMAND),
    "sweep": (*WORKERS, *EVERYTHING, *SIZES, "--", *SWEEP),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def manifest_of(launch, *argv):
    done = launch("kubernetes", "submit", "mnist", *argv)
    assert (done.status, done.err.strip()) == (0, "")
    return json.loads(Path("runs/launch/mnist.json").read_text())


def job_of(manifest):
    """Returns the specification of the only kind of Job in a manifest."""
    if manifest["kind"] == "Job":
        return manifest["spec"]
    [replicated] = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(manifest):
    [container] = job_of(manifest)["template"]["spec"]["containers"]
    return container


def strict(schema):
    """Returns a schema that refuses fields it does not know, which a cluster would silently drop."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        found.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return found


@pytest.fixture(scope="session")
def job_set_schema():
    if not CRD:
        pytest.skip("needs the schema of JobSet: set JOBSET_CRD to its file")
    yaml = pytest.importorskip("yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(Path(CRD).read_text(encoding="utf-8"), Loader=loader)
    [version] = [one for one in definition["spec"]["versions"] if one["name"] == "v1alpha2"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {
        "type": "object"
    }  # that of every object, which the definition leaves out
    return schema


def problems(schema, value):
    jsonschema = pytest.importorskip("jsonschema")
    return [
        f"{list(e.absolute_path)}: {e.message}" for e in jsonschema.Draft7Validator(schema).iter_errors(value)
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_manifests_follow_the_schemas(shape, launch, programs, job_set_schema):
    manifest = manifest_of(launch, *SHAPES[shape])
    schema = job_set_schema
    if shape == "sweep":  # JobSet's schema contains that of a Job
        jobs = schema["properties"]["spec"]["properties"]["replicatedJobs"]["items"]["properties"]
        schema, manifest = jobs["template"]["properties"]["spec"], manifest["spec"]
    assert problems(schema, manifest) == []
    manifest["spce" if shape == "sweep" else "spec"] = {"unknown": 1}
    assert problems(schema, manifest)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pod_runs_the_command_and_has_time_to_save(shape, launch, programs):
    manifest = manifest_of(launch, *SHAPES[shape])
    container, pod = container_of(manifest), job_of(manifest)["template"]["spec"]
    assert "command" not in container  # it would take the place of the image's first process
    assert tuple(container["args"]) == (SWEEP if shape == "sweep" else COMMAND)
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["restartPolicy"] == "Never"
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert programs.calls[-1][-2:] == ["apply", "--filename=runs/launch/mnist.json"]


@pytest.mark.parametrize(
    ("target", "hosts", "chips", "accelerator"),
    [
        ("v5e:1x1", 1, 1, "tpu-v5-lite-podslice"),
        ("v5e:2x4", 1, 8, "tpu-v5-lite-podslice"),
        ("v5e:4x4", 4, 4, "tpu-v5-lite-podslice"),
        ("v5e:16x16", 64, 4, "tpu-v5-lite-podslice"),
        ("v6e:4x8", 8, 4, "tpu-v6e-slice"),
        ("v5p:2x2x1", 1, 4, "tpu-v5p-slice"),
        ("v5p:8x8x8", 128, 4, "tpu-v5p-slice"),
        ("v4:2x2x4", 4, 4, "tpu-v4-podslice"),
    ],
)
def test_a_slice_has_one_pod_for_each_host(target, hosts, chips, accelerator, launch, programs):
    manifest = manifest_of(launch, "--tpu", target, "--image", "dl:tpu", "--", *COMMAND)
    job = job_of(manifest)
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (hosts, hosts, "Indexed")
    assert container_of(manifest)["resources"]["limits"] == {"google.com/tpu": str(chips)}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": target.partition(":")[2],
    }


@pytest.mark.parametrize("shape", ["tpu", "gpu"])
def test_processes_find_each_other_through_the_environment(shape, launch, programs):
    manifest = manifest_of(launch, *SHAPES[shape])
    variables = {one["name"]: one for one in container_of(manifest)["env"]}
    [replicated] = manifest["spec"]["replicatedJobs"]
    # As JobSet names hosts: <jobset>-<replicated job>-<job index>-<pod index>.<subdomain>
    host = f"mnist-{replicated['name']}-0-0.mnist"
    assert variables["DL_COORDINATOR"]["value"] == f"{host}:8476"
    assert variables["DL_NUM_PROCESSES"]["value"] == str(job_of(manifest)["completions"])
    path = variables["DL_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert manifest["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}


@pytest.mark.parametrize("shape", ["one host", "slices", "sweep"])
def test_no_variable_misleads_where_an_index_is_not_the_process(shape, launch, programs):
    assert container_of(manifest_of(launch, *SHAPES[shape]))["env"] == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mistake_is_final_and_a_lost_node_is_not(shape, launch, programs):
    manifest = manifest_of(launch, *SHAPES[shape])
    first, *others = job_of(manifest)["podFailurePolicy"]["rules"]
    assert (first["action"], first["onExitCodes"]["values"]) == ("FailJob", [2])
    if shape == "sweep":
        assert [rule["action"] for rule in others] == ["Ignore"]
        assert job_of(manifest)["backoffLimitPerIndex"] == 3
    else:
        policy = manifest["spec"]["failurePolicy"]
        assert policy["maxRestarts"] >= 3
        assert policy["rules"][0]["action"] == "FailJobSet"
        assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_gpus_come_with_memory_that_they_share_and_a_user_that_is_not_root(launch, programs):
    manifest = manifest_of(launch, *SHAPES["gpu"])
    pod = job_of(manifest)["template"]["spec"]
    assert container_of(manifest)["resources"]["limits"] == {
        "nvidia.com/gpu": "8",
        "cpu": "4",
        "memory": "16Gi",
    }
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container_of(manifest)["volumeMounts"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} == {one["key"] for one in pod["tolerations"]}
    assert pod["volumes"][-1]["persistentVolumeClaim"] == {"claimName": "disk"}


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("--image", "dl:1"), "exactly one"),
        ((*TPU, "--gpus", "1"), "exactly one"),
        (("--tpu", "v5e:2x2x2", "--image", "dl:1"), "2 numbers"),
        (("--tpu", "v5p:4x4", "--image", "dl:1"), "3 numbers"),
        (("--tpu", "v9:4x4", "--image", "dl:1"), "such as v5e:4x4"),
        (("--tpu", "v5e:0x4", "--image", "dl:1"), "such as v5e:4x4"),
        (("--tpu", "v5e:4x4", "--chips-per-host", "5", "--image", "dl:1"), "hosts of 5"),
        (("--gpus", "1"), "--image"),
    ],
)
def test_what_cannot_work_is_refused(argv, reason, launch, programs):
    done = launch("kubernetes", "submit", "mnist", *argv, "--", *COMMAND)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert reason in done.err
    assert not programs.calls


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ("status", "mnist"),
            ["get", "pods", "--selector=jobset.sigs.k8s.io/jobset-name=mnist", "--output=wide"],
        ),
        (("delete", "mnist"), ["delete", "jobset/mnist"]),
        (("delete", "tune", "--sweep"), ["delete", "job/tune"]),
    ],
)
def test_jobs_are_shown_and_deleted_by_their_name(argv, words, launch, programs):
    assert launch("kubernetes", *argv, "--context", "c", "--namespace", "n").status == 0
    assert programs.calls == [["kubectl", "--context=c", "--namespace=n", *words]]


def test_the_log_is_that_of_the_first_process(launch, programs):
    launch("kubernetes", "logs", "mnist")
    assert programs.calls[0][1] == "logs"
    assert "batch.kubernetes.io/job-completion-index=0" in programs.calls[0][2]
