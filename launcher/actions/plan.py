"""`action=plan`: prints what would run where, and starts nothing."""

from launcher.config import PlanFormat
from launcher.plan import DeploymentPlan
from launcher.show import as_json, as_table, show


def show_plan(plan: DeploymentPlan, form: PlanFormat) -> int:
    """Prints the plan to stdout; returns the exit code."""
    match form:
        case PlanFormat.table:
            show(as_table(plan))
        case PlanFormat.json:
            show(as_json(plan))
    return 0
