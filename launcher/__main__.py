"""`python -m launcher`: compose -> resolve -> plan -> show or carry out."""

from launcher.early_interrupts import take_over  # first: it is for the time of the others

# isort: split
import argparse
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn, assert_never

import hydra
from hydra._internal.utils import get_args_parser  # the one list of Hydra's own flags
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from engine import __version__
from launcher.config import Action, LaunchConfig, register
from launcher.config_checks import check, not_read, without_effect
from launcher.errors import Interrupted, LauncherError, Refused, report, warn
from launcher.sweep.jobs import Job, Typed

if TYPE_CHECKING:
    from launcher.planning import Planned

RAISE_ERRORS = "HYDRA_FULL_ERROR"
"""Set, Hydra raises its errors instead of printing them."""


def main() -> NoReturn:
    try:
        take_over()
        exit_code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:  # between the command line and a job, which tells by itself
        exit_code = report(Interrupted(signal.SIGINT))
    except BrokenPipeError:
        if not reader_has_left(sys.stdout.fileno()):
            raise
        # What is still buffered has nowhere to go; Python would complain when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 128 + signal.SIGPIPE
    sys.exit(exit_code)


def reader_has_left(descriptor: int) -> bool:
    """Whether nobody reads a pipe any more, as after `| head`."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def run() -> int:
    """Does what the command line says and returns the exit code, of several jobs the highest."""
    register()
    flags, unknown = flag_parser().parse_known_args()
    if unknown:
        from launcher.config_errors import explain_flags

        return report(explain_flags(unknown, flags.overrides))
    if flags.version:
        return show_version(flags)
    if flags.help:
        return show_help(flags)
    exit_codes: list[int] = []
    bugs: list[Exception] = []
    typed = Typed(
        flags=tuple(searched(flags)),
        overrides=tuple(flags.overrides),
        is_multirun=flags.multirun,
    )

    @contextmanager
    def our_own() -> Iterator[None]:
        """What is raised inside is ours, not Hydra's: there is nothing to explain."""
        del os.environ[RAISE_ERRORS]
        try:
            yield
        except LauncherError as error:
            exit_codes.append(report(error))
        except KeyboardInterrupt:
            exit_codes.append(report(Interrupted(signal.SIGINT)))
        except Exception as bug:
            bugs.append(bug)
            raise
        finally:
            os.environ[RAISE_ERRORS] = "1"

    def job(composed: DictConfig) -> None:
        with our_own():
            overrides = HydraConfig.get().overrides.task
            exit_codes.append(launch(to_config(composed, flags), overrides, typed))

    def jobs(composed: Sequence[tuple[list[str], DictConfig]]) -> None:
        with our_own():
            from launcher.actions.sweep import run_sweep

            found = [Job(tuple(own), to_config(config, flags)) for own, config in composed]
            exit_codes.append(run_sweep(found, typed))

    if flags.multirun:
        from launcher.sweep.hydra_plugins import register_plugins

        register_plugins(jobs)
    os.environ[RAISE_ERRORS] = "1"
    try:
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(job)()
    except LauncherError as error:
        exit_codes.append(report(error))
    except Exception as error:
        if error in bugs:
            raise
        exit_codes.append(report(explained(error, flags)))
    finally:
        del os.environ[RAISE_ERRORS]
    return max(exit_codes, default=0)


def show_version(flags: argparse.Namespace) -> int:
    if flags.overrides:
        said = " ".join(flags.overrides)
        return report(Refused(f"--version takes nothing beside it: {said}", "--version"))
    sys.stdout.write(f"flotilla {__version__}\n")
    return 0


def searched(flags: argparse.Namespace) -> list[str]:
    """The flags that say where configs are, for a launcher that shall find the same."""
    given = {"--config-dir": flags.config_dir, "--config-name": flags.config_name}
    paths = [text for text in flags.overrides if text.startswith("hydra.searchpath=")]
    return [*(f"{flag}={value}" for flag, value in given.items() if value), *paths]


