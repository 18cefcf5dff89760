"""The page on launching shows what its commands would run; its options exist; gcloud knows its flags."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "launch" / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n\$ ((?:.*\\\n)*.*)\n((?s:.*?))^```", TEXT, re.MULTILINE)
# Flags of the reference of gcloud 528: gcloud compute tpus queued-resources VERB, and two others.
FLAGS = {
    "queued-resources create": {
        *("node-id", "node-count", "node-prefix", "accelerator-type", "runtime-version", "spot", "reserved"),
        *("internal-ips", "valid-until-duration", "service-account", "network", "subnetwork", "zone"),
    },
    "queued-resources describe": {"zone"},
    "queued-resources list": {"zone"},
    "queued-resources delete": {"zone", "force", "async"},
    "queued-resources scp": {"zone", "worker", "node", "recurse", "tunnel-through-iap"},
    "queued-resources ssh": {"zone", "worker", "node", "command", "tunnel-through-iap"},
    "services enable": {"async"},
    "buckets create": {"location", "uniform-bucket-level-access"},
}
EVERYWHERE = {"project", "quiet", "format"}
ALL = "--spot --node-count 2 --valid-until-duration 6h --service-account a@b --network n --internal-ips"
ZONE = "--project my-project --zone us-central1-a --dry-run"
MORE = (
    f"tpu create x {ZONE} --accelerator-type v5p-8 {ALL}",
    f"tpu create x {ZONE} --accelerator-type v4-8 --reserved --subnetwork s",
    f"tpu copy x {ZONE} --tunnel-through-iap",
    f"tpu stop x {ZONE} --tunnel-through-iap",
    f"tpu logs x {ZONE}",
    "tpu setup --project my-project --bucket my-bucket --dry-run",
)


def words_of(command):
    program, *words = shlex.split(command.replace("\\\n", " "))
    assert (program, words[0]) == ("python", "-m")
    return words[1].removeprefix("launch."), words[2:]


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[words_of(command)[1][0] for command, _ in BLOCKS])
def test_the_page_shows_what_a_command_runs(command, shown, launch, programs, monkeypatch):
    monkeypatch.chdir(README.parents[1])
    name, words = words_of(command)
    done = launch(name, *words)
    assert (done.status, done.err) == (0, "")
    assert done.out.rstrip() == shown.rstrip()
    assert not programs.calls


def test_ten_commands_lead_from_nothing_to_nothing():
    numbers = re.findall(r"^\*\*(\d+)\.\*\*", TEXT, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 11)]
    verbs = [words_of(command)[1][0] for command, _ in BLOCKS]
    assert " ".join(verbs[:10]) == "setup create wait copy install run status fetch delete list"


@pytest.mark.parametrize("command", re.findall(r"^python -m launch\.(?:.*\\\n)*.*", TEXT, re.MULTILINE))
def test_commands_without_output_are_accepted(command, launch, programs, monkeypatch, tmp_path):
    monkeypatch.chdir(README.parents[1])
    name, words = words_of(command)
    done = launch(name, *(words[: words.index("--")] if "--" in words else words), "--dry-run", *after(words))
    assert (done.status, done.err) == (0, "")


def after(words):
    return words[words.index("--") :] if "--" in words else []


@pytest.fixture
def calls_of_gcloud(launch, monkeypatch):
    """All calls of gcloud that the page and some further commands would make, as words."""
    monkeypatch.chdir(README.parents[1])
    commands = [words_of(command) for command, _ in BLOCKS]
    commands += [(name, words) for name, *words in map(shlex.split, MORE)]
    lines = [line for name, words in commands for line in launch(name, *words).out.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("gcloud ")]


def test_every_flag_stands_in_the_reference_of_gcloud(calls_of_gcloud):
    seen = set()
    for call in calls_of_gcloud:
        verb = next(verb for verb in FLAGS if f" {verb} " in " ".join(call))
        used = {word[2:].partition("=")[0] for word in call if word.startswith("--")}
        assert used <= FLAGS[verb] | EVERYWHERE, call
        seen.add(verb)
    assert seen == set(FLAGS)


@pytest.mark.slow
def test_the_parser_of_gcloud_accepts_every_call(calls_of_gcloud, tmp_path):
    gcloud = shutil.which("gcloud")
    if not gcloud:
        pytest.skip("needs gcloud")
    environment = {
        "PATH": os.environ["PATH"],
        "CLOUDSDK_CONFIG": str(tmp_path),  # without an account, gcloud parses its arguments and stops
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }
    for call in [
        *{tuple(call): call for call in calls_of_gcloud}.values(),
        [*calls_of_gcloud[0], "--no-such-flag"],
    ]:
        done = subprocess.run(
            [gcloud, *call[1:]], env=environment, capture_output=True, text=True, check=False
        )
        if call[-1] == "--no-such-flag":
            assert done.returncode == 2
            assert "unrecognized arguments" in done.stderr
        else:
            assert done.returncode == 1, (call, done.stderr)
            assert "active account" in done.stderr, (call, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["docker", "kubectl"])
def test_the_parsers_of_other_programs_accept_every_call(program, launch, tmp_path, monkeypatch):
    path = shutil.which(program)
    if not path:
        pytest.skip(f"needs {program}")
    monkeypatch.chdir(tmp_path)
    train = ["--dry-run", "--", "python", "-m", "experiments.mnist_cnn", "--workdir", "/runs/mnist"]
    actions = {
        "docker": [
            ["run", "--device", "cuda", *train],
            ["run", "--device", "tpu", *train],
            ["push", "--dry-run"],
        ],
        "kubectl": [[verb, "mnist", "--dry-run"] for verb in ("status", "logs", "delete")],
    }
    nowhere = {"docker": "--host=tcp://127.0.0.1:9", "kubectl": "--server=http://127.0.0.1:9"}[program]
    module = {"docker": "docker", "kubectl": "kubernetes"}[program]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for words in actions[program]:
        *_, line = launch(module, *words).out.splitlines()
        argv = [path, nowhere, *shlex.split(line)[1:]]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode
        assert "unknown" not in done.stderr
        assert "127.0.0.1:9" in done.stderr
