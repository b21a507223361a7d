"""snakemake-executor-plugin-kubernetes for a project that lies on a volume which all pods mount.

The plugin takes for granted that pods share no files: Snakemake then sends every declared input and output through a
storage provider, and nothing else. Here a folder's manifest is declared and its files are not, so they would stay
behind in the pod. This executor says that files are shared, and lets each job work in the folder where Snakemake itself
works, on a persistent volume. Rendering, watching and cleaning up of jobs are the plugin's own; what differs is done to
a job's specification right before it is sent (`on_volume`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import kubernetes.client
import snakemake_executor_plugin_kubernetes as stock
from kubernetes.config.config_exception import ConfigException
from snakemake_interface_common.exceptions import WorkflowError
from urllib3.exceptions import MaxRetryError

GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu")
WORKDIR = "workdir"  # the plugin's name for the empty folder that its jobs start in
SHARED_MEMORY = "/dev/shm"  # 64 MB by default in a pod: too little for torch's data loader workers

common_settings = replace(
    stock.common_settings,
    implies_no_shared_fs=False,
    job_deploy_sources=False,  # the sources lie on the volume too
    auto_deploy_default_storage_provider=False,
)


@dataclass
class ExecutorSettings(stock.ExecutorSettings):
    """The plugin's own settings: --kubernetes-volume-namespace, --kubernetes-volume-persistent-volumes and so on."""


def check_on_volume(folder: Path, volumes: Sequence[stock.PersistentVolume]) -> None:
    """Whether `folder` lies on one of the volumes.

    Raises:
        WorkflowError: it does not; names it, the volumes and the way out.
    """
    if any(folder.is_relative_to(volume.path) for volume in volumes):
        return
    there = ", ".join(volume.unparse() for volume in volumes) or "none"
    raise WorkflowError(
        f"{folder} lies on no volume that the jobs mount (kubernetes-volume-persistent-volumes: {there}); run Snakemake "
        "in a pod that mounts the volume, in a folder on it (docs/cluster.md)"
    )


def on_volume(body: kubernetes.client.V1Job, folder: Path, user: int, group: int) -> kubernetes.client.V1Job:
    """The job, to be run in `folder` by the user who runs Snakemake.

    Args:
        body: as the plugin renders it; changed in place.
        folder: Snakemake's working directory, on a volume that the job mounts.
        user, group: of the process that runs Snakemake, so that all files on the volume belong to one user.
    """
    pod = body.spec.template.spec
    container = pod.containers[0]
    container.working_dir = str(folder)
    container.volume_mounts = [mount for mount in container.volume_mounts if mount.name != WORKDIR]
    pod.volumes = [volume for volume in pod.volumes if volume.name != WORKDIR]
    memory = kubernetes.client.V1EmptyDirVolumeSource(medium="Memory")  # counts towards the job's memory
    pod.volumes.append(kubernetes.client.V1Volume(name="shared-memory", empty_dir=memory))
    container.volume_mounts.append(kubernetes.client.V1VolumeMount(name="shared-memory", mount_path=SHARED_MEMORY))
    pod.security_context = kubernetes.client.V1PodSecurityContext(
        run_as_user=user, run_as_group=group, fs_group=group, fs_group_change_policy="OnRootMismatch"
    )
    asked = container.resources.requests or {}
    for name in GPU_RESOURCES:
        if asked.get(name) == "0":  # a rule whose GPU the recipe or the profile switched off
            for part in (asked, container.resources.limits or {}):
                part.pop(name, None)
    if not any(name in asked for name in GPU_RESOURCES):
        pod.tolerations = None
    for toleration in pod.tolerations or []:
        toleration.operator, toleration.value = "Exists", None  # the value of such a taint differs between clouds
    return body


class Jobs(kubernetes.client.BatchV1Api):
    """The API for jobs, which puts each on the volume."""

    def create_namespaced_job(self, namespace: str, body: kubernetes.client.V1Job, **kwargs: object) -> object:
        return super().create_namespaced_job(namespace, on_volume(body, Path.cwd(), os.getuid(), os.getgid()), **kwargs)


class Pods(kubernetes.client.CoreV1Api):
    """The API for pods, with the log of a failed job.

    The plugin asks for the log of the container's previous run. A job's container runs once, so Kubernetes refuses
    that, and the refusal would end the whole run instead of trying the job again.
    """

    def read_namespaced_pod_log(self, name: str, namespace: str, previous: bool = False, **kwargs: object) -> str:
        try:
            return super().read_namespaced_pod_log(name, namespace, **kwargs)
        except kubernetes.client.ApiException as error:
            return f"the log of pod {name} cannot be had any more ({error.reason})"


class Executor(stock.Executor):
    """The plugin's executor on a shared volume."""

    def __post_init__(self) -> None:
        check_on_volume(Path.cwd(), self.workflow.executor_settings.persistent_volumes)
        try:
            super().__post_init__()
        except ConfigException as error:
            raise WorkflowError(
                f"no Kubernetes cluster is named ({error}); run Snakemake in a pod with a service account, or set KUBECONFIG"
            ) from None
        except kubernetes.client.ApiException as error:
            raise WorkflowError(
                f"Kubernetes refuses the run's secret ({error.status} {error.reason}); apply "
                "profiles/kubernetes/cluster.yaml in the namespace of kubernetes-volume-namespace"
            ) from None
        except MaxRetryError as error:
            raise WorkflowError(
                f"the Kubernetes API does not answer ({str(error.reason)[:200]}); look at KUBECONFIG and the network"
            ) from None

    # the plugin makes new clients when its credentials ran out, so they are replaced wherever they are set
    @property
    def batchapi(self) -> Jobs:
        return self._batchapi

    @batchapi.setter
    def batchapi(self, _: object) -> None:
        self._batchapi = Jobs()

    @property
    def kubeapi(self) -> Pods:
        return self._kubeapi

    @kubeapi.setter
    def kubeapi(self, _: object) -> None:
        self._kubeapi = Pods()
