"""Names of precisions whose products are of integers; without imports, since the command line reads them at once."""

DYNAMIC, STATIC = "int8-dynamic", "int8-static"
INTEGERS = (DYNAMIC, STATIC)
"""Names of precisions whose products are of integers."""
