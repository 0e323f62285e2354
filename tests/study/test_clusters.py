"""A study on a Ray cluster of two nodes on this machine, one of which is killed midway: nothing is lost."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.study.building import PLAN, STAND_IN, plan_of
from tests.study.test_process import eventually
from truecast.errors import InputError
from truecast.study.clusters import require_cluster
from truecast.study.running import run_study

SHORT = 'baselines = ["bf16"]\n' + PLAN
STORE_BYTES = 80 * 2**20
"""Of Ray's object store on each node; it takes no less."""


def test_an_address_is_checked_before_anything_runs(tmp_path: Path) -> None:
    for address in ("slurm", "http://host"):
        with pytest.raises(InputError, match="is no cluster; write ray, or ray://HOST:PORT"):
            run_study(plan_of(tmp_path, SHORT), tmp_path / "out", cluster=address)
    assert not (tmp_path / "out").exists()


def test_ray_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truecast.study.clusters.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"run: pip install 'truecast\[ray\]'"):
        require_cluster("ray")


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'truecast[ray]'")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that takes no tasks, and two nodes with one processor each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    made.nodes = [made.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
    made.wait_for_nodes()
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@needs_ray
@pytest.mark.slow
def test_a_killed_node_loses_nothing(tmp_path: Path, cluster: Any) -> None:
    plan = plan_of(tmp_path, SHORT.replace('"int8"]', '"int8", "int4", "fp16"]'))
    (tmp_path / "behaviour.json").write_text(json.dumps({"onnx int4 measure": "crash"} | waiting(plan_names(plan))))
    import threading

    killed: list[str] = []

    def kill_one_when_both_work() -> None:
        file = tmp_path / "calls.txt"
        if eventually(lambda: file.exists() and len(file.read_text().splitlines()) >= 3, 120):
            cluster.remove_node(cluster.nodes[0], allow_graceful=False)
            killed.append("a node")
        time.sleep(0.5)
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill_one_when_both_work)
    killer.start()
    report = run_study(plan, tmp_path / "out", cluster="ray", command=STAND_IN)
    killer.join()
    assert killed
    failed = {row.variant.name: row.reason for row in report.rows if not row.measured}
    assert list(failed) == ["onnx int4"]
    assert "was ended by SIGABRT while being measured: last words" in failed["onnx int4"]
    assert len(report.rows) == 6
    started = (tmp_path / "calls.txt").read_text().splitlines()
    assert len(started) > 1 + 1 + 2 * 4, "the work of the killed node was not done again"


def plan_names(plan: Any) -> list[str]:
    from truecast.study.variants import expand

    return [variant.name for variant in expand(plan)][1:]


def waiting(names: list[str]) -> dict[str, str]:
    """Every variant's first step waits for a file that appears once the node is killed."""
    return {f"{name} {'prepare' if name.startswith('onnx') else 'measure'}": "wait go" for name in names}


@needs_ray
def test_no_cluster_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(InputError, match="There is no Ray cluster at "):
        run_study(plan_of(tmp_path, SHORT), tmp_path / "out", cluster="ray", command=STAND_IN)
