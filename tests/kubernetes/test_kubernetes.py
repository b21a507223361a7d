"""profiles/kubernetes on a stand-in for the cluster (standin.py says what it replaces); runs in its own environment.

make test-kubernetes
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

# `make test-kubernetes` has an environment of its own, and there its absence is an error
if Path(sys.prefix).parent.name != "kubernetes":
    pytest.importorskip("kubernetes_validate", reason="make test-kubernetes installs it")

import kubernetes.client
import kubernetes_validate
import yaml
from snakemake_executor_plugin_kubernetes import PersistentVolume
from snakemake_executor_plugin_kubernetes_volume import check_on_volume, on_volume
from snakemake_interface_common.exceptions import WorkflowError

from scripts.lib.files import read_manifest
from tests.kubernetes import standin
from tests.lib import project

pytestmark = pytest.mark.timeout(2400)  # the finished demo may have to be built first

BIN = Path(sys.executable).parent
ROOT = project.ROOT
MANIFESTS = list(yaml.safe_load_all((ROOT / "profiles/kubernetes/cluster.yaml").read_text()))
LIGHT = ["results/split/split.json", "results/frames/manifest.json", "results/config.json"]
COMMAND = ["snakemake", "--workflow-profile", "profiles/kubernetes"]
FASTER = ["--seconds-between-status-checks", "1", "--latency-wait", "5"]


def variables(**extra: str) -> dict[str, str]:
    """This test's Snakemake first, as the image has it."""
    found = project.environment(**extra)
    return found | {"PATH": f"{BIN}:{found['PATH']}"}


