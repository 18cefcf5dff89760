"""Plans: what a training step takes on devices that are not here.

`plan(experiment, "tpu:v5e:4x4")` compiles the step ahead of time, and returns a `Plan`: memory by kind,
FLOPs, bytes moved, collectives, time and price. `search` looks for the largest batch that fits. Read
`step_plan` first.
"""

from dl.diagnostics.plan.price import Prices, read_prices
from dl.diagnostics.plan.records import Memory, Plan, Roofline
from dl.diagnostics.plan.search import largest_batch
from dl.diagnostics.plan.step_plan import plan
from dl.diagnostics.plan.target import Chip, Target, find_target

__all__ = [
    "Chip",
    "Memory",
    "Plan",
    "Prices",
    "Roofline",
    "Target",
    "find_target",
    "largest_batch",
    "plan",
    "read_prices",
]
