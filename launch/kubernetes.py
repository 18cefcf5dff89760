"""Kubernetes: `python -m launch.kubernetes ACTION NAME …`."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from launch.cli import Parser, add_dry_run, run_as_command, split, whole_number
from launch.command import EXAMPLE, Command, check_command, check_name
from launch.errors import UserError
from launch.manifests import Manifest, Workload, indexed_job, job_set, tpu_shape
from launch.steps import FOLDER, Steps

ABOUT = """Run a command on a Kubernetes cluster, in an image that launch.docker has built.

  submit    write the manifest, and apply it
  status    show the state of the pods
  logs      show the output of the first process, and on to its end
  delete    delete the job and its pods; they save first

--tpu and --gpus submit one training as a JobSet, which must be installed in the cluster. --workers submits
the workers of a sweep as an Indexed Job.

examples:
  python -m launch.kubernetes submit mnist --tpu v5e:2x4 --image MY-IMAGE --dry-run \\
    -- python -m experiments.mnist_cnn --workdir gs://MY-BUCKET/mnist
  python -m launch.kubernetes submit gpt --gpus 8 --nodes 2 --image MY-IMAGE --claim my-volume \\
    -- python -m experiments.char_gpt --workdir /runs/gpt
  python -m launch.kubernetes submit tune --workers 8 --image MY-IMAGE --claim my-volume \\
    -- python -m dl sweep mnist_mlp learning_rate=log:1e-4:1e-1 --workdir /runs/tune --worker"""

_HELP = {
    "submit": "Write the manifest of a job and apply it.",
    "status": "Show the state of the pods of a job.",
    "logs": "Show the output of the first process of a job, and on to its end.",
    "delete": "Delete a job and its pods. The pods get SIGTERM and save first.",
}
_NAME = r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?"
_NAME_FORM = "up to 40 lower-case letters, digits and dashes, beginning with a letter"


def main(argv: Sequence[str]) -> int:
    """Runs one action. Returns the exit status of `kubectl`."""
    own, words = split(argv)
    options = _parser().parse_args(own or ["--help"])
    check_name("the name", options.name, _NAME, _NAME_FORM)
    if options.namespace:
        check_name("--namespace", options.namespace, _NAME, _NAME_FORM)
    if options.context:
        check_name("--context", options.context, r"[A-Za-z0-9][A-Za-z0-9@._:/-]*", "a name without spaces")
    kubectl = ["kubectl", *[f"--context={options.context}"] * bool(options.context)]
    kubectl += [f"--namespace={options.namespace}"] * bool(options.namespace)
    steps = Steps(options.dry_run)
    if options.action == "submit":
        manifest = _manifest(options, check_command(words))
        path = FOLDER / f"{options.name}.json"
        steps.write(path, json.dumps(manifest, indent=2))
        return steps.run([*kubectl, "apply", f"--filename={path}"]).status
    if words:
        raise UserError(f"{options.action} does not take a command; leave out what follows --")
    return steps.run([*kubectl, *_words(options)]).status


def _words(options: argparse.Namespace) -> list[str]:
    """Returns what follows `kubectl` for the actions that only name a job."""
    key = "batch.kubernetes.io/job-name" if options.sweep else "jobset.sigs.k8s.io/jobset-name"
    kind = "job" if options.sweep else "jobset"
    of_job = f"--selector={key}={options.name}"
    match options.action:
        case "status":
            return ["get", "pods", of_job, "--output=wide"]
        case "logs":
            first = "batch.kubernetes.io/job-completion-index=0"
            return ["logs", f"{of_job},{first}", "--follow", "--tail=-1"]
        case _:
            return ["delete", f"{kind}/{options.name}"]


def _manifest(options: argparse.Namespace, command: Command) -> Manifest:
    chosen = [name for name in ("tpu", "gpus", "workers") if getattr(options, name)]
    if len(chosen) != 1:
        raise UserError("submit needs one of --tpu, --gpus and --workers; give exactly one")
    _check_texts(options)
    resources: dict[str, str] = {}
    labels: dict[str, str] = {}
    hosts, slices = options.nodes, 1
    if options.tpu:
        labels, chips, hosts = tpu_shape(options.tpu, options.chips_per_host)
        resources["google.com/tpu"], slices = str(chips), options.slices
    elif options.gpus:
        resources["nvidia.com/gpu"] = str(options.gpus)
        if options.gpu_type:
            labels["cloud.google.com/gke-accelerator"] = options.gpu_type
    else:
        hosts = options.workers
    for name in ("cpu", "memory"):
        if getattr(options, name):
            resources[name] = getattr(options, name)
    same = (
        "name",
        "image",
        "spot",
        "namespace",
        "service_account",
        "claim",
        "mount",
        "max_restarts",
        "grace_seconds",
    )
    fields: dict[str, Any] = {name: getattr(options, name) for name in same}
    work = Workload(
        **fields, command=command, hosts=hosts, slices=slices, resources=resources, node_labels=labels
    )
    return indexed_job(work) if options.workers else job_set(work)


def _check_texts(options: argparse.Namespace) -> None:
    image = (
        r"[a-z0-9][a-z0-9._-]*(:\d+)?(/[a-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?(@sha256:[0-9a-f]{64})?"
    )
    check_name("--image", options.image, image, "the name of an image, such as my-registry/dl:1")
    lower = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
    for what in ("service_account", "claim", "gpu_type"):
        if text := getattr(options, what):
            check_name(
                f"--{what.replace('_', '-')}", text, lower, "lower-case letters, digits, dots and dashes"
            )
    if options.cpu:
        check_name("--cpu", options.cpu, r"\d+m?|\d+\.\d+", "a number of cores, such as 4 or 500m")
    if options.memory:
        check_name("--memory", options.memory, r"\d+([KMGT]i?)?", "a size, such as 16Gi")
    check_name(
        "--mount", options.mount, r"(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+", "an absolute path, such as /runs"
    )


def _parser() -> argparse.ArgumentParser:
    usage = "python -m launch.kubernetes ACTION NAME [options] [-- COMMAND]"
    parser = Parser("python -m launch.kubernetes", usage=usage, description=ABOUT)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help=argparse.SUPPRESS)
    for name, text in _HELP.items():
        end = " -- COMMAND" if name == "submit" else ""
        action = actions.add_parser(
            name,
            usage=f"python -m launch.kubernetes {name} NAME [options]{end}",
            description=text,
            epilog=f"COMMAND is python -m experiments.NAME … or python -m dl …, for example: {EXAMPLE}"
            if end
            else None,
        )
        action.add_argument("name", metavar="NAME", help="Name of the job.")
        action.add_argument("--context", metavar="NAME", default="", help="Cluster, as kubectl names it.")
        action.add_argument(
            "--namespace", metavar="NAME", default="", help="Namespace. Default: that of the context."
        )
        if end:
            _add_submit(action)
        else:
            action.add_argument(
                "--sweep", action="store_true", help="The job is a sweep, submitted with --workers."
            )
        add_dry_run(action)
    return parser


def _add_submit(action: argparse.ArgumentParser) -> None:
    text, number = action.add_argument, whole_number(1)
    text("--image", metavar="IMAGE", required=True, help="Image of the containers.")
    text("--tpu", metavar="TYPE:TOPOLOGY", default="", help="A slice of TPUs, such as v5e:4x4 or v5p:2x2x4.")
    text("--slices", metavar="N", type=number, default=1, help="Number of slices of TPUs. Default: 1.")
    text(
        "--chips-per-host",
        metavar="N",
        type=number,
        default=0,
        help="TPU chips of a host. Default: all of a topology with one host, else 4.",
    )
    text("--gpus", metavar="N", type=number, default=0, help="GPUs of each node.")
    text("--gpu-type", metavar="NAME", default="", help="GPUs as GKE names them, such as nvidia-h100-80gb.")
    text("--nodes", metavar="N", type=number, default=1, help="Number of nodes with GPUs. Default: 1.")
    text("--workers", metavar="N", type=number, default=0, help="Workers of a sweep.")
    text("--cpu", metavar="N", default="", help="CPU cores of each pod.")
    text("--memory", metavar="SIZE", default="", help="Memory of each pod, such as 16Gi.")
    text("--spot", action="store_true", help="Use cheaper nodes that may be taken away.")
    text("--service-account", metavar="NAME", default="", help="Account of the pods, for gs:// paths.")
    text("--claim", metavar="NAME", default="", help="Claim of a volume for data and runs.")
    text("--mount", metavar="PATH", default="/runs", help="Where the volume is mounted. Default: /runs.")
    text(
        "--max-restarts",
        metavar="N",
        type=whole_number(0),
        default=20,
        help="Starts after a failure. Default: 20.",
    )
    text(
        "--grace-seconds",
        metavar="N",
        type=number,
        default=120,
        help="Seconds that a pod has to save when it is taken away. Default: 120.",
    )


if __name__ == "__main__":
    run_as_command(main)
