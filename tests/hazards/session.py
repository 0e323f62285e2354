"""TC7xx: settings, and what a run shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.hazards.building import (
    WIDTH,
    Hazard,
    chain,
    constant,
    layer,
    linear,
    model,
    node,
    rows,
    save,
    tensor,
    weight,
)


def _configured(folder: Path, **options: object) -> Path:
    """The plainest model with a genai_config.json."""
    config = {"model": {"decoder": {"session_options": {"provider_options": [], **options}}}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return save(linear(), folder)


def absent_provider(folder: Path, hazard: bool) -> Path:
    return _configured(folder, provider_options=[{"cuda": {}}] if hazard else [{"cpu": {}}])


def misspelt(folder: Path, hazard: bool) -> Path:
    key = "session.x64quantprecison" if hazard else "session.x64quantprecision"
    return _configured(folder, config_entries={key: "1"})


def threads(folder: Path, hazard: bool) -> Path:
    return _configured(folder, intra_op_num_threads=4096 if hazard else 1)


def bound_to_host(folder: Path, hazard: bool) -> Path:
    """What the offline optimizer writes for convolutions on x86."""
    dims = ["batch", WIDTH, 8, 8]
    domain = "com.microsoft.nchwc." if hazard else ""
    pool = node(f"{domain}MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    return save(model([pool], [tensor("x", dims)], [tensor("y", ["batch", WIDTH, 4, 4])]), folder)


def passed_through(folder: Path, hazard: bool) -> Path:
    outputs = [rows("y"), *([rows("x")] if hazard else [])]
    return save(model([layer()], [rows()], outputs, [weight("w", WIDTH, WIDTH)]), folder)


def refused(folder: Path, hazard: bool) -> Path:
    """A LayerNormalization over an axis that is not there; only the runtime's own inference notices."""
    axis = 9 if hazard else -1
    return save(
        chain([node("LayerNormalization", ["x", "scale"], ["n"], axis=axis)], "n", [weight("scale", WIDTH)]), folder
    )


def infinite(folder: Path, hazard: bool) -> Path:
    middle = [node("Mul", ["x", "huge"], ["m"]), node("Exp", ["m"], ["n"])]
    return save(chain(middle, "n", [constant("huge", 1e4 if hazard else 0.1)]), folder)


def squeezed(folder: Path, hazard: bool) -> Path:
    """Two rows go in the trial and three do not: rows are paired by a Reshape that the file alone does not judge."""
    sizes = [-1, 2, WIDTH] if hazard else [-1, 1, WIDTH]
    made = model(
        [node("Reshape", ["x", "sizes"], ["r"]), layer("r")],
        [rows()],
        [tensor("y", ["pairs", sizes[1], WIDTH])],
        [weight("w", WIDTH, WIDTH), constant("sizes", sizes, np.int64)],
    )
    return save(made, folder)


HAZARDS = (
    Hazard("TC306", "pairs", squeezed, run=True),
    Hazard("TC701", "absent", absent_provider),
    Hazard("TC702", "misspelt", misspelt),
    Hazard("TC703", "threads", threads),
    Hazard("TC704", "bound-to-host", bound_to_host),
    Hazard("TC705", "passed-through", passed_through),
    Hazard("TC706", "refused", refused, run=True, besides=("TC305",)),
    Hazard("TC709", "infinite", infinite, run=True),
)
