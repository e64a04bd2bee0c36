"""Executors: each carries a plan out on one kind of backend."""

from launcher.errors import Refused
from launcher.executors.base import Executor, Means, Tell
from launcher.plan import DeploymentPlan


def make_executor(plan: DeploymentPlan, means: Means, tell: Tell) -> Executor:
    """The executor of the plan's backend."""
    match plan.backend:
        case "mp":
            from launcher.executors.mp import MpExecutor

            return MpExecutor(plan, means.access)
        case "ray":
            from launcher.executors.ray.executor import RayExecutor

            return RayExecutor(plan, means, tell)
        case _:
            raise Refused(f"backend has no executor: {plan.backend}", "backend=mp")
