"""Cloud TPU against a stand-in for gcloud, which records its calls and fails as the real one does."""

import shlex
import subprocess
import tarfile

import pytest

pytestmark = pytest.mark.slow  # each call of the stand-in is a process

ZONE = ("--zone", "us-central1-a", "--project", "my-project")
CREATE = ("--accelerator-type", "v5litepod-8")
COMMAND = ("python", "-m", "experiments.mnist_cnn", "--workdir", "gs://bucket/mnist")
QUICK = ("--poll", "0", "--settle", "0")
TRAIN = ("train", "mnist", *ZONE, *CREATE, "--spot", *QUICK, "--", *COMMAND)
SSH_AND_SCP = ("scp", "ssh", "ssh", "ssh")  # copy, unpack, install, run

# What the Cloud TPU service and gcloud say, and what the user reads beside it.
REFUSALS = {
    "quota": (
        "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit "
        "'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-central1-a.",
        "ask for more quota",
    ),
    "capacity": (
        "ERROR: (gcloud.compute.tpus.queued-resources.create) There is no more capacity in the zone "
        '"us-central1-a"; you can try in another zone where Cloud TPU Nodes are offered',
        "no free TPU of this type",
    ),
    "permission": (
        "ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Permission "
        "'tpu.queuedResources.create' denied on 'projects/my-project/locations/us-central1-a'",
        "roles/tpu.admin",
    ),
    "credentials": (
        "ERROR: (gcloud.compute.tpus.queued-resources.create) You do not currently have an active account "
        "selected.\nPlease run:\n\n  $ gcloud auth login\n\nto obtain new credentials.",
        "log in with: gcloud auth login",
    ),
    "api": (
        "ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Cloud TPU API has not been "
        "used in project my-project before or it is disabled.",
        "python -m launch.tpu setup",
    ),
    "exists": (
        "ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource "
        "'projects/my-project/locations/us-central1-a/queuedResources/mnist' already exists",
        "choose another name",
    ),
    "not found": (
        "ERROR: (gcloud.compute.tpus.queued-resources.create) NOT_FOUND: Resource "
        "'projects/my-project/locations/us-central1-a' was not found",
        "check the name, --zone and --project",
    ),
    "argument": (
        "ERROR: (gcloud.compute.tpus.queued-resources.create) INVALID_ARGUMENT: Cloud TPU received a bad "
        "request. acceleratorType v5litepod-8 is invalid",
        "check --accelerator-type",
    ),
}
MISSING = "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource was not found"


def failed(message):
    return {"state": "FAILED", "failedData": {"error": {"code": 8, "message": message}}}


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """A small checkout with a tracked file, one that is not tracked, and one that is tracked but gone."""
    folder = tmp_path / "checkout"
    (folder / "dl").mkdir(parents=True)
    for path in ("pyproject.toml", "dl/a b.py", "gone.py"):
        (folder / path).write_text(path)
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    (folder / "gone.py").unlink()
    (folder / "dl/a b.py").write_text("changed")
    (folder / "secret.txt").write_text("secret")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_one_line_with_advice(kind, launch, programs):
    message, advice = REFUSALS[kind]
    programs.answer("create", err=message)
    done = launch("tpu", "create", "mnist", *ZONE, *CREATE)
    assert (done.status, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert advice in done.err
    assert message.partition(") ")[2].split()[0] in done.err
    assert len(programs.calls) == 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "connection reset"])