def call(clone: Path, *command: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*command], cwd=clone, env=variables(**extra), capture_output=True, text=True, timeout=1500, check=False
    )
    if check:
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def on_cluster(cluster: standin.Cluster, clone: Path, *options: str, check: bool = True) -> str:
    """Run through the cluster; the volume is the folder above the clone, mounted where it lies."""
    volume = ["--kubernetes-volume-persistent-volumes", f"embodied-qa-project:{clone.parent}"]
    done = call(
        clone, *COMMAND, *options, *FASTER, *volume, check=check, KUBECONFIG=str(cluster.kubeconfig), EQA_DVC_COMMIT="0"
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """A clone in which the light rules ran through the stand-in, group by group."""
    folder = tmp_path_factory.mktemp("volume")
    clone = project.make_clone(folder / "project")
    with standin.Cluster(tmp_path_factory.mktemp("cluster"), variables()) as cluster:
        output = on_cluster(cluster, clone, *LIGHT)
    return cluster, clone, output


def test_the_profile_plans_the_demo(light):
    _, clone, _ = light
    planned = call(clone, *COMMAND, "-n", "--quiet", "rules").stdout
    assert "train_adapter" in planned


def test_light_rules_run_to_their_targets(light):
    cluster, clone, output = light
    assert cluster.refused == []
    assert all((clone / name).is_file() for name in LIGHT), output[-3000:]
    assert all(job.exit_code == 0 for job in cluster.jobs.values())


def test_files_inside_folders_are_there_for_later_jobs(light):
    """Frames are declared by their manifest alone; join_frames, another pod's work, found and checked every one."""
    cluster, clone, _ = light
    assert cluster.submitted("sample_frames")
    assert cluster.submitted("join_frames")
    assert len(list((clone / "results/frames").rglob("000.jpg"))) >= 40


def test_steps_of_seconds_share_a_pod(light):
    cluster, _, _ = light
    prepare = cluster.submitted("split_questions")
    assert len(prepare) == 1
    assert {"make_demo_episodes", "index_episodes", "split_questions"} <= set(prepare[0].rules)


def test_a_local_dry_run_agrees(light):
    _, clone, _ = light
    assert "Nothing to be done" in call(clone, "snakemake", "-n", *LIGHT).stdout


def test_jobs_work_on_the_volume_with_limits_and_shared_memory(light):
    cluster, clone, _ = light
    for job in cluster.jobs.values():
        pod = job.body["spec"]["template"]["spec"]
        container = pod["containers"][0]
        assert container["workingDir"] == str(clone)
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims == ["embodied-qa-project"]
        assert "/dev/shm" in [mount["mountPath"] for mount in container["volumeMounts"]]
        resources = container["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        assert pod["restartPolicy"] == "Never"
        assert "nvidia.com/gpu" not in resources["limits"]


def test_no_secret_outlives_its_run_and_none_holds_the_environment(light):
    cluster, _, _ = light
    assert ("delete", "secrets") in cluster.asked
    assert all(not secret.get("data") for secret in cluster.secrets.values())


def test_the_role_allows_what_was_asked_and_no_more(evicted):
    cluster, _, _ = evicted
    role = next(part for part in MANIFESTS if part["kind"] == "Role")
    allowed = {(verb, name) for rule in role["rules"] for name in rule["resources"] for verb in rule["verbs"]}
    assert cluster.asked == allowed


@pytest.mark.parametrize("part", MANIFESTS, ids=lambda part: part["kind"])
@pytest.mark.parametrize("version", ["1.29", "1.34", "1.37"])
def test_manifests_are_valid(part, version):
    kubernetes_validate.validate(part, version, strict=True)


def test_manifests_and_profile_name_the_same_things():
    profile = yaml.safe_load((ROOT / "profiles/kubernetes/config.yaml").read_text())
    by_kind = {part["kind"]: part for part in MANIFESTS}
    claim, _, path = profile["kubernetes-volume-persistent-volumes"].partition(":")
    desk = by_kind["Pod"]["spec"]
    assert by_kind["PersistentVolumeClaim"]["metadata"]["name"] == claim
    assert desk["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    assert desk["containers"][0]["volumeMounts"][0]["mountPath"] == path == desk["containers"][0]["workingDir"]
    assert desk["containers"][0]["image"] == profile["container-image"]


@pytest.fixture(scope="module")
def evicted(finished_demo, tmp_path_factory):
    """Training anew through the stand-in, its pod killed after the first complete checkpoint."""
    clone = project.copy_clone(finished_demo, tmp_path_factory.mktemp("volume") / "project")
    before = (clone / "results/adapter/adapter_model.safetensors").read_bytes()
    subprocess.run(["rm", "-rf", str(clone / "work")], check=True)
    first = []

    def evict(job: standin.Job) -> bool:
        if "train_adapter" not in job.rules or first:
            return False
        first.extend(sorted(clone.glob("work/train/*/**/checkpoint-*/complete.json")))
        return bool(first)

    with standin.Cluster(tmp_path_factory.mktemp("cluster"), variables(), evict) as cluster:
        output = on_cluster(cluster, clone, "--forcerun", "train_adapter", "--until", "train_adapter")
    return cluster, clone, (before, first, output)


def test_training_goes_on_from_its_checkpoint_after_the_pod_was_killed(evicted):
    cluster, clone, (before, first, output) = evicted
    jobs = cluster.submitted("train_adapter")
    assert [job.exit_code for job in jobs] == [standin.EVICTED, 0], output[-3000:]
    assert first
    speed = yaml.safe_load((clone / "results/train_log/speed.json").read_text())
    assert speed["resumed_from_step"] > 0
    assert (clone / "results/adapter/adapter_model.safetensors").read_bytes() == before


def test_the_second_try_asks_for_more_memory_and_the_first_one_left_its_log(evicted):
    cluster, clone, (_, _, output) = evicted
    asked = [
        job.body["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        for job in cluster.submitted("train_adapter")
    ]
    first, second = (int(text.removesuffix("M")) for text in asked)
    weights = sum(record["size"] for record in read_manifest(clone / "models/base/manifest.json")["files"].values())
    assert first == int(3500 + weights / 1e6)  # rules/train.smk: beside the model's weights
    assert second == 2 * first
    assert list((clone / ".snakemake").rglob("kubernetes-logs/*.log")), output[-2000:]


def test_what_the_cluster_made_goes_through_s3_to_a_clone_that_has_nothing_to_do(evicted, tmp_path):
    """`dvc push` at the desk, `dvc pull` anywhere: the adapter is the cluster's, the other results the local run's."""
    _, made, _ = evicted
    clone = project.copy_clone(made, tmp_path / "desk")
    keys = {"AWS_ACCESS_KEY_ID": "test-id", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # moto and DVC are in the light environment
    line = [ROOT / ".venv/bin/python", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=variables(**keys))
    try:
        url = f"http://127.0.0.1:{port}"
        make_bucket(url)
        # the page shows the resumed training's curve; DVC takes the results at the end of a whole run
        call(clone, "snakemake", "--cores", "2")
        call(clone, "dvc", "remote", "add", "-q", "-f", "-d", "store", "s3://results/eqa")
        call(clone, "dvc", "remote", "modify", "store", "endpointurl", url)
        call(clone, "git", "add", "-A")
        call(clone, "git", "commit", "-q", "-m", "made on a cluster")
        call(clone, "dvc", "push", "-q", **keys)
        fresh = tmp_path / "fresh"
        call(tmp_path, "git", "clone", "-q", str(clone), str(fresh))
        project.link_environments(fresh)
        call(fresh, "dvc", "pull", "-q", **keys)
    finally:
        server.terminate()
        server.wait()
    assert "Nothing to be done" in call(fresh, "snakemake", "-n").stdout
    adapter = "results/adapter/adapter_model.safetensors"
    assert (fresh / adapter).read_bytes() == (made / adapter).read_bytes()


def make_bucket(url: str) -> None:
    """An empty bucket on moto's server, as soon as it answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            # moto asks for no signature
            urllib.request.urlopen(urllib.request.Request(f"{url}/results", method="PUT"), timeout=10).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.2)


def test_training_asks_for_one_gpu_and_tolerates_gpu_nodes(evicted):
    cluster, _, _ = evicted
    pod = cluster.submitted("train_adapter")[0].body["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def rendered(gpu: str) -> kubernetes.client.V1Job:
    """A job as the pinned plugin renders it, in short."""
    client = kubernetes.client
    asked = {"cpu": "950m", "nvidia.com/gpu": gpu}
    container = client.V1Container(
        name="snakemake",
        volume_mounts=[client.V1VolumeMount(name="workdir", mount_path="/workdir")],
        resources=client.V1ResourceRequirements(requests=dict(asked), limits=dict(asked)),
    )
    toleration = client.V1Toleration(key="nvidia.com/gpu", operator="Equal", value="present", effect="NoSchedule")
    pod = client.V1PodSpec(containers=[container], tolerations=[toleration], volumes=[client.V1Volume(name="workdir")])
    return client.V1Job(spec=client.V1JobSpec(template=client.V1PodTemplateSpec(spec=pod)))


def test_a_gpu_switched_off_asks_for_none_and_tolerates_nothing():
    pod = on_volume(rendered("0"), Path("/project"), 1000, 100).spec.template.spec
    assert pod.tolerations is None
    assert "nvidia.com/gpu" not in pod.containers[0].resources.requests | pod.containers[0].resources.limits
    assert (pod.security_context.run_as_user, pod.security_context.fs_group) == (1000, 100)


def test_a_project_off_the_volume_is_refused_with_the_way_out():
    volumes = [PersistentVolume.parse("claim:/project")]
    check_on_volume(Path("/project"), volumes)
    check_on_volume(Path("/project/eqa"), volumes)
    with pytest.raises(WorkflowError, match=r"/home/me lies on no volume .* claim:/project.*run Snakemake in a pod"):
        check_on_volume(Path("/home/me"), volumes)


@pytest.mark.parametrize(
    ("kubeconfig", "part"),
    [("none", "no Kubernetes cluster is named"), ("gone", "the Kubernetes API does not answer"), ("locked", "403")],
)
def test_a_cluster_that_cannot_be_used_is_told_in_one_line(light, tmp_path, kubeconfig, part):
    _, clone, _ = light
    with standin.Cluster(tmp_path / "cluster", {}, locked=True) as cluster:
        if kubeconfig == "locked":
            output = on_cluster(cluster, clone, "results/config.json", "--force", check=False)
    if kubeconfig != "locked":  # the stand-in has gone by now
        if kubeconfig == "none":
            cluster.kubeconfig.unlink()
        output = on_cluster(cluster, clone, "results/config.json", "--force", check=False)
    assert part in output, output[-2000:]
    assert "Traceback" not in output


def test_the_pinned_plugin_alone_would_lose_files_in_folders(light):
    """The reason for profiles/kubernetes/plugin: without it Snakemake wants a storage provider for declared files."""
    cluster, clone, _ = light
    command = ["snakemake", "--executor", "kubernetes", "--jobs", "1", "--workflow-profile", "none", LIGHT[0], "-F"]
    done = call(clone, *command, check=False, KUBECONFIG=str(cluster.kubeconfig))
    assert done.returncode
    assert "default storage provider" in done.stdout + done.stderr
