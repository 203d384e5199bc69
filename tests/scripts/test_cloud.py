"""compose.yaml and scripts/cloud/kubernetes.yaml: they agree with the Dockerfile, with torchrun and with themselves."""

import re
from pathlib import Path
from typing import Any

import yaml
from torch.distributed.run import parse_args

from tests.runs import PROJECT, cached_settings

DOCKERFILE = (PROJECT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((PROJECT / "compose.yaml").read_text())["services"]["coldstart"]
SERVICE, JOB = yaml.safe_load_all((PROJECT / "scripts/cloud/kubernetes.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def of_the_image(variable: str) -> str:
    found = re.search(rf"\b{variable}=(\S+)", DOCKERFILE)
    assert found, variable
    return found[1]


def places(mounts: list[dict[str, Any]], key: str) -> dict[str, bool]:
    """Where something is mounted, and whether it can only be read."""
    return {mount[key]: mount.get("read_only", mount.get("readOnly", False)) for mount in mounts}


def test_both_wait_longer_for_a_checkpoint_than_torchrun() -> None:
    seconds = int(of_the_image("TORCH_ELASTIC_SHUTDOWN_TIMEOUT"))
    assert seconds < int(COMPOSE["stop_grace_period"].removesuffix("s"))
    assert seconds < POD["terminationGracePeriodSeconds"]


def test_both_mount_images_that_they_cannot_change() -> None:
    assert of_the_image("IMAGENET_DIR") == "/data"
    assert places(COMPOSE["volumes"], "target") == {"/data": True, "/outputs": False}
    assert places(CONTAINER["volumeMounts"], "mountPath") == {"/data": True, "/outputs": False, "/dev/shm": False}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}


def test_neither_holds_a_key() -> None:
    assert COMPOSE["environment"] == ["WANDB_API_KEY"]
    (key,) = (each for each in CONTAINER["env"] if each["name"] == "WANDB_API_KEY")
    assert "value" not in key and "secretKeyRef" in key["valueFrom"]


def test_the_nodes_and_gpus_of_the_job_are_those_of_torchrun() -> None:
    args = parse_args(CONTAINER["args"])
    assert JOB["spec"]["completionMode"] == "Indexed"
    assert int(args.nnodes) == JOB["spec"]["completions"] == JOB["spec"]["parallelism"]
    assert int(args.nproc_per_node) == CONTAINER["resources"]["limits"]["nvidia.com/gpu"]
    assert args.training_script == "train.py"


def test_the_meeting_point_is_the_first_pod_of_the_job() -> None:
    args = parse_args(CONTAINER["args"])
    pod, service, namespace = args.rdzv_endpoint.split(".")[:3]
    assert (pod, service) == (f"{JOB['metadata']['name']}-0", SERVICE["metadata"]["name"])
    assert POD["subdomain"] == service and SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["publishNotReadyAddresses"] is True  # pods meet before they are ready
    assert SERVICE["spec"]["selector"] == {"batch.kubernetes.io/job-name": JOB["metadata"]["name"]}
    used = {re.sub(r"\W", "", name) for name in (namespace, args.local_addr)}
    assert used <= {each["name"] for each in CONTAINER["env"] if "fieldRef" in each["valueFrom"]}


def test_the_user_is_that_of_the_image_and_not_root() -> None:
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.M)
    assert POD["securityContext"]["runAsUser"] == int(user) and POD["securityContext"]["runAsNonRoot"]


def test_the_options_are_those_of_train(tmp_path: Path) -> None:
    assert COMPOSE["command"] == parse_args(CONTAINER["args"]).training_script_args
    options = cached_settings(*COMPOSE["command"], f"data.root={tmp_path}", "device=cpu")
    assert options.model.name == "lipsformer_swin_tiny"
