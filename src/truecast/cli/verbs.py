"""The help of a verb: its options in groups, and examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

from truecast.cli.talk import HELP
from truecast.request.options import HEADINGS, options

OPTIONS, SAMPLING = "Options", "Sampling"
GROUPS: Mapping[str, str] = {name: said.group for name, said in options() if said.group is not None} | dict.fromkeys(
    ("temperature", "top_k", "top_p", "seed"), SAMPLING
)
"""The heading of an option by its name; what has none stands first, under Options."""
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "inspect": ("truecast inspect checkpoint", "truecast inspect model.gguf --json"),
    "export": (
        "truecast export checkpoint out",
        "truecast export checkpoint out --precision int4 --keep lm_head=int8",
        "truecast export checkpoint out --target genai --precision as-is",
        "truecast export encoder out --precision int8-dynamic",
    ),
    "verify": ("truecast verify out", "truecast verify out --against checkpoint --all"),
    "diagnose": ("truecast diagnose model.onnx", "truecast diagnose model.onnx --provider cuda --run"),
    "study": ("truecast study plan.toml --out study",),
    "run": ('truecast run out "Once upon a time"', 'truecast run out "Hello" --temperature 0.8 --seed 7'),
}


class Verb(TyperCommand):
    """A verb whose help has headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options without a group, and the groups that the verb has options of."""
        sections: dict[str, list[tuple[str, str]]] = {
            "Arguments": [],
            OPTIONS: [],
            **{name: [] for name in (*HEADINGS, SAMPLING)},
        }
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections[_group(param)].append(record)
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Options of all verbs, and examples."""
        examples = "".join(f"  {line}\n" for line in EXAMPLES.get(self.name or "", ()))
        formatter.write(f"\n{HELP}" + (f"\nExamples\n{examples}" if examples else ""))


def _group(param: Any) -> str:
    if param.param_type_name == "argument":
        return "Arguments"
    return GROUPS.get(param.name, OPTIONS)
