"""Draw the sample dataset again: ``python apps/samples.py --out sample-datasets``. Takes about two minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from ssmsam_research.training.samples import CASES, write_samples


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the synthetic abdomens of the sample dataset, always the same.")
    parser.add_argument("--out", type=Path, default=Path("sample-datasets"), help="folder to write to")
    parser.add_argument("--only", choices=[case.name for case in CASES], nargs="+", help="only these cases")
    arguments = parser.parse_args()
    cases = tuple(case for case in CASES if not arguments.only or case.name in arguments.only)
    with tqdm(total=len(cases), unit="case") as bar:

        def show(phase: str, done: int, total: int) -> None:
            bar.set_description(phase)
            bar.update(done - bar.n)

        write_samples(arguments.out, cases=cases, progress=show)


if __name__ == "__main__":
    main()
