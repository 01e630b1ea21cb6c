"""How fast does preparation read a raw CSV log, and does its memory stay flat as logs grow?

    python -m benchmarks.prepare --rows 1_000_000 10_000_000

Each size is a synthetic log, written as CSV and prepared through the ``table`` source by a
process of its own, whose peak memory is then that of one preparation. The log and the store are
deleted afterwards. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

EVENTS_PER_USER = 200
EVENTS_PER_ITEM = 100

# nothing that is large is imported at the top: Linux counts the memory of the process that
# starts another into the other's peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="for the files, by default a temporary one")
    parser.add_argument("--step", choices=("write", "prepare"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step = {"write": write, "prepare": prepare}[arguments.step]
        print(json.dumps(step(arguments.rows[0], arguments.folder)))
        return
    print(
        "| rows | CSV GB | users | items | seconds | rows/s | peak GB | of it at start | store GB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for rows in arguments.rows:
        print(measure(rows, arguments.folder), flush=True)


def measure(rows: int, folder: Path | None) -> str:
    """The table's line for one size."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        written, prepared = (_run(step, rows, Path(name)) for step in ("write", "prepare"))
    return (
        f"| {written['rows']:,} | {written['bytes'] / 1e9:.2f} "
        f"| {prepared['users']:,} | {prepared['items']:,} "
        f"| {prepared['seconds']:.1f} | {written['rows'] / prepared['seconds']:,.0f} "
        f"| {prepared['peak'] / 1e9:.2f} | {prepared['at_start'] / 1e9:.2f} "
        f"| {prepared['bytes'] / 1e9:.2f} |"
    )


def write(rows: int, folder: Path) -> dict[str, int]:
    """Writes about ``rows`` rows of a synthetic log as log.csv."""
    from data.sources.synthetic import Synthetic

    source = Synthetic(
        users=rows // EVENTS_PER_USER,
        events_per_user=EVENTS_PER_USER,
        items=rows // EVENTS_PER_ITEM,
        categories=1000,
    )
    written = source.write_csv(folder / "log.csv")
    return {"rows": written, "bytes": (folder / "log.csv").stat().st_size}


def prepare(rows: int, folder: Path) -> dict[str, float]:
    """Makes a store of log.csv."""
    import resource
    import time

    import data.prepare
    from data.sources.table import TableSource

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    at_start = peak()
    begin = time.perf_counter()
    source = TableSource(path=folder / "log.csv", category="category")
    info = data.prepare.prepare(source, folder / "store")
    return {
        "seconds": time.perf_counter() - begin,
        "peak": peak(),
        "at_start": at_start,
        "users": info.users,
        "items": info.items,
        "bytes": info.bytes,
    }


def _run(step: str, rows: int, folder: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.prepare", "--step", step]
    command += ["--rows", str(rows), "--folder", str(folder)]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
