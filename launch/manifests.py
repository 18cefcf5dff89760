"""Manifests for Kubernetes, as dicts: a JobSet for one training on many hosts, an Indexed Job for a sweep.

They are written as JSON, which `kubectl` reads as it reads YAML. JSON needs no further library, and no word
of a command can become a number or a truth value in it.

Processes find each other through the environment. `DL_COORDINATOR` is the address of process 0, whose host
name JobSet makes from the names. `DL_NUM_PROCESSES` is the number of processes, and `DL_PROCESS_ID` is the
completion index of the pod. The index counts within a slice: for several slices, no variable is set, and JAX
reads what GKE sets.
"""

import dataclasses
import math
from typing import Any

from launch.command import Command, check_name
from launch.errors import UserError

Manifest = dict[str, Any]

PORT = 8476  # of the coordinator
INDEX = "batch.kubernetes.io/job-completion-index"
WORKER = "worker"  # name of the replicated job and of its container
USER = 1000  # that the image of `launch/Dockerfile` has


@dataclasses.dataclass(frozen=True)
class Chips:
    """The TPUs of one generation, as GKE names them.

    Attributes:
      accelerator: the value of the label `cloud.google.com/gke-tpu-accelerator`.
      dimensions: number of dimensions of a topology.
      largest_host: number of chips of the largest machine with one host.
    """

    accelerator: str
    dimensions: int
    largest_host: int


