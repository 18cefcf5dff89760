"""Docker: `python -m launch.docker build | run | push`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from launch.archive import write_archive
from launch.cli import Parser, add_dry_run, run_as_command, split
from launch.command import EXAMPLE, check_command, check_name, option_of, shown
from launch.errors import UserError
from launch.steps import FOLDER, Steps

ABOUT = """Build an image of this project, and run a command in it.

  build     build the image for CPU, CUDA or TPU from the files that git tracks
  run       run a command in the image, with your folders of data and runs
  push      send the image to its registry, from where a cluster gets it

example:
  python -m launch.docker build --device cuda
  python -m launch.docker run --device cuda -- python -m experiments.mnist_cnn --workdir /runs/mnist

In the container, /data is the folder of data sets and /runs the folder of runs. A run that is stopped with
docker stop saves first; the same command resumes it."""

_HELP = {
    "build": "Build the image.",
    "run": "Run a command in the image.",
    "push": "Send the image to its registry.",
}
DEVICES = ("cpu", "cuda", "tpu")
_CONTEXT = FOLDER / "docker.tar.gz"
_STOP_SECONDS = 120  # that a run has to save after docker stop
_IMAGE = r"[a-z0-9][a-z0-9._-]*(:\d+)?(/[a-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?"


def main(argv: Sequence[str]) -> int:
    """Runs one action. Returns the exit status of `docker`."""
    own, words = split(argv)
    options = _parser().parse_args(own or ["--help"])
    image = options.image or f"dl:{options.device}"
    check_name("--image", image, _IMAGE, "the name of an image, such as my-registry/dl:1")
    steps = Steps(options.dry_run)
    if options.action == "run":
        return steps.run(_run_words(options, image, check_command(words))).status
    if words:
        raise UserError(f"{options.action} does not take a command; leave out what follows --")
    if options.action == "push":
        return steps.run(["docker", "push", image]).status
    steps.say(f"{_CONTEXT}: the files that git tracks")
    if not options.dry_run:
        write_archive(Path.cwd(), _CONTEXT)
    extra = "" if options.device == "cpu" else options.device
    words = [
        "docker",
        "build",
        f"--build-arg=EXTRA={extra}",
        f"--tag={image}",
        "--file=launch/Dockerfile",
        "-",
    ]
    return steps.run(words, stdin=_CONTEXT).status


def _run_words(options: argparse.Namespace, image: str, command: Sequence[str]) -> list[str]:
    """Returns the words that run a command in the image as the caller, who then owns the runs."""
    workdir = option_of(command, "--workdir") or ""
    if workdir and not workdir.startswith(("/runs/", "gs://")):
        raise UserError(f"--workdir {shown(workdir)} is lost with the container; write --workdir /runs/NAME")
    data, runs = _folder("--data-dir", options.data_dir), _folder("--runs-dir", options.runs_dir)
    if not options.dry_run:
        for folder in (data, runs):  # Docker would create them as root
            folder.mkdir(parents=True, exist_ok=True)
    words = ["docker", "run", "--rm", f"--user={os.getuid()}:{os.getgid()}", "--env=HOME=/tmp"]
    words += [f"--stop-timeout={_STOP_SECONDS}"]
    words += [
        f"--mount=type=bind,source={data},target=/data",
        f"--mount=type=bind,source={runs},target=/runs",
    ]
    if options.device == "cuda":
        words += ["--gpus=all", "--shm-size=8g"]
    if options.device == "tpu":  # libtpu opens the devices of the host and asks its metadata server
        words += ["--privileged", "--network=host"]
    return [*words, image, *command]


def _folder(what: str, text: str) -> Path:
    """Returns the absolute path of a folder to mount; a comma would begin another option of the mount."""
    path = Path(text).expanduser().absolute()
    if any(character in str(path) for character in ',"\n\r\0'):
        raise UserError(
            f"{what} {shown(str(path))} has a comma, a quote or a line break; choose another folder"
        )
    return path


def _parser() -> argparse.ArgumentParser:
    usage = "python -m launch.docker ACTION [options] [-- COMMAND]"
    parser = Parser("python -m launch.docker", usage=usage, description=ABOUT)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help=argparse.SUPPRESS)
    for name, text in _HELP.items():
        end = " -- COMMAND" if name == "run" else ""
        action = actions.add_parser(
            name,
            usage=f"python -m launch.docker {name} [options]{end}",
            description=text,
            epilog=f"COMMAND is python -m experiments.NAME … or python -m dl …, for example: {EXAMPLE}"
            if end
            else None,
        )
        action.add_argument(
            "--device", choices=DEVICES, default="cpu", help="What the image trains on. Default: cpu."
        )
        action.add_argument(
            "--image", metavar="IMAGE", default="", help="Name of the image. Default: dl:DEVICE."
        )
        if end:
            data = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
            action.add_argument(
                "--data-dir",
                metavar="FOLDER",
                default=data,
                help="Folder of data sets. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.",
            )
            action.add_argument(
                "--runs-dir", metavar="FOLDER", default="runs", help="Folder of runs. Default: runs."
            )
        add_dry_run(action)
    return parser


if __name__ == "__main__":
    run_as_command(main)
