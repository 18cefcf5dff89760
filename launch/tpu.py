"""Cloud TPU: `python -m launch.tpu ACTION …`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launch.cli import Parser, add_dry_run, run_as_command, split, whole_number
from launch.command import EXAMPLE, check_command, check_name, check_path
from launch.errors import UserError
from launch.gcloud import Gcloud
from launch.queued import QueuedTpu, Request, check_request, check_resource
from launch.steps import Steps
from launch.tpu_training import Training, check_survives

ABOUT = """Train on Cloud TPU with queued resources. The steps, one by one:

  setup     switch the Cloud TPU API on, and create a bucket
  create    put a request for a TPU into the queue
  wait      wait until the TPU is there
  copy      copy the files that git tracks to all hosts
  install   install Python and this project on all hosts
  run       run a command on all hosts, and show its output
  logs      show the output of the command again
  stop      stop the command; it saves first
  fetch     copy results from the first host
  status    show the state of the TPU
  delete    delete the TPU
  list      list what exists in the zone

or all at once, created again after each preemption, and deleted at the end:

  train     create, wait, copy, install, run, delete

example:
  python -m launch.tpu train mnist --zone us-central1-a --project MY-PROJECT \\
    --accelerator-type v5litepod-8 --spot -- python -m experiments.mnist_cnn --workdir gs://MY-BUCKET/mnist

