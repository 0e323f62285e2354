"""Names of precisions; without imports, since the command line reads them at once."""

AS_IS = "as-is"
CODES = ("int8", "int4")
PRECISIONS = (AS_IS, "fp32", "fp16", *CODES)
"""Precisions that every model can have."""
DYNAMIC, STATIC = "int8-dynamic", "int8-static"
INTEGERS = (DYNAMIC, STATIC)
"""Names of precisions whose products are of integers."""
MODULE_PRECISIONS = ("bf16", *INTEGERS)
"""Precisions that only models without a cache can have."""