def show_help(flags: argparse.Namespace) -> int:
    """Prints what can be typed, unless what was typed with it is wrong."""
    from launcher.help import help_text
    from launcher.show import show

    try:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            to_config(hydra.compose("config", flags.overrides), flags)
    except Refused as error:
        return report(error)
    except Exception as error:
        return report(explained(error, flags))
    show(help_text())
    return 0


def flag_parser() -> argparse.ArgumentParser:
    """Hydra's flags, but for a version that is ours."""
    parser = argparse.ArgumentParser(
        parents=[get_args_parser()], add_help=False, conflict_handler="resolve"
    )
    parser.add_argument("--version", action="store_true")
    return parser


def to_config(composed: DictConfig, flags: argparse.Namespace) -> LaunchConfig:
    """The composed config as typed values, the last that is seen of OmegaConf."""
    try:
        config = OmegaConf.to_object(composed)
    except (OmegaConfBaseException, AttributeError) as error:  # +foo=1 finds no attribute
        raise explained(error, flags) from None
    assert isinstance(config, LaunchConfig)
    return config


def explained(error: Exception, flags: argparse.Namespace) -> Refused:
    """An error of Hydra or OmegaConf as one of ours; one that is nobody's mistake is raised."""
    from launcher.config_errors import explain

    refused = explain(error, flags.overrides, flags.multirun)
    if refused is None:
        raise error
    return refused


def launch(config: LaunchConfig, overrides: Sequence[str], typed: Typed) -> int:
    """One job from config to end; returns the exit code.

    Args:
        overrides: Of the config, as they were typed.

    Raises:
        LauncherError: It did not come to its end.
    """
    check(config)
    match config.action:
        case Action.status:
            from launcher.actions.status import show_status

            warn(not_read(config.action, overrides))
            return show_status(config.name, config.status.format)
        case Action.stop:
            from launcher.actions.stop import stop

            warn(not_read(config.action, overrides))
            return stop(config.name, config.stop.force)
        case Action.compare:
            from launcher.actions.compare import compare

            warn(not_read(config.action, overrides))
            return compare(config.compare)
        case Action.bench if config.bench.repeat > 1:
            from launcher.actions.sweep import bench_sweep

            return bench_sweep([Job(tuple(overrides), config)], typed)
        case Action.bench if config.bench.url is not None:
            from launcher.actions.bench import Asked, bench_url

            warn(not_read(config.action, overrides))
            return bench_url(config.bench.url, Asked.of(config, overrides))
        case Action.plan | Action.serve | Action.smoke | Action.bench as action:
            # What this needs is imported here: `--cfg job` starts faster.
            from launcher.planning import planned

            with planned(config) as found:
                shown = action is Action.plan  # with the plan, its own warnings too
                warn((*without_effect(config), *(() if shown else found.plan.warnings)))
                return carry_out(action, found, config, overrides)
        case _ as never:
            assert_never(never)


def carry_out(
    action: Literal[Action.plan, Action.serve, Action.smoke, Action.bench],
    found: "Planned",
    config: LaunchConfig,
    overrides: Sequence[str],
) -> int:
    """Does it. Whatever carries a plan out sees the plan and its means only."""
    plan, means = found.plan, found.means
    match action:
        case Action.plan:
            from launcher.actions.plan import show_plan

            return show_plan(plan, config.plan.format)
        case Action.serve:
            from launcher.actions.serve import serve

            return serve(plan, means)
        case Action.smoke:
            from launcher.actions.smoke import smoke

            return smoke(plan, means, config.smoke.answer_s, config.smoke.format)
        case Action.bench:
            from launcher.actions.bench import Asked, bench

            return bench(plan, means, Asked.of(config, overrides))
        case _ as never:
            assert_never(never)


if __name__ == "__main__":
    main()
