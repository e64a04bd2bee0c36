"""Executors: each carries a plan out on one kind of backend."""

from launcher.errors import Refused
from launcher.executors.base import Executor
from launcher.plan import DeploymentPlan


def make_executor(plan: DeploymentPlan) -> Executor:
    """The executor of the plan's backend."""
    match plan.backend:
        case "mp":
            from launcher.executors.mp import MpExecutor

            return MpExecutor(plan)
        case _:
            raise Refused(f"backend has no executor: {plan.backend}", "backend=mp")
