"""clusters/kuberay.yaml, without a cluster: its fields, and that the checks of them can fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
KUBERNETES_VERSION = "1.31"
# What KubeRay 1.5 documents of its two kinds, pod templates and the like left to Kubernetes' own
# schema: no package of a registry holds the operator's.
KUBERAY_FIELDS: dict[str, set[str]] = {
    "RayCluster.spec": {
        *(
            "authOptions",
            "autoscalerOptions",
            "enableInTreeAutoscaling",
            "gcsFaultToleranceOptions",
        ),
        *("headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion", "suspend"),
        "workerGroupSpecs",
    },
    "authOptions": {"mode"},
    "autoscalerOptions": {
        *("env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources"),
        *("securityContext", "upscalingMode", "version", "volumeMounts"),
    },
    "headGroupSpec": {
        *("enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType"),
        "template",
    },
    "workerGroupSpecs": {
        *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts"),
        *("rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template"),
    },
    "RayJob.spec": {
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy"),
        *("entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId"),
        *("managedBy", "metadata", "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML"),
        *("shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate"),
        *("suspend", "ttlSecondsAfterFinished"),
    },
    "submitterConfig": {"backoffLimit"},
}


def test_kuberay() -> None:
    documents = list(yaml.safe_load_all((CLUSTERS / "kuberay.yaml").read_text()))
    assert [d["kind"] for d in documents] == ["RayCluster", "RayJob", "NetworkPolicy"]
    check_kubernetes(documents)
    # What the policy lets in is this cluster, the operator and the job's own pod.
    sources = [source for rule in documents[2]["spec"]["ingress"] for source in rule["from"]]
    assert all(sources)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mode: token", "mode: disabled"),
        ("maxReplicas:", "maxReplica:"),
        ("containerPort: 6379", "containerPort: gcs"),
        ("mountPath:", "path:"),
        ("entrypoint:", "command:"),
        ("policyTypes:", "types:"),
        ("rayVersion: 2.60.0", "rayVersion: 2.59.0"),
        ('num-cpus: "0"', "num-cpus: 0"),
    ],
)
def test_broken_kuberay(old: str, new: str) -> None:
    text = (CLUSTERS / "kuberay.yaml").read_text()
    assert old in text
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check_kubernetes(list(yaml.safe_load_all(text.replace(old, new))))


def check_kubernetes(documents: list[dict[str, Any]]) -> None:
    """Kubernetes' published schema for what is its own, KubeRay's documented fields else."""
    for document in documents:
        kind = document["kind"]
        if not document["apiVersion"].startswith("ray.io/"):
            validate_kubernetes(document)
            continue
        assert document["apiVersion"] == "ray.io/v1"
        assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
        spec = document["spec"]
        check_fields(spec, f"{kind}.spec")
        if kind == "RayCluster":
            check_ray_cluster(spec)
        else:
            assert kind == "RayJob"
            check_fields(spec.get("submitterConfig", {}), "submitterConfig")


def check_ray_cluster(spec: dict[str, Any]) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    constraints = (ROOT / "constraints.txt").read_text().split()
    assert f"ray=={spec['rayVersion']}" in constraints
    assert f":{spec['rayVersion']}-" in (CLUSTERS / "Dockerfile").read_text()
    check_fields(spec["autoscalerOptions"], "autoscalerOptions")
    groups = [("headGroupSpec", spec["headGroupSpec"])]
    groups += [("workerGroupSpecs", group) for group in spec["workerGroupSpecs"]]
    for where, group in groups:
        check_fields(group, where)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        # As a pod of its own, a template is validated like any other.
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
        validate_kubernetes({**pod, "spec": group["template"]["spec"]})
        [container] = group["template"]["spec"]["containers"]
        names = {variable["name"] for variable in container["env"]}
        assert names == {
            *("CONR_RAY_STORAGE", "GRPC_ENABLE_FORK_SUPPORT", "RAY_LOGGER_LEVEL", "WANDB_API_KEY")
        }
        assert "/dev/shm" in [mount["mountPath"] for mount in container["volumeMounts"]]


def check_fields(value: Mapping[str, Any], where: str) -> None:
    unknown = set(value) - KUBERAY_FIELDS[where]
    assert not unknown, f"{where}: {unknown} are unknown"


def validate_kubernetes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
