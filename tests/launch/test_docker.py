"""The image and its containers: not root, SIGTERM arrives, data and runs stay outside."""

import json
import re
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ("python", "-m", "experiments.mnist_cnn", "--workdir", "/runs/mnist")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def instructions():
    """Returns the instructions of the Dockerfile, in order, without comments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "launch/Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_image_is_not_root_and_its_first_process_passes_signals_on():
    found = instructions()
    names = [name for name, _ in found]
    assert dict(found)["USER"] == "dl"
    assert "uid 1000" in dict(found)["RUN"] or any("--uid 1000" in rest for _, rest in found)
    assert names.index("ENTRYPOINT") > names.index("USER")
    assert json.loads(dict(found)["ENTRYPOINT"]) == ["tini", "--"]  # a list: no shell stands between
    assert isinstance(json.loads(dict(found)["CMD"]), list)


def test_one_file_makes_the_images_of_all_devices():
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    install = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert install == ['pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}"']
    for extra in ("cuda", "tpu"):
        assert re.search(rf"^{extra} = \[", extras, re.MULTILINE)


@pytest.mark.parametrize(("device", "extra"), [("cpu", ""), ("cuda", "cuda"), ("tpu", "tpu")])
def test_building_sends_what_git_tracks(device, extra, launch, programs, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = launch("docker", "build", "--device", device, "--dry-run")
    *_, line = done.out.splitlines()
    assert line.startswith(
        f"docker build --build-arg=EXTRA={extra} --tag=dl:{device} --file=launch/Dockerfile -"
    )
    assert line.endswith(" < runs/launch/docker.tar.gz")


def test_the_context_reaches_docker(launch, programs, folder, monkeypatch):
    monkeypatch.setattr("launch.archive.tracked_files", lambda folder: ["pyproject.toml"])
    (folder / "pyproject.toml").touch()
    assert launch("docker", "build").status == 0
    assert programs.calls[0][:2] == ["docker", "build"]
    with tarfile.open("runs/launch/docker.tar.gz") as tar:
        assert tar.getnames() == ["pyproject.toml"]


@pytest.mark.parametrize(
    ("device", "own"),
    [("cpu", set()), ("cuda", {"--gpus=all"}), ("tpu", {"--privileged", "--network=host"})],
)
def test_a_container_has_data_runs_and_time_to_save(device, own, launch, programs, folder):
    options = ("--device", device, "--data-dir", "data", "--runs-dir", "my runs")
    assert launch("docker", "run", *options, "--", *COMMAND).status == 0
    [call] = programs.calls
    place = call.index(f"dl:{device}")
    assert tuple(call[place + 1 :]) == COMMAND
    flags = set(call[2:place])
    assert own <= flags
    assert f"--mount=type=bind,source={folder}/data,target=/data" in flags
    assert f"--mount=type=bind,source={folder}/my runs,target=/runs" in flags
    assert "--stop-timeout=120" in flags
    assert any(flag.startswith("--user=") for flag in flags)
    assert (folder / "data").is_dir()
    assert (folder / "my runs").is_dir()


@pytest.mark.parametrize("status", [0, 1, 143])
def test_a_container_ends_with_the_status_of_its_command(status, launch, programs):
    programs.answer("run", status=status)
    assert launch("docker", "run", "--", *COMMAND).status == status


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\nb"])
def test_a_folder_that_would_be_an_option_of_the_mount_is_refused(name, launch, programs, folder):
    done = launch("docker", "run", "--runs-dir", name, "--", *COMMAND)
    assert (done.status, done.err.count("\n"), programs.calls) == (2, 1, [])
    assert not list(folder.iterdir())


def test_a_run_inside_the_container_is_refused(launch, programs):
    done = launch("docker", "run", "--", *COMMAND[:-1], "runs/mnist")
    assert (done.status, "write --workdir /runs/NAME" in done.err, programs.calls) == (2, True, [])


def test_an_image_is_pushed_by_its_name(launch, programs):
    assert launch("docker", "push", "--image", "registry/lab/dl:1").status == 0
    assert programs.calls == [["docker", "push", "registry/lab/dl:1"]]
