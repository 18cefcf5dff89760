"""Every word and name is checked before anything runs; a dry run does nothing; help reads well."""

import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.command import check_command, for_shell
from launch.errors import UserError

ZONE = ("--zone", "us-central1-a", "--project", "my-project")
TRAINING = ("--", "python", "-m", "experiments.mnist_cnn", "--workdir", "gs://bucket/mnist")
CREATE = ("--accelerator-type", "v5litepod-8")
GOOD = {
    "tpu": ("train", "mnist", *ZONE, *CREATE, *TRAINING),
    "slurm": ("mnist", "--time", "1:00:00", *TRAINING),
    "kubernetes": ("submit", "mnist", "--tpu", "v5e:2x4", "--image", "dl:tpu", *TRAINING),
    "docker": ("run", *TRAINING),
}
HOSTILE = [
    "$(touch x)",
    "`touch x`",
    "a\nb",
    "a b",
    "../a",
    "-a",
    "--help=x",
    "a;b",
    "a\0b",
    "é",
    "\u0663",
    "a" * 300,
    "",
]
# Where a name stands: the launcher, and its arguments with {} in the place of the name.
NAMES = [
    ("tpu", ("create", "{}", *ZONE, *CREATE)),
    ("tpu", ("run", "{}", *ZONE, *TRAINING)),
    ("tpu", ("delete", "{}", *ZONE)),
    ("tpu", ("create", "mnist", "--zone={}", *ZONE[2:], *CREATE)),
    ("tpu", ("create", "mnist", *ZONE[:2], "--project={}", *CREATE)),
    ("tpu", ("create", "mnist", *ZONE, "--accelerator-type={}")),
    ("tpu", ("fetch", "mnist", *ZONE, "{}")),
    ("slurm", ("{}", "--time", "1:00:00", *TRAINING)),
    ("slurm", ("mnist", "--time={}", *TRAINING)),
    ("kubernetes", ("submit", "{}", "--gpus", "1", "--image", "dl:cuda", *TRAINING)),
    ("kubernetes", ("submit", "mnist", "--gpus", "1", "--image={}", *TRAINING)),
    ("kubernetes", ("submit", "mnist", "--tpu={}", "--image", "dl:tpu", *TRAINING)),
    ("kubernetes", ("delete", "{}")),
]


def assert_refused(done, programs, folder):
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.err.isprintable() or done.err[:-1].isprintable()
    assert not programs.calls
    assert not list(folder.iterdir())


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_a_hostile_name_is_refused_before_anything_runs(hostile, launch, programs, empty_folder):
    for launcher, argv in NAMES:
        words = [word.replace("{}", hostile) for word in argv]
        assert_refused(launch(launcher, *words), programs, empty_folder)


@pytest.mark.parametrize("hostile", HOSTILE[:-4], ids=ascii)
def test_a_hostile_text_of_an_option_is_refused(hostile, launch, programs, empty_folder):
    for option in ("runtime-version", "network", "subnetwork", "service-account", "valid-until-duration"):
        argv = ("create", "mnist", *ZONE, *CREATE, f"--{option}={hostile}")
        assert_refused(launch("tpu", *argv), programs, empty_folder)
    for option in ("bucket", "location"):
        argv = ("setup", *ZONE[2:], "--bucket=runs", f"--{option}={hostile}")
        assert_refused(launch("tpu", *argv), programs, empty_folder)
    for option in ("partition", "account", "qos", "memory"):
        argv = ("mnist", "--time", "1:00:00", f"--{option}={hostile}", *TRAINING)
        assert_refused(launch("slurm", *argv), programs, empty_folder)
    for option in ("claim", "mount", "service-account", "namespace", "cpu", "memory"):
        argv = ("submit", "mnist", "--gpus=1", "--image=dl:cuda", f"--{option}={hostile}", *TRAINING)
        assert_refused(launch("kubernetes", *argv), programs, empty_folder)


