"""Figures of this machine, and the ratios that are what to quote.

Usage: `make bench`, or some sections of it: `make bench BENCH="latency rate"`.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

from benchmarks import latency, pools, rate, storm, trips, weight
from benchmarks.parts import file_system

SECTIONS = ("latency", "storm", "rate", "trips", "pools", "weight")


def main() -> None:
    """Run the sections that were asked for, each with what it needs of its own."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"some of {', '.join(SECTIONS)}; else all")
    parser.add_argument("--rounds", type=int, default=300, help="of the section latency")
    parser.add_argument("--releases", type=int, default=1_000_000, help="of the section pools")
    options = parser.parse_args()
    run = {
        "latency": lambda: latency.run(options.rounds),
        "storm": storm.run,
        "rate": rate.run,
        "trips": trips.run,
        "pools": lambda: pools.run(options.releases),
        "weight": weight.run,
    }
    if unknown := set(options.sections) - run.keys():
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    where = file_system(Path(tempfile.gettempdir()))
    print(f"{platform.platform()}, {os.cpu_count()} processors, {where}")
    print("durability: host-local writes files without fsync; SQLite WAL with synchronous=FULL; PostgreSQL fsync=on,")
    print("synchronous_commit=on (pgbench too)")
    for section in options.sections or SECTIONS:
        print(f"\n== {section}")
        run[section]()


if __name__ == "__main__":
    main()