def test_a_service_that_does_not_answer_is_asked_again(code, launch, programs, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    programs.answer("create", err=f"ERROR: (gcloud.x) {code}: try again", times=3)
    assert launch("tpu", "create", "mnist", *ZONE, *CREATE).status == 0
    assert programs.verbs() == ["create"] * 4


def test_a_service_that_never_answers_ends_in_one_line(launch, programs, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    programs.answer("delete", err="ERROR: (gcloud.x) UNAVAILABLE: The service is unavailable", times=99)
    done = launch("tpu", "delete", "mnist", *ZONE)
    assert (done.status, len(programs.calls)) == (2, 5)
    assert "did not answer" in done.err


def test_a_request_asks_for_what_the_options_say(launch, programs):
    options = (
        "--spot",
        "--node-count",
        "2",
        "--valid-until-duration",
        "6h",
        "--internal-ips",
        "--network",
        "net",
    )
    launch("tpu", "create", "mnist", *ZONE, "--accelerator-type", "v6e-16", *options)
    [call] = programs.calls
    assert call[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mnist"]
    assert set(call[6:]) == {
        "--node-count=2",
        "--node-prefix=mnist",
        "--accelerator-type=v6e-16",
        "--runtime-version=v2-alpha-tpuv6e",
        "--spot",
        "--internal-ips",
        "--valid-until-duration=6h",
        "--network=net",
        "--zone=us-central1-a",
        "--project=my-project",
        "--quiet",
    }


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [("v5litepod-4", "v2-alpha-tpuv5-lite"), ("v5p-8", "v2-alpha-tpuv5"), ("v4-8", "tpu-ubuntu2204-base")],
)
def test_the_software_of_the_hosts_follows_the_accelerator(accelerator, runtime, launch, programs):
    launch("tpu", "create", "mnist", *ZONE, "--accelerator-type", accelerator)
    assert f"--runtime-version={runtime}" in programs.calls[0]
    assert "--node-id=mnist" in programs.calls[0]


def test_waiting_ends_when_the_tpu_is_there(launch, programs):
    programs.set_states("WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = launch("tpu", "wait", "mnist", *ZONE, "--poll", "0")
    assert done.status == 0
    assert done.out.split("mnist: ")[1:] == ["WAITING_FOR_RESOURCES\n", "PROVISIONING\n", "ACTIVE\n"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (failed(REFUSALS["quota"][0]), "ask for more quota"),
        (failed(REFUSALS["capacity"][0]), "no free TPU of this type"),
        ({"state": "FAILED"}, "--valid-until-duration"),
        ("SUSPENDED", "was preempted"),
        ("SUSPENDING", "was preempted"),
    ],
)
def test_waiting_ends_in_one_line_when_there_will_be_no_tpu(state, said, launch, programs):
    programs.set_states("PROVISIONING", state)
    done = launch("tpu", "wait", "mnist", *ZONE, "--poll", "0")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert said in done.err


def test_waiting_for_what_does_not_exist_is_one_line(launch, programs):
    programs.answer("describe", err=MISSING)
    done = launch("tpu", "wait", "mnist", *ZONE)
    assert (done.status, "create it first" in done.err) == (2, True)


def test_an_answer_that_is_not_json_is_one_line(launch, programs):
    programs.answer("describe", status=0, out="state: ACTIVE")
    done = launch("tpu", "status", "mnist", *ZONE)
    assert (done.status, "gcloud components update" in done.err) == (2, True)


def test_the_copy_holds_what_git_tracks_as_it_is_now(launch, programs, checkout):
    assert launch("tpu", "copy", "mnist", *ZONE).status == 0
    with tarfile.open(checkout / "runs/launch/mnist.tar.gz") as tar:
        assert {info.name: info.uname for info in tar} == {"pyproject.toml": "", "dl/a b.py": ""}
        assert tar.extractfile("dl/a b.py").read() == b"changed"
    scp, ssh = programs.calls
    assert {"runs/launch/mnist.tar.gz", "mnist:code.tar.gz", "--worker=all", "--node=all"} <= set(scp)
    assert {"--worker=all", "--node=all"} <= set(ssh)


def test_a_folder_that_is_not_a_checkout_is_refused(launch, programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = launch("tpu", "copy", "mnist", *ZONE)
    assert (done.status, "git checkout" in done.err, programs.calls) == (2, True, [])


def test_the_lines_for_the_hosts_unpack_what_was_copied(launch, programs, tmp_path):
    launch("tpu", "copy", "mnist", *ZONE)
    host = tmp_path / "host"
    (host / "dl-tpu/source").mkdir(parents=True)
    (host / "dl-tpu/source/old.py").touch()
    (host / "dl-tpu/runs").mkdir()
    (host / "code.tar.gz").write_bytes((tmp_path / "checkout/runs/launch/mnist.tar.gz").read_bytes())
    subprocess.run(["sh", "-c", line_of(programs.calls[-1])], cwd=host, check=True)
    assert {path.name for path in (host / "dl-tpu/source").rglob("*.*")} == {"pyproject.toml", "a b.py"}
    assert (host / "dl-tpu/runs").is_dir()


def line_of(call):
    [line] = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    return line


def test_the_command_reaches_the_hosts_word_for_word(launch, programs):
    words = (
        "python",
        "-m",
        "experiments.char_gpt",
        "--workdir",
        "runs/it's",
        "--dataset",
        "a b;*~",
        "--x=$HOME",
    )
    assert launch("tpu", "run", "mnist", *ZONE, "--", *words).status == 0
    [call] = programs.calls
    assert {"--worker=all", "--node=all"} <= set(call)
    line = shlex.split(line_of(call))
    assert line[:3] == ["cd", "dl-tpu", "&&"]
    assert line[3:] == [
        "python3",
        "source/launch/worker.py",
        "run",
        "mnist",
        "--",
        "venv/bin/python",
        *words[1:],
    ]


@pytest.mark.parametrize("status", [0, 1, 2, 143])
def test_a_run_ends_with_the_status_of_its_command(status, launch, programs):
    programs.answer("ssh", status=status)
    assert launch("tpu", "run", "mnist", *ZONE, "--", *COMMAND).status == status


def test_a_step_on_hosts_that_are_gone_says_so(launch, programs):
    programs.answer("scp", status=1)
    programs.set_states("SUSPENDED")
    done = launch("tpu", "copy", "mnist", *ZONE)
    assert (done.status, "is gone (SUSPENDED)" in done.err) == (2, True)


def test_deleting_what_is_gone_succeeds(launch, programs):
    programs.answer("delete", err=MISSING)
    assert launch("tpu", "delete", "mnist", *ZONE).status == 0


def test_results_are_fetched_into_a_folder(launch, programs, checkout):
    assert launch("tpu", "fetch", "mnist", *ZONE, "runs/mnist", "--to", "results").status == 0
    assert {"--recurse", "mnist:dl-tpu/runs/mnist", "results/", "--worker=0"} <= set(programs.calls[0])
    assert (checkout / "results").is_dir()


def test_setup_switches_the_service_on_and_creates_a_bucket(launch, programs):
    assert launch("tpu", "setup", "--project", "my-project", "--bucket", "my-runs").status == 0
    assert programs.calls[0][1:4] == ["services", "enable", "tpu.googleapis.com"]
    assert programs.calls[1][1:5] == ["storage", "buckets", "create", "gs://my-runs"]


def train(launch, *options):
    return launch("tpu", *TRAIN[: TRAIN.index("--")], *options, "--", *COMMAND)


def test_training_leads_from_nothing_to_nothing(launch, programs):
    programs.answer("describe", err=MISSING)
    programs.set_states("PROVISIONING", "ACTIVE")
    done = train(launch)
    assert done.status == 0
    assert programs.verbs() == ["create", *SSH_AND_SCP, "delete"]


def test_training_goes_on_after_preemptions_with_the_same_command(launch, programs):
    programs.answer("describe", err=MISSING)
    programs.answer("experiments.mnist_cnn", status=255)  # the connection breaks
    programs.answer("experiments.mnist_cnn", status=143)  # the hosts shut down
    programs.set_states(
        "ACTIVE", "SUSPENDING", "SUSPENDED", "PROVISIONING", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"
    )
    done = train(launch)
    assert done.status == 0
    once = ["create", *SSH_AND_SCP]
    assert programs.verbs() == [*once, "delete", *once, "delete", *once, "delete"]
    runs = [call for call in programs.calls if "experiments.mnist_cnn" in " ".join(call)]
    assert len(runs) == 3
    assert runs[0] == runs[1] == runs[2]
    creates = [call for call in programs.calls if "create" in call]
    assert creates[0] == creates[1] == creates[2]


@pytest.mark.parametrize("step", ["scp", "uv pip install"])
def test_training_goes_on_when_the_tpu_is_lost_before_the_command_runs(step, launch, programs):
    programs.answer("describe", err=MISSING)
    programs.answer(step, status=1)
    programs.set_states("ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE")
    assert train(launch).status == 0
    assert programs.verbs().count("create") == 2


def test_training_joins_a_run_whose_connection_was_lost(launch, programs):
    programs.answer("describe", err=MISSING)
    programs.answer("experiments.mnist_cnn", status=1)  # what gcloud returns for one host
    done = train(launch)  # every further question about the job is answered with: it runs
    assert done.status == 0
    assert programs.verbs() == ["create", *SSH_AND_SCP, "ssh", "ssh", "ssh", "delete"]
    assert programs.verbs().count("scp") == 1


@pytest.mark.parametrize("status", [1, 2, 74])
def test_training_ends_with_the_failure_of_its_command(status, launch, programs):
    programs.answer("describe", err=MISSING)
    programs.answer("experiments.mnist_cnn", status=status)
    programs.answer("ask", status=3)
    assert train(launch).status == status
    assert programs.verbs().count("create") == 1
    assert programs.verbs()[-1] == "delete"


def test_training_waits_again_where_the_zone_has_no_capacity(launch, programs):
    programs.answer("describe", err=MISSING)
    programs.set_states(failed(REFUSALS["capacity"][0]), failed("no more capacity"), "ACTIVE")
    assert train(launch).status == 0
    assert programs.verbs() == ["create", "delete", "create", *SSH_AND_SCP, "delete"]


def test_training_ends_where_the_quota_is_used_up_and_deletes_the_request(launch, programs):
    programs.answer("describe", err=MISSING)
    programs.set_states(failed(REFUSALS["quota"][0]))
    done = train(launch)
    assert (done.status, "ask for more quota" in done.err) == (2, True)
    assert programs.verbs() == ["create", "delete"]


def test_training_gives_up_after_many_losses(launch, programs):
    programs.set_states("SUSPENDED")
    done = train(launch, "--restarts", "2")
    assert done.status == 255
    assert "lost 3 times" in done.out
    assert programs.verbs() == ["delete", "create"] * 3 + ["delete"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_training_clears_away_what_an_earlier_request_left(state, launch, programs):
    programs.set_states(state, "ACTIVE")
    assert train(launch).status == 0
    assert programs.verbs() == ["delete", "create", *SSH_AND_SCP, "delete"]


def test_training_joins_the_run_of_an_earlier_start(launch, programs):
    assert train(launch).status == 0
    assert programs.verbs() == ["ssh", "ssh", "delete"]  # ask, join


def test_training_can_keep_the_tpu_and_says_how_to_delete_it(launch, programs):
    done = train(launch, "--keep")
    assert "delete" not in programs.verbs()
    assert "python -m launch.tpu delete mnist --zone us-central1-a --project my-project" in done.out


def test_training_refuses_a_folder_that_is_deleted_with_the_tpu(launch, programs):
    argv = [word.replace("gs://bucket/mnist", "runs/mnist") for word in TRAIN]
    done = launch("tpu", *argv)
    assert (done.status, "gs://BUCKET/FOLDER" in done.err, programs.calls) == (2, True, [])