@pytest.mark.parametrize("launcher", GOOD)
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("", "no command"),
        ("rm -rf /", "must begin with python -m experiments.NAME"),
        ("python train.py --workdir gs://b/m", "must begin with"),
        ("python -m pip install x", "must begin with"),
        ("python -m experiments.mnist_cnn;id --workdir gs://b/m", "must begin with"),
        ("python -m experiments", "must begin with"),
        ("python -m experiments.mnist_cnn", "add --workdir"),
        ("python -m dl sweep mnist_mlp seed=0,1", "add --workdir"),
        ("python -m experiments.mnist_cnn --workdir gs://b/../m", "without .."),
        ("python -m experiments.mnist_cnn --workdir 'gs://b/$(id)'", "not expanded"),
        ("python -m experiments.mnist_cnn --workdir 'gs://b/`id`'", "not expanded"),
        ("python -m experiments.mnist_cnn --workdir 'gs://b/${HOME}'", "not expanded"),
        ("python -m experiments.mnist_cnn --workdir 'gs://b/m\nid'", "control character"),
    ],
)
def test_a_command_of_another_kind_is_refused(launcher, command, reason, launch, programs, empty_folder):
    own = GOOD[launcher][: GOOD[launcher].index("--")]
    done = launch(launcher, *own, "--", *shlex.split(command))
    assert reason in done.err
    assert_refused(done, programs, empty_folder)


@pytest.mark.parametrize("launcher", GOOD)
def test_a_dry_run_prints_and_does_nothing(launcher, launch, programs, empty_folder):
    place = GOOD[launcher].index("--")
    done = launch(launcher, *GOOD[launcher][:place], "--dry-run", *GOOD[launcher][place:])
    assert (done.status, done.err) == (0, "")
    assert "experiments.mnist_cnn" in done.out
    assert not programs.calls
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize("launcher", GOOD)
def test_a_program_that_is_missing_is_named(launcher, launch, empty_folder, monkeypatch):
    monkeypatch.setenv("PATH", str(empty_folder))
    done = launch(launcher, *GOOD[launcher])
    assert done.status == 2
    assert "is not installed" in done.err


@pytest.mark.parametrize("argv", [(), ("--help",)])
@pytest.mark.parametrize("launcher", GOOD)
def test_help_says_what_the_launcher_does(launcher, argv, launch):
    done = launch(launcher, *argv)
    assert done.status == 0
    assert f"usage: python -m launch.{launcher}" in done.out
    assert "-- python -m experiments." in done.out
    assert max(map(len, done.out.splitlines())) <= 110


def test_an_unknown_option_is_one_line(launch):
    done = launch("tpu", "delete", "mnist", *ZONE, "--forc")
    assert (done.status, done.err) == (2, "error: unrecognized arguments: --forc; --help lists all options\n")


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), min_size=1, max_size=4
    )
)
def test_a_shell_reads_the_words_that_were_given(words):
    assert shlex.split(for_shell(words)) == words


def test_a_real_shell_runs_the_words_that_were_given():
    words = ["a b", "'", '"', "$HOME", "*", "\\", "~", "-x", "", "a;b", "#", "é", "(x)"]
    show = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]
    line = for_shell(["cd", "/"], [*show, *words])
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == f"{words}\n"


def test_a_command_keeps_its_words():
    words = ["python", "-m", "dl", "generate", "runs/a", "To be, or 'not'", "a;b", "^layer.*$"]
    assert check_command(words) == tuple(words)


@pytest.mark.parametrize("word", ["a\tb", "a\x1bb", "a\u2028b", "a\ud800b"])
def test_a_word_with_a_control_character_is_refused(word):
    with pytest.raises(UserError, match="control character"):
        check_command(["python", "-m", "dl", "list", word])


def test_launchers_start_without_jax_and_other_libraries():
    program = (
        "import sys; import launch.tpu, launch.slurm, launch.kubernetes, launch.docker; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-Sc", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['__main__', 'launch']"


@pytest.mark.parametrize("folder", ["-x", "host:x", "a\nb", ""])
def test_a_local_folder_cannot_be_an_option_or_another_host(folder, launch, programs, empty_folder):
    argv = ("fetch", "mnist", *ZONE, "runs/mnist", f"--to={folder}")
    assert_refused(launch("tpu", *argv), programs, empty_folder)
