"""Float8 weights with float scales, as DeepSeek, FBGEMM and transformers store them.

Data flow: `weight` in float8 and its scales, one for all, one for each row, or one for each block → a codebook.

`weight_scale_inv` is multiplied, despite its name. Blocks are those of `weight_block_size`, else 128x128.
"""

from __future__ import annotations

from truecast.checkpoint.schemes.attendants import ATTENDANTS, reading
from truecast.checkpoint.schemes.grids import Block
from truecast.checkpoint.schemes.minifloats import DEFAULT_BLOCKS, FLOAT8, float8
from truecast.checkpoint.schemes.model import Module, Reading, Scheme, Settings

NAME = "FP8"
INVERSE, PLAIN = "weight_scale_inv", "weight_scale"


def stated_blocks(settings: Settings) -> tuple[Block, ...]:
    """The shapes of blocks that config.json states, else the usual ones."""
    block = settings.quantization.get("weight_block_size")
    if isinstance(block, list | tuple) and len(block) == len(DEFAULT_BLOCKS[0]):
        return ((int(block[0]), int(block[1])),)
    return DEFAULT_BLOCKS


def _claims(module: Module, settings: Settings) -> bool:
    weight = module.get("weight")
    return weight is not None and weight.dtype in FLOAT8 and (INVERSE in module.parts or PLAIN in module.parts)


def _read(module: Module, settings: Settings) -> Reading:
    if INVERSE in module.parts and PLAIN in module.parts:
        raise module.fail(f"has both {INVERSE} and {PLAIN}, which of them scales it is not known")
    scale = INVERSE if INVERSE in module.parts else PLAIN
    return reading(module, lambda module: float8(module, "", scale, stated_blocks(settings)))


SCHEME = Scheme(
    name=NAME,
    methods=frozenset({"fp8", "fbgemm_fp8"}),
    marks=(INVERSE, PLAIN),
    parts=frozenset({"weight", INVERSE, PLAIN} | ATTENDANTS),
    claims=_claims,
    read=_read,
)
