"""What a run would take on devices that aren't here: its memory, what they send each other, its time and its price.

In: a training's flags and a target's name. Out: a report. Figures are computed from the model's shapes; where the
target's compiler is installed, beside them stands what it made of the very step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxgpt.lazy import on_first_use

if TYPE_CHECKING:
    from jaxgpt.plan.costs import Sizes, Work
    from jaxgpt.plan.report import describe_plan
    from jaxgpt.plan.search import Estimate, estimate, estimates, meshes
    from jaxgpt.plan.targets import Target, read_target

__all__ = ["Estimate", "Sizes", "Target", "Work", "describe_plan", "estimate", "estimates", "meshes", "read_target"]
__getattr__, __dir__ = on_first_use(__name__)
