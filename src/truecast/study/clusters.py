"""The variants on a Ray cluster: one task each, done again elsewhere when its node is lost.

Every node needs truecast, and the plan's files and the study's folder at the same paths (a shared file system). The
rows come back to the study, which writes them; so nothing that was finished depends on a node.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Sequence
from importlib.util import find_spec
from typing import Any

from truecast.errors import InputError, TruecastError
from truecast.study.local import Task, Watch, complete
from truecast.study.results import Row
from truecast.study.variants import GPU_PROVIDERS

RETRIES = 3
"""How often a task that lost its node is done again."""
WAKE_SECONDS = 0.5


def require_cluster(address: str) -> None:
    """Raises InputError for an address that is none, or when Ray is not installed."""
    if address != "ray" and not address.startswith("ray://"):
        raise InputError(f"--on {address} is no cluster; write ray, or ray://HOST:PORT.")
    if find_spec("ray") is None:
        raise InputError("--on ray needs Ray, which is not installed; run: pip install 'truecast[ray]'.")


def run_on_ray(tasks: Sequence[Task], address: str, told: Watch) -> Generator[Row]:
    """The rows as they come back. Closing the generator ends what still runs.

    Args:
        tasks: what to do; each takes as many processors of a node as its model takes threads.
        address: `ray` for the cluster that this machine belongs to, or `ray://HOST:PORT`.
        told: told of every task that is handed over.

    Raises:
        InputError: there is no cluster at the address.
    """
    import ray

    _connect(address)
    remote = ray.remote(complete)
    waiting: dict[Any, Task] = {}
    try:
        for task in tasks:
            options = {"num_cpus": max(task.plan.measure.threads or (1,)), "max_retries": RETRIES}
            options |= {"num_gpus": 1} if task.variant.provider in GPU_PROVIDERS else {}
            waiting[remote.options(**options).remote(task)] = task
            told(task.variant.name, "measuring", None)
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=WAKE_SECONDS)
            for reference in done:
                yield _row(reference, waiting.pop(reference))
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _connect(address: str) -> None:
    """Joins the cluster, unless this process belongs to one already."""
    import ray

    if ray.is_initialized():
        return
    try:
        ray.init("auto" if address == "ray" else address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = os.environ.get("RAY_ADDRESS", "this machine") if address == "ray" else address
        raise InputError(
            f"There is no Ray cluster at {where}; start one with `ray start --head`, or give its address."
        ) from error


def _row(reference: Any, task: Task) -> Row:
    """The row of a task that ended, or one that says why it did not come back."""
    import ray

    try:
        row: Row = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, TruecastError) else error
        reason = f"the task failed on its node: {str(cause).strip().splitlines()[-1]}"
        return task.row({"reason": reason}, 0.0)
    except ray.exceptions.RayError as error:
        reason = f"its node was lost {RETRIES + 1} times: {str(error).strip().splitlines()[0]}"
        return task.row({"reason": reason}, 0.0)
    return row
