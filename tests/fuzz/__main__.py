"""A campaign from the command line: python -m tests.fuzz --bodies 100000 --seed 0."""

import argparse
import sys
from collections.abc import Iterator

from tqdm import tqdm

from tests.fuzz import campaign
from tests.server import tiny
from tests.server.process import Server, serving

SHOWN = 20


def main() -> int:
    """Run what the command line says; 1 where anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--heads", type=int, default=2_000)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="make one item again")
    wish = parser.parse_args()
    with serving("--model", tiny.REFERENCE, "--log-level", "error") as server:
        if wish.only:
            findings = _one(server, wish.seed, wish.only)
        else:
            sizes = {"body": wish.bodies, "document": wish.documents, "head": wish.heads}
            findings = campaign.run(server, wish.seed, sizes, _bar)
    _tell(findings, wish.seed)
    return 1 if findings.violations else 0


def _bar(walk: Iterator[int]) -> Iterator[int]:
    items = list(walk)
    return iter(tqdm(items, "fuzz", unit="item", mininterval=1.0, file=sys.stderr))


def _one(server: Server, seed: int, only: str) -> campaign.Findings:
    kind, _, number = only.partition(":")
    target, findings = campaign.Target(server), campaign.Findings()
    campaign.try_one(target, findings, seed, kind, int(number))
    target.close()
    return findings


def _tell(findings: campaign.Findings, seed: int) -> None:
    for (kind, outcome), count in sorted(findings.counts.items()):
        print(f"{kind:9} {outcome:32} {count:8}")
    print(f"seed {seed}; {findings.counts.total()} items; {len(findings.violations)} violations;")
    print(f"resident memory behind the warm-up and at the end: {findings.memory} KiB")
    for violation in findings.violations[:SHOWN]:
        print(violation, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