launch/README.md leads from an empty project to a trained network and back."""

_HELP = {
    "setup": "Switch the Cloud TPU API of the project on.",
    "create": "Put a request for a TPU into the queue of a zone.",
    "wait": "Wait until the TPU is there.",
    "copy": "Copy the files that git tracks in the working folder to all hosts.",
    "install": "Install Python and this project, with the extra tpu, on all hosts.",
    "run": "Run a command on all hosts and show its output. The command goes on if the connection is lost; "
    "the same line then joins it.",
    "logs": "Show the output of the command from its beginning, and on to its end.",
    "stop": "Send SIGTERM to the command. It saves its state and ends.",
    "fetch": "Copy a folder of results from the first host.",
    "status": "Show the state of the TPU.",
    "delete": "Delete the TPU and its disks.",
    "list": "List the queued resources of the zone.",
    "train": "Create a TPU, run a command there to its end, and delete the TPU. After a preemption, create "
    "it again and run the same command, which resumes. If a TPU of this name exists, it is used, and deleted "
    "at the end.",
}
_WITHOUT_NAME = ("setup", "list")


def main(argv: Sequence[str]) -> int:
    """Runs one action. Returns its exit status."""
    own, words = split(argv)
    options = _parser().parse_args(own or ["--help"])
    if options.action in ("run", "train"):
        command = check_command(words)
    elif words:
        raise UserError(f"{options.action} does not take a command; leave out what follows --")
    project = r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
    check_name("--project", options.project, project, "the ID of a project, such as my-project-123")
    zone = getattr(options, "zone", "")
    if options.action != "setup":
        check_name("--zone", zone, r"[a-z]+-[a-z]+\d+-[a-z]", "a zone, such as us-central1-a")
    gcloud = Gcloud(Steps(options.dry_run), options.project, zone, getattr(options, "poll", 30.0))
    if options.action in _WITHOUT_NAME:
        return _of_project(gcloud, options)
    tpu = QueuedTpu(check_resource(options.name), gcloud, getattr(options, "tunnel_through_iap", False))
    if options.action in ("run", "train"):
        if options.action == "run":
            return tpu.run(command)
        check_survives(command)
        return Training(tpu, _request(options), command, options.restarts, options.settle, options.keep).run()
    return _step(tpu, options)


def _of_project(gcloud: Gcloud, options: argparse.Namespace) -> int:
    if options.action == "list":
        print(
            gcloud.call("compute", "tpus", "queued-resources", "list", f"--zone={gcloud.zone}").output, end=""
        )
        return 0
    if options.bucket:
        check_name(
            "--bucket", options.bucket, r"[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]", "the name of a new bucket"
        )
        check_name("--location", options.location, r"[a-z][a-z0-9-]+", "a region, such as us-central1")
    gcloud.call("services", "enable", "tpu.googleapis.com")
    if options.bucket:
        url, where = f"gs://{options.bucket}", f"--location={options.location}"
        gcloud.call("storage", "buckets", "create", url, where, "--uniform-bucket-level-access")
    return 0


def _step(tpu: QueuedTpu, options: argparse.Namespace) -> int:
    match options.action:
        case "create":
            tpu.create(_request(options))
        case "wait":
            tpu.wait()
        case "copy":
            tpu.copy()
        case "install":
            tpu.install()
        case "logs":
            return tpu.logs()
        case "stop":
            return tpu.stop()
        case "fetch":
            check_name("--to", options.to, r"[^-:\s][^:\n]*", "a local folder, without a colon")
            tpu.fetch(check_path("the path", options.path), Path(options.to))
        case "status":
            state, reason = tpu.gcloud.describe(tpu.name)
            if not options.dry_run:
                print(f"{tpu.name}: {state} {reason}".rstrip())
        case "delete":
            tpu.delete()
    return 0


def _request(options: argparse.Namespace) -> Request:
    fields = Request.__dataclass_fields__
    return check_request(Request(**{name: getattr(options, name) for name in fields}))


def _parser() -> argparse.ArgumentParser:
    usage = "python -m launch.tpu ACTION [NAME] [options] [-- COMMAND]"
    parser = Parser("python -m launch.tpu", description=ABOUT, usage=usage)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help=argparse.SUPPRESS)
    for name, text in _HELP.items():
        needs_command = name in ("run", "train")
        words = "" if name in _WITHOUT_NAME else " NAME"
        end = " -- COMMAND" if needs_command else ""
        action = actions.add_parser(
            name,
            usage=f"python -m launch.tpu {name}{words} [options]{end}",
            description=text,
            epilog=f"COMMAND is python -m experiments.NAME … or python -m dl …, for example: {EXAMPLE}"
            if end
            else None,
        )
        if name not in _WITHOUT_NAME:
            action.add_argument("name", metavar="NAME", help="Name of the queued resource.")
        action.add_argument("--project", metavar="ID", required=True, help="ID of the Google Cloud project.")
        if name != "setup":
            action.add_argument(
                "--zone", metavar="ZONE", required=True, help="Zone of the TPU, such as us-central1-a."
            )
        add_dry_run(action)
        _add_own(name, action)
    return parser


def _add_own(name: str, action: argparse.ArgumentParser) -> None:
    """Adds the options that only some actions have."""
    if name == "setup":
        action.add_argument(
            "--bucket", metavar="NAME", help="Name of a bucket to create for runs, without gs://."
        )
        action.add_argument(
            "--location",
            metavar="REGION",
            default="us-central1",
            help="Region of the bucket. Default: %(default)s.",
        )
    if name in ("create", "train"):
        _add_request(action)
    if name in ("copy", "install", "run", "logs", "stop", "fetch", "train"):
        action.add_argument(
            "--tunnel-through-iap", action="store_true", help="Reach hosts without external addresses."
        )
    if name in ("wait", "train"):
        action.add_argument(
            "--poll",
            metavar="SECONDS",
            type=float,
            default=30.0,
            help="Seconds between two questions about the state. Default: 30.",
        )
    if name == "fetch":
        action.add_argument("path", metavar="PATH", help="Path that the command wrote, such as runs/mnist.")
        action.add_argument(
            "--to", metavar="FOLDER", default="runs", help="Local folder to copy it into. Default: runs."
        )
    if name == "train":
        action.add_argument(
            "--restarts",
            metavar="N",
            type=whole_number(0),
            default=20,
            help="How often a lost TPU is replaced. Default: 20.",
        )
        action.add_argument(
            "--settle",
            metavar="SECONDS",
            type=float,
            default=300.0,
            help="Seconds that a preemption may take to show. Default: 300.",
        )
        action.add_argument("--keep", action="store_true", help="Do not delete the TPU at the end.")


def _add_request(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--accelerator-type",
        metavar="TYPE",
        required=True,
        help="Type and size of the TPU: v5litepod-8 is one host with 8 chips.",
    )
    action.add_argument(
        "--runtime-version",
        metavar="NAME",
        default="",
        help="Software of the hosts. Default: that of the type.",
    )
    action.add_argument(
        "--node-count", metavar="N", type=whole_number(1), default=1, help="Number of slices. Default: 1."
    )
    action.add_argument("--spot", action="store_true", help="Take a cheaper TPU that may be preempted.")
    action.add_argument(
        "--reserved", action="store_true", help="Take the TPU from a reservation of the project."
    )
    action.add_argument(
        "--valid-until-duration",
        metavar="TIME",
        default="",
        help="Longest time in the queue, such as 6h. Default: no limit.",
    )
    action.add_argument("--internal-ips", action="store_true", help="Give the hosts internal addresses only.")
    action.add_argument(
        "--service-account",
        metavar="EMAIL",
        default="",
        help="Account of the hosts. Default: that of the project.",
    )
    action.add_argument(
        "--network", metavar="NAME", default="", help="Network of the hosts. Default: default."
    )
    action.add_argument(
        "--subnetwork",
        metavar="NAME",
        default="",
        help="Subnetwork of the hosts. Default: that of the network.",
    )


if __name__ == "__main__":
    run_as_command(main)
