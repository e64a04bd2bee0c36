"""What Hydra calls for `-m`: the jobs of a sweep are composed here, and run elsewhere.

Hydra's own plugins run jobs inside this process and write `multirun.yaml` into a directory; these
do neither.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from launcher.config import HYDRA_PLUGINS
from launcher.errors import Refused

Composed = tuple[list[str], DictConfig]
"""A job: its overrides, one choice each, and the config that they give."""


class JobLauncher(Launcher):
    """Composes every job before the first one is run."""

    __module__ = HYDRA_PLUGINS  # Hydra takes plugins from there alone (Plugins._instantiate)
    run_jobs: ClassVar[Callable[[Sequence[Composed]], None]]

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._loader, self._config = hydra_context.config_loader, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        type(self).run_jobs([(list(each), self._composed(each)) for each in job_overrides])
        return []

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        config: DictConfig = self._loader.load_sweep_config(self._config, list(overrides))
        with read_write(config), open_dict(config):
            del config["hydra"]
        return config


class JobSweeper(Sweeper):
    """Every combination of the values typed, without a directory."""

    __module__ = HYDRA_PLUGINS

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._loader, self._config = hydra_context.config_loader, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        for typed in self._config.hydra.overrides.hydra:
            if typed.startswith(("hydra.sweep.dir=", "hydra.sweep.subdir=")):
                raise Refused(f"{typed.partition('=')[0]} is not read: {typed}", "sweep.dir=DIR")
        overrides = OverridesParser.create(config_loader=self._loader).parse_overrides(arguments)
        (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        return self._launcher.launch(jobs, initial_job_idx=0)


def register_plugins(run_jobs: Callable[[Sequence[Composed]], None]) -> None:
    """Makes both known to Hydra, which finds no plugins in packages of other names.

    Args:
        run_jobs: Called with all jobs of a sweep, in their order.
    """
    JobLauncher.run_jobs = staticmethod(run_jobs)
    for plugin in (JobLauncher, JobSweeper):
        Plugins.instance().register(plugin)
    name, _, module = HYDRA_PLUGINS.partition(".")
    try:
        package = import_module(name)
    except ModuleNotFoundError:  # no other plugin is installed
        package = sys.modules[name] = ModuleType(name)
    setattr(package, module, sys.modules[__name__])
