"""The `nightjar` command: the whole night, single stages, and ways to look at what they left."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nightjar import __version__, inspect
from nightjar.config import NightConfig
from nightjar.doctor import doctor
from nightjar.job import add_night_options, config_of, guarded
from nightjar.night import function_of, logical_date, run_declared, run_night
from nightjar.pipeline import NIGHT
from nightjar.progress import Report
from nightjar.published import roll_back
from nightjar.retention import prune
from nightjar.stage import Night, Stage
from nightjar.store import Store
from nightjar.trace import trace

Command = Callable[[argparse.Namespace], int | None]
Subparsers = Any  # argparse keeps the type of add_subparsers() private


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        sys.exit(2)
    guarded(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nightjar", description="Recommendations for every user, precomputed every night."
    )
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=f"nightjar {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    run = _add(commands, "run", _run, "the whole night, or some of its stages")
    run.add_argument("--from", dest="first", metavar="STAGE", help="the first stage to run")
    run.add_argument("--until", dest="last", metavar="STAGE", help="the last stage to run")
    for stage in NIGHT:
        reads = ", ".join(_name(source) for source in stage.reads)
        writes = ", ".join(table.name for table in stage.writes)
        _add(commands, stage.name, _stage_command(stage), f"{stage.engine}: {reads} -> {writes}")
    test = _add(commands, "backtest", _backtest, "lists as of an earlier date against what happened then")
    test.add_argument("--json", metavar="FILE", help="everything measured, for machines")
    test.add_argument(
        "--ablate", action="store_true", help="also what each scene, kind of event and signal adds"
    )
    test.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="A.B=V,W",
        help="also with a setting changed; repeatable",
    )
    show = _add(commands, "show", _show, "a user's history and list, readable")
    show.add_argument("user", metavar="USER")
    where = _add(commands, "trace", _trace, "which tables and nights still hold rows of a user")
    where.add_argument("user", metavar="USER")
    _add(commands, "summary", _summary, "counts, seconds and figures of a night")
    _add(commands, "runs", _runs, "the nights under the root, and which one is live")
    back = _add(commands, "rollback", _rollback, "make the list before the live one live again")
    back.add_argument("--to", metavar="YYYY-MM-DD", help="the date to go to, back or forward again")
    drop = _add(commands, "prune", _prune, "drop old nights, never what is live or can be rolled back to")
    drop.add_argument("--keep", type=_at_least_one, default=14, metavar="NIGHTS", help="default 14")
    drop.add_argument(
        "--lists", type=_at_least_one, metavar="N", help="published lists to roll back to; default: all kept"
    )
    drop.add_argument("--dry-run", action="store_true", help="only say what would go")
    _add(commands, "verify", _verify, "check every manifest and hash again; --ds for one date")
    listing = _add(commands, "ls", _ls, "the committed files of a table, a path a line")
    listing.add_argument("table", metavar="TABLE")
    _add(commands, "doctor", lambda options: doctor(options), "what this machine lacks, with the remedy")
    _add_generate(commands)
    return parser


def _add(commands: Subparsers, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    add_night_options(parser)
    parser.set_defaults(command=command)
    return parser


def _add_generate(commands: Subparsers) -> None:
    text = "write a catalogue and logs with planted tastes, to try Nightjar on"
    parser = commands.add_parser("generate", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--out", required=True, metavar="FOLDER")
    for name, default in (
        ("users", 20_000),
        ("items", 20_000),
        ("events", 600_000),
        ("days", 60),
        ("seed", 7),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default:,}")
    parser.set_defaults(command=_generate)


def _name(source: object) -> str:
    table = getattr(source, "table", source)
    return str(getattr(table, "name", table))


def _night(options: argparse.Namespace) -> Night:
    config = config_of(options)
    return Night(config, logical_date(options.ds, config), Report())


def _run(options: argparse.Namespace) -> None:
    night = _night(options)
    results = run_night(night, options.first, options.last)
    ran = [result for result in results if result.ran]
    total = sum(result.seconds for result in ran)
    night.report.line(f"night {night.ds}: {len(ran)} of {len(results)} stages ran, {total:.1f} s")


def _stage_command(stage: Stage) -> Command:
    def command(options: argparse.Namespace) -> None:
        run_declared(stage, function_of(stage), _night(options))

    return command


def _backtest(options: argparse.Namespace) -> None:
    from nightjar import backtest_report, variants  # NumPy and SciPy, which most commands do without
    from nightjar.backtest import backtest

    night = _night(options)
    changes = [change for text in options.vary for change in variants.varied(night.config, text)]
    windows = backtest(night)
    print(backtest_report.text(windows))
    found: dict[str, list[Any]] = {}
    if options.ablate:
        found["without"] = variants.compare(windows, variants.ablations(windows[0].night))
        print(backtest_report.ablation_text(found["without"], windows))
    if changes:
        found["varied"] = variants.compare(windows, changes)
        print(backtest_report.variation_text(found["varied"], windows))
    if options.json:
        Path(options.json).write_text(backtest_report.as_json(windows, found), encoding="utf-8")


def _show(options: argparse.Namespace) -> None:
    config = config_of(options)
    print(inspect.show_user(Store(config.root), options.user, _date(options.ds, config)))


def _trace(options: argparse.Namespace) -> None:
    found, total = trace(Store(config_of(options).root), options.user)
    print(f"{found}\n{total:,} rows" if total else "no rows")


def _date(text: str | None, config: NightConfig, option: str = "--ds") -> str | None:
    """A date given on the command line, checked; None where none is given: the live list, every date."""
    return None if text is None else str(logical_date(text, config, option))


def _summary(options: argparse.Namespace) -> None:
    night = _night(options)
    print(inspect.summary(night.store, str(night.ds)))


def _runs(options: argparse.Namespace) -> None:
    print(inspect.runs(Store(config_of(options).root)))


def _rollback(options: argparse.Namespace) -> None:
    config = config_of(options)
    live = roll_back(Store(config.root), _date(options.to, config, "--to"))
    print(f"live: {live.ds} ({live.fingerprint})")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _prune(options: argparse.Namespace) -> None:
    gone = prune(config_of(options), options.keep, options.lists, dry_run=options.dry_run)
    for one in gone:
        print(f"{one.name}  ({one.why})")
    print(f"{len(gone)} folders {'would be ' if options.dry_run else ''}dropped")


def _verify(options: argparse.Namespace) -> int:
    config = config_of(options)
    faults, checked = inspect.verify(Store(config.root), _date(options.ds, config))
    for fault in faults:
        print(fault)
    print(f"{checked} files checked, {len(faults)} faults")
    return 1 if faults else 0


def _ls(options: argparse.Namespace) -> None:
    night = _night(options)
    for path in inspect.list_files(night.store, options.table, str(night.ds)):
        print(path)


def _generate(options: argparse.Namespace) -> None:
    from nightjar.generate import GenerateSpec, generate

    spec = GenerateSpec(
        users=options.users, items=options.items, events=options.events, days=options.days, seed=options.seed
    )
    facts = generate(spec, options.out)
    print(facts)
