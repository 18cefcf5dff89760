"""Refuses with the new name: this experiment is now experiments/optimizer_benchmark.py."""

import sys

from dl import UserError

RENAMED = "optimizer_race is now optimizer_benchmark: python -m experiments.optimizer_benchmark"

if __name__ == "__main__":
    print(f"error: {RENAMED}", file=sys.stderr)
    sys.exit(UserError.status)
raise UserError(RENAMED)
