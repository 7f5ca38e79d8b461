"""One name everywhere: the declared night, jobs/, spark-submit.sh, stages/, the sections of conf."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nightjar.config import NightConfig, Resources, Section
from nightjar.pipeline import EVALUATE, NIGHT
from nightjar.stage import Raw, Stage, Window
from nightjar.stages.inputs import _RESOLVE
from nightjar.tables import METRICS, TABLES, Table
from tests.world import config

ROOT = Path(__file__).resolve().parents[2]
NAMES = [stage.name for stage in NIGHT]
every_stage = pytest.mark.parametrize("stage", NIGHT, ids=lambda stage: str(stage.name))


def _tables(stage: Stage) -> list[Table]:
    """The tables a stage reads."""
    reads = [source.table if isinstance(source, Window) else source for source in stage.reads]
    return [table for table in reads if isinstance(table, Table)]


def test_what_is_read_was_written_before_or_comes_from_outside() -> None:
    written: set[str] = set()
    for stage in (*NIGHT, EVALUATE):
        assert {table.name for table in _tables(stage)} <= written, stage.name
        written |= {table.name for table in stage.writes}


def test_a_table_has_one_writer() -> None:
    night = [table.name for stage in NIGHT for table in stage.writes]
    assert len(night) == len(set(night))
    everywhere = set(night) | {table.name for table in EVALUATE.writes}
    assert everywhere == {table.name for table in TABLES}


def test_every_table_but_the_last_is_read_or_looked_at() -> None:
    """Nothing is written for nobody: quarantines are for people, the rest has a reader."""
    read = {table.name for stage in (*NIGHT, EVALUATE) for table in _tables(stage)}
    written = {table.name for stage in NIGHT for table in stage.writes}
    quarantines = {"quarantine", "items_quarantine", "embeddings_quarantine", "queries_quarantine"}
    assert written - read == {*quarantines, "metrics"}


@every_stage
def test_raw_inputs_can_be_resolved(stage: Stage) -> None:
    for source in stage.reads:
        if isinstance(source, Raw):
            assert source.name in _RESOLVE


def test_the_readme_lists_the_night() -> None:
    listed = re.findall(r"^(\w+) +(spark|ray|local)  .* -> .*$", (ROOT / "README.md").read_text(), re.M)
    assert listed == [(stage.name, stage.engine) for stage in NIGHT]


def test_there_is_one_job_for_each_stage() -> None:
    assert sorted(path.stem for path in (ROOT / "jobs").glob("*.py")) == sorted(NAMES)


@every_stage
def test_a_job_binds_the_declaration_to_the_function_of_its_name(stage: Stage) -> None:
    tree = ast.parse((ROOT / "jobs" / f"{stage.name}.py").read_text())
    imported = {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {
        ("nightjar.job", "main"),
        ("nightjar.pipeline", stage.name.upper()),
        (f"nightjar.stages.{stage.name}", stage.name),
    }
    calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert calls == [f"main({stage.name.upper()}, {stage.name})"]
    assert "__name__ == '__main__'" in ast.unparse(tree)


@pytest.mark.parametrize("stage", [*NIGHT, EVALUATE], ids=lambda stage: str(stage.name))
def test_a_stage_is_a_function_of_its_name_on_night_params_and_resources(stage: Stage) -> None:
    tree = ast.parse((ROOT / "lib/nightjar/stages" / f"{stage.name}.py").read_text())
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == stage.name]
    kinds = {
        argument.arg: ast.unparse(argument.annotation or ast.Constant(None))
        for argument in function.args.args
    }
    section = type(getattr(config("r"), stage.name)).__name__
    assert list(kinds.items())[:3] == [("night", "Night"), ("params", section), ("resources", "Resources")]


def _script() -> list[tuple[str, str, str]]:
    """(engine, stage, comment) of each line of the night in spark-submit.sh."""
    text = (ROOT / "spark-submit.sh").read_text()
    return re.findall(r"^on_(spark|ray|local)\s+(\w+)\s+#\s*(.*)$", text, re.MULTILINE)


def test_the_script_is_the_night_in_order_on_the_right_engines() -> None:
    assert [(name, engine) for engine, name, _ in _script()] == [
        (stage.name, stage.engine) for stage in NIGHT
    ]


@every_stage
def test_the_script_says_what_a_stage_writes(stage: Stage) -> None:
    (comment,) = [comment for _, name, comment in _script() if name == stage.name]
    reads, arrow, writes = comment.partition("->")
    assert arrow
    words = re.findall(r"\w+", re.sub(r"\(.*\)", "", writes))
    assert set(words) - {"LATEST", "json"} == {table.name for table in stage.writes}
    declared = {table.name for table in _tables(stage)}
    named = set(re.findall(r"\w+", reads)) & {table.name for table in TABLES}
    assert named <= declared


@pytest.mark.parametrize("stage", [*NIGHT, EVALUATE], ids=lambda stage: str(stage.name))
def test_a_stage_has_a_section_with_resources(stage: Stage) -> None:
    section = getattr(config("r"), stage.name)
    assert isinstance(section, Section)
    assert isinstance(section.resources, Resources)
    for name in stage.also:
        assert name in NightConfig.model_fields
        assert name != stage.name


BASE: dict[str, Any] = yaml.safe_load((ROOT / "conf/base.yaml").read_text())


@every_stage
def test_the_base_configuration_has_a_section_for_each_stage_with_params(stage: Stage) -> None:
    params = getattr(config("r"), stage.name).identity()
    assert stage.name in BASE or not params


def _leaves(value: Any, place: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for key, one in value.items() for leaf in _leaves(one, (*place, key))]
    return [(place, value)]


@pytest.mark.parametrize("leaf", _leaves(BASE), ids=lambda leaf: ".".join(leaf[0]))
def test_the_base_configuration_writes_out_the_defaults(leaf: tuple[tuple[str, ...], Any]) -> None:
    """It says of itself that it holds the defaults; a default changed in one place only shows here."""
    place, written = leaf
    model: Any = NightConfig
    for name in place[:-1]:
        model = model.model_fields[name].annotation
    default = model.model_fields[place[-1]].get_default(call_default_factory=True)
    assert (list(default) if isinstance(default, tuple) else default) == written


def test_each_table_names_the_stage_that_makes_it() -> None:
    for stage in (EVALUATE, *NIGHT):
        for table in stage.writes:
            assert table.made_by == ("publish" if table is METRICS else stage.name)