CHIPS = {
    "v4": Chips("tpu-v4-podslice", 3, 4),
    "v5e": Chips("tpu-v5-lite-podslice", 2, 8),
    "v5p": Chips("tpu-v5p-slice", 3, 4),
    "v6e": Chips("tpu-v6e-slice", 2, 8),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What runs on a cluster.

    Attributes:
      name: the name of the JobSet or the Job.
      image: the image of the containers.
      command: what each container runs.
      hosts: number of pods of one slice, or of the whole training without TPUs.
      slices: number of slices of TPUs.
      resources: what each pod asks for, such as `{"google.com/tpu": 4}`.
      node_labels: labels that a node must have.
      spot: whether nodes may be taken away, for a lower price.
      namespace: the namespace; empty for that of the context.
      service_account: the account of the pods; empty for the default one.
      claim: the claim of a volume for data and runs; empty for none.
      mount: where the volume is mounted.
      max_restarts: how often a training starts again after a failure.
      grace_seconds: seconds between SIGTERM and SIGKILL, in which a run saves.
    """

    name: str
    image: str
    command: Command
    hosts: int = 1
    slices: int = 1
    resources: dict[str, str] = dataclasses.field(default_factory=dict)
    node_labels: dict[str, str] = dataclasses.field(default_factory=dict)
    spot: bool = False
    namespace: str = ""
    service_account: str = ""
    claim: str = ""
    mount: str = "/runs"
    max_restarts: int = 20
    grace_seconds: int = 120

    @property
    def has_tpu(self) -> bool:
        return "google.com/tpu" in self.resources


def tpu_shape(target: str, chips_per_host: int = 0) -> tuple[dict[str, str], int, int]:
    """Returns node labels, chips of a host and number of hosts of a slice.

    Args:
      target: generation and topology, such as `v5e:4x4`.
      chips_per_host: 0 for the largest machine that a topology of one host has, and 4 for more hosts.

    Raises:
      UserError: a target that does not exist, or that does not consist of such hosts.
    """
    generations = "|".join(CHIPS)
    check_name("--tpu", target, rf"({generations}):[1-9]\d?(x[1-9]\d?)+", "such as v5e:4x4 or v5p:2x2x4")
    generation, _, topology = target.partition(":")
    chips = CHIPS[generation]
    sides = [int(side) for side in topology.split("x")]
    if len(sides) != chips.dimensions:
        raise UserError(
            f"--tpu {target} is not valid; a topology of {generation} has {chips.dimensions} numbers"
        )
    total = math.prod(sides)
    per_host = chips_per_host or (total if total <= chips.largest_host else 4)
    if total % per_host:
        raise UserError(f"--tpu {target} has {total} chips, which hosts of {per_host} do not make up")
    labels = {
        "cloud.google.com/gke-tpu-accelerator": chips.accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    return labels, per_host, total // per_host


def job_set(work: Workload) -> Manifest:
    """Returns the JobSet of one training: one pod for each host. After a failure all start again together."""
    annotations = {}
    if work.has_tpu:  # each slice has a node pool for itself
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(work, annotations),
        "spec": {
            # The headless service, so that pods find each other by name before all are ready.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": work.max_restarts,
                "rules": [
                    {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                ],
            },
            "replicatedJobs": [
                {
                    "name": WORKER,
                    "replicas": work.slices,
                    "template": {
                        "spec": {
                            "completionMode": "Indexed",
                            "completions": work.hosts,
                            "parallelism": work.hosts,
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": [_on_mistake()]},
                            "template": _pod(work, _processes(work)),
                        }
                    },
                }
            ],
        },
    }


def indexed_job(work: Workload) -> Manifest:
    """Returns the Indexed Job of a sweep: `hosts` workers, each of which starts again by itself."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(work, {}),
        "spec": {
            "completionMode": "Indexed",
            "completions": work.hosts,
            "parallelism": work.hosts,
            "backoffLimitPerIndex": work.max_restarts,
            "podFailurePolicy": {
                # A worker that lost its node has not failed.
                "rules": [
                    _on_mistake(),
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": _pod(work, []),
        },
    }


def _on_mistake() -> Manifest:
    """Returns the rule that a mistake in the command, exit status 2, is final."""
    return {
        "action": "FailJob",
        "onExitCodes": {"containerName": WORKER, "operator": "In", "values": [2]},
    }


def _metadata(work: Workload, annotations: dict[str, str]) -> Manifest:
    metadata: Manifest = {"name": work.name, "labels": {"app.kubernetes.io/name": "dl"}}
    if work.namespace:
        metadata["namespace"] = work.namespace
    if annotations:
        metadata["annotations"] = annotations
    return metadata


def _processes(work: Workload) -> list[Manifest]:
    """Returns the variables through which the processes of a training find each other."""
    if work.slices > 1 or work.hosts == 1:
        return []
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
    return [
        {"name": "DL_COORDINATOR", "value": f"{work.name}-{WORKER}-0-0.{work.name}:{PORT}"},
        {"name": "DL_NUM_PROCESSES", "value": str(work.hosts)},
        {"name": "DL_PROCESS_ID", "valueFrom": index},
    ]


def _pod(work: Workload, variables: list[Manifest]) -> Manifest:
    """Returns the template of the pods.

    The command stands in `args`, so that the entry point of the image stays process 1 and passes SIGTERM on.
    On a TPU node the devices belong to root; everywhere else the pod runs as the user of the image.
    """
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    if "nvidia.com/gpu" in work.resources:  # NCCL shares memory between the GPUs of a host
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    if work.claim:
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": work.claim}})
        mounts.append({"name": "runs", "mountPath": work.mount})
    user: Manifest = {"runAsUser": 0} if work.has_tpu else {"runAsUser": USER, "runAsNonRoot": True}
    container: Manifest = {
        "name": WORKER,
        "image": work.image,
        "args": list(work.command),
        "env": variables,
        "resources": {"requests": work.resources, "limits": work.resources},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": mounts,
    }
    if work.has_tpu or work.hosts > 1:
        container["ports"] = [{"containerPort": PORT}]
    labels = dict(work.node_labels)
    if work.spot:
        labels["cloud.google.com/gke-spot"] = "true"
    spec: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": work.grace_seconds,
        "securityContext": {**user, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": labels,
        "tolerations": _tolerations(work),
        "containers": [container],
        "volumes": volumes,
    }
    if work.service_account:
        spec["serviceAccountName"] = work.service_account
    return {
        "metadata": {"labels": {"app.kubernetes.io/name": "dl"}},
        "spec": {key: value for key, value in spec.items() if value not in ({}, [])},
    }


def _tolerations(work: Workload) -> list[Manifest]:
    """Returns what lets pods onto nodes with accelerators, which GKE taints, and onto Spot nodes."""
    names = [name for name in ("google.com/tpu", "nvidia.com/gpu") if name in work.resources]
    tolerations: list[Manifest] = [
        {"key": name, "operator": "Exists", "effect": "NoSchedule"} for name in names
    ]
    if work.spot:
        spot = {
            "key": "cloud.google.com/gke-spot",
            "operator": "Equal",
            "value": "true",
            "effect": "NoSchedule",
        }
        tolerations.append(spot)
    return tolerations
