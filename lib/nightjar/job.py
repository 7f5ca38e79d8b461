"""The one entry point behind every file of jobs/: arguments, one stage, an exit code."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from nightjar.conf_files import load_config
from nightjar.config import NightConfig
from nightjar.errors import NightjarError
from nightjar.masking import masked
from nightjar.night import logical_date, run_declared
from nightjar.progress import Report
from nightjar.stage import Night, RunStage, Stage

DEFAULT_CONFIG = "conf/demo.yaml"
EXIT_REFUSED = 2
"""Exit code of every error raised on purpose."""


def main(stage: Stage, run: RunStage, arguments: Sequence[str] | None = None) -> None:
    """Runs one stage as a process of its own, under spark-submit, `ray job submit` or plain Python."""
    parser = argparse.ArgumentParser(prog=stage.name, description=f"Run the stage {stage.name} for one date.")
    add_night_options(parser)
    options = parser.parse_args(arguments)
    guarded(lambda: _run(stage, run, options))


def _run(stage: Stage, run: RunStage, options: argparse.Namespace) -> None:
    config = config_of(options)
    run_declared(stage, run, Night(config, logical_date(options.ds, config), Report()))


def add_night_options(parser: argparse.ArgumentParser) -> None:
    """--config, --set and --ds, the same for every command and job."""
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help=f"YAML; may be repeated, later over earlier (default: $NIGHTJAR_CONFIG or {DEFAULT_CONFIG})",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="one setting over the files"
    )
    parser.add_argument("--ds", metavar="YYYY-MM-DD", help="the night's date (default: the configuration's)")


def config_of(options: argparse.Namespace) -> NightConfig:
    """The configuration that the options name."""
    files = options.config or [os.environ.get("NIGHTJAR_CONFIG", DEFAULT_CONFIG)]
    return load_config(files, options.set)


def guarded(action: Callable[[], int | None]) -> NoReturn:
    """Runs an action and exits: an error raised on purpose is one sentence on stderr, never a traceback."""
    try:
        code = action() or 0
        sys.stdout.flush()  # a reader that closed the pipe shows itself here, not at exit
    except NightjarError as error:
        print(f"nightjar: {masked(str(error))}", file=sys.stderr)
        code = EXIT_REFUSED
    except KeyboardInterrupt:
        print(
            "nightjar: stopped; finished parts are kept, the same command goes on from them", file=sys.stderr
        )
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if os.environ.get("NIGHTJAR_DEBUG"):
            traceback.print_exc()
        said = masked(" ".join(str(error).split()))[:400]
        print(
            f"nightjar: unexpected {type(error).__name__}: {said}; our bug, "
            "set NIGHTJAR_DEBUG=1 for the traceback and report it",
            file=sys.stderr,
        )
        code = 1
    sys.exit(code)
