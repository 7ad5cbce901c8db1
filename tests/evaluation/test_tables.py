import csv
import dataclasses
import inspect
import io
import json
import math
import re

import numpy as np
import pytest
import rich.console

from abs_model.attacks.registry import ATTACKS
from abs_model.evaluation import make_tables, summarize, to_markdown, to_rich, write_tables
from abs_model.evaluation.run.batch_log import Origin
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.run.probe import Probe
from abs_model.evaluation.run.workdir import CLEAN
from abs_model.evaluation.tables.results import Plan, PlannedAttack, Results
from abs_model.evaluation.tables.table import ALL, ALL_PAPER, ALL_STRONGER, PUBLISHED
from abs_model.evaluation.tables.table_formats import to_json

INF = math.inf


def records(distances, reasons=(), **changes):
    fields = {
        "label": 3, "clean_prediction": 3, "claimed": True, "prediction": 4, "num_queries": 8,
        "num_gradients": 2, "image": None,
    } | changes  # fmt: skip
    return {
        index: Record(index=index, distance=distance, reasons=reasons, **fields)
        for index, distance in enumerate(distances)
    }


def planned(name, norm="l2", group="paper", models=("abs", "mine"), **settings):
    return PlannedAttack(
        name=name, title=name.upper(), norm=norm, group=group, reference=name,
        settings={model: settings for model in models},
        ledgers={model: f"ledger/{model}/{name}" for model in models},
        refusals={},
    )  # fmt: skip


def make_results(attacks, found, num_images=4, models=("abs", "mine")):
    plan = Plan(
        models=list(models), attacks=attacks, num_clean=4, num_images=num_images,
        clean_ledgers={}, about={"seed": 0},
    )  # fmt: skip
    clean = {
        "abs": records([INF] * 4),
        "mine": records([0, INF, INF, INF], clean_prediction=3) | records([0], clean_prediction=4),
    }
    keys = [*found, *((model, CLEAN) for model in clean)]
    return Results(plan, clean, found, dict.fromkeys(keys, origin()))


def origin(commits=()):
    return Origin(0.0, commits, [], [], None, frozenset(range(9)))


def example():
    attacks = [
        planned("a", num_steps=10),
        planned("b", num_steps=5, num_restarts=2),
        planned("c", group="stronger", num_steps=64, max_queries=8),
        planned("d", norm="l0", group="stronger", models=("mine",)),
    ]
    found = {
        ("abs", "a"): records([1, 2, INF, 3]),
        ("mine", "a"): records([0, 2, 2, 2]),
        ("abs", "b"): records([2, 1, INF, INF], num_queries=1010),
        ("mine", "b"): records([0, INF, INF, INF], reasons=("beyond_epsilon",)),
        ("abs", "c"): records([0.5, 4, 1, 4]),
        ("mine", "c"): records([0, 0.25, 0.25, 0.25]),
        ("mine", "d"): records([0, 13, 12, 40], num_queries=None),
    }
    return make_results(attacks, found)


def rows_of(tables, norm="l2"):
    (block,) = (block for block in tables.blocks if block.norm == norm)
    return {row.title: row for row in block.rows}


def test_minima_are_per_image_and_over_the_right_attacks():
    rows = rows_of(make_tables(example()))
    assert list(rows) == ["A", "B", ALL_PAPER, PUBLISHED, "C", ALL_STRONGER]
    assert rows[ALL_PAPER].cells["abs"].summary == summarize(np.array([1, 1, INF, 3.0]), 1.5)
    assert rows[ALL_STRONGER].cells["abs"].summary == summarize(np.array([0.5, 1, 1, 3]), 1.5)
    assert rows[ALL_STRONGER].cells["mine"].summary.median.value == 0.25
    assert rows[PUBLISHED].cells["abs"].median == 2.241 and "mine" not in rows[PUBLISHED].cells
    assert list(rows_of(make_tables(example()), "l0")) == [PUBLISHED, "D", ALL]


def test_rows_print_their_budget():
    rows = rows_of(make_tables(example()))
    assert rows["A"].budget == "10 steps, 8 queries"
    assert rows["B"].budget == "5 steps, 2 restarts, 8 (mine) to 1,010 (abs) queries"
    assert rows["C"].budget == "8 queries"  # which end the steps
    assert (rows[ALL_PAPER].budget, rows[ALL_STRONGER].budget) == ("2 attacks", "3 attacks")
    assert rows[PUBLISHED].budget == ""
    assert rows_of(make_tables(example()), "l0")["D"].budget == "queries not counted"


def test_budgets_of_ones_own_attacks_may_be_anything():
    attacks = [planned("a", num_steps=None, num_restarts=3), planned("b", num_steps="many")]
    found = {("abs", "a"): records([1.0] * 4), ("abs", "b"): records([1.0] * 4)}
    rows = rows_of(make_tables(make_results(attacks, found)))
    assert rows["A"].budget == "3 restarts, 8 queries"
    assert rows["B"].budget == "8 queries"


def test_tables_without_a_cell_are_written(tmp_path):
    results = make_results([planned("a", norm="linf")], {}, models=("mine",))
    results = Results(results.plan, {"mine": {}}, {})
    tables = write_tables(tmp_path, results)
    (line,) = (tmp_path / "results.csv").read_text().splitlines()
    assert line.startswith("norm,threshold,row,attack,")
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []
    rich.console.Console(file=io.StringIO()).print(to_rich(tables))


def test_refused_claims_are_reported():
    cell = rows_of(make_tables(example()))["B"].cells["mine"]
    assert (cell.num_claimed, cell.num_rejected) == (4, 4)
    assert cell.rejections == {"beyond_epsilon": 4}
    assert "- mine, B, L2: 4 of 4 (4 beyond epsilon)" in to_markdown(make_tables(example()))


def test_markdown_has_the_papers_layout():
    text = to_markdown(make_tables(example()))
    assert "## L2: median distance / accuracy at 1.5" in text
    assert "## L0: median distance / accuracy at 12 pixels" in text
    assert "| A | 2.5 / 75% | 2 / 75% | 10 steps, 8 queries |" in text
    assert "| **All, as published** | **2.24 / 80%** | **\N{EN DASH}** |" in text
    assert re.search(r"\| D \| \N{EN DASH} \| 12.5 / 50% \|", text)
    assert "| accuracy | 100.00% | 75.00% |" in text
    assert not any(word in text for word in ("isn't complete", "Not tried", "Commits"))
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {4, 5}  # three columns for clean accuracy, four for attacks


def test_an_unfinished_evaluation_says_so_and_counts_what_there_is():
    results = example()
    del results.found["abs", "a"][3]
    tables = make_tables(results)
    text = to_markdown(tables)
    assert not tables.complete and "isn't complete" in text
    assert "| A | 2 / 67% (3 of 4) |" in text
    assert "isn't complete" in on_terminal(tables)
    # The minimum is over the images that all its attacks are done with.
    assert rows_of(tables)[ALL_PAPER].cells["abs"].summary.num_images == 3


def test_names_cannot_break_the_tables(tmp_path):
    results = make_results([planned("a", models=("x|y_%",))], {}, models=("x|y_%",))
    results = Results(results.plan, {"x|y_%": records([INF])}, {("x|y_%", "a"): records([1.0] * 4)})
    tables = write_tables(tmp_path, results)
    assert r"x\|y_%" in (tmp_path / "results.md").read_text()
    latex = (tmp_path / "results.tex").read_text()
    assert r"x|y\_\%" in latex and latex.count(r"\begin{tabular}{lrl}") == 1
    assert all(line.count("&") == 2 for line in latex.splitlines() if line.endswith(r"\\")
               and "multicolumn" not in line)  # fmt: skip
    rich.console.Console(file=io.StringIO()).print(to_rich(tables))


def test_files_hold_the_same_figures(tmp_path):
    write_tables(tmp_path, example())
    content = json.loads((tmp_path / "results.json").read_text())
    lines = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(lines) == len(content["rows"]) and content["complete"] and content["seed"] == 0
    assert {row["budget"] for row in content["rows"] if row["attack"] == "a"} == {
        "10 steps, 8 queries"
    }
    for line, row in zip(lines, content["rows"], strict=True):
        for key in ("model", "row", "budget"):
            assert line[key] == row[key]
        median = float(line["median"])
        assert row["median"] == (None if math.isinf(median) else pytest.approx(median))
    assert content["clean_accuracy"] == {"abs": 1.0, "mine": 0.75}
    assert content["attacks"]["b"]["settings"]["abs"] == {"num_steps": 5, "num_restarts": 2}


def test_the_terminal_shows_every_row():
    shown = on_terminal(make_tables(example()))
    for title in ("A", ALL_PAPER, PUBLISHED, ALL_STRONGER, "L0: median distance"):
        assert title in shown
    assert "- mine, B, L2: 4 of 4 (4 beyond epsilon)" in shown and "isn't complete" not in shown


def on_terminal(tables):
    file = io.StringIO()
    rich.console.Console(file=file, width=160).print(to_rich(tables))
    return file.getvalue()


def test_what_was_not_tried_comes_with_the_reasons():
    results = example()
    reasons = {
        "a": "requires an ABS model",
        "b": "requires an ABS model",
        "c": "the configuration has it for abs only",
    }
    attacks = [
        dataclasses.replace(
            attack, refusals={"mine": reasons[attack.name]} if attack.name in reasons else {}
        )
        for attack in results.plan.attacks
    ]
    attacks.append(dataclasses.replace(planned("a", norm="linf"), refusals=attacks[0].refusals))
    about = {"attacks_left_out": ["e_l2", "f"]}
    plan = dataclasses.replace(results.plan, attacks=attacks, about=about)
    tables = make_tables(dataclasses.replace(results, plan=plan))
    for text in (to_markdown(tables), on_terminal(tables)):
        lines = text.splitlines()
        found = lines[lines.index("Not tried:") + 1 :]
        assert [line for line in found if line.startswith("- ")] == [
            "- A, B on mine: requires an ABS model",
            "- C on mine: the configuration has it for abs only",
            "- e_l2, f: --attacks left them out",
        ]


def test_what_has_not_begun_has_no_queries_and_commits_are_named():
    results = make_results([planned("a", num_steps=3), planned("b")], {("abs", "b"): records([1])})
    origins = {("abs", CLEAN): origin(["abc"]), ("abs", "b"): origin(["abc", "def-dirty"])}
    tables = make_tables(dataclasses.replace(results, origins=origins))
    assert rows_of(tables)["A"].budget == "3 steps"
    assert rows_of(tables)[ALL_PAPER].budget == ""
    for text in (to_markdown(tables), on_terminal(tables)):
        lines = ("Commits of the code:", "- abc", "- def-dirty", "- not known of 4 results")
        places = [text.index(line) for line in lines]
        assert places == sorted(places)


def limited(*, beyond=None):
    """Results of an attack within 0.02, and of another in the same norm where `beyond` is given."""
    attacks = [planned("near", "linf", "stronger", models=("mine",), epsilon=0.02, num_steps=3)]
    found = {("mine", "near"): records([0.01, INF, INF, INF])}
    if beyond is not None:
        attacks.append(planned("far", "linf", "stronger", models=("mine",)))
        found["mine", "far"] = records(beyond)
    return make_results(attacks, found)


def test_an_attack_says_how_far_it_was_tried_and_nothing_beyond(tmp_path):
    tables = write_tables(tmp_path, limited())
    _, near, minimum = rows_of(tables, "linf").values()
    assert near.budget == "epsilon 0.02, 3 steps, 8 queries"
    assert not near.cells["mine"].reached and not minimum.cells["mine"].reached
    markdown = (tmp_path / "results.md").read_text()
    assert "| NEAR | \N{EN DASH} | \N{EN DASH} / 75% at 0.02 |" in markdown
    assert "**\N{EN DASH} / tried to 0.02 only**" in markdown
    assert "-- / 75\\% at 0.02 &" in (tmp_path / "results.tex").read_text()
    shown = on_terminal(tables)
    assert "75% at 0.02" in shown and "tried to 0.02 only" in shown
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    for row in (each for each in rows if each["model"] == "mine"):
        assert (row["accuracy"], row["accuracy_low"], row["median"]) == (None, None, None)
        assert (row["threshold"], row["limit"], row["accuracy_at_limit"]) == (0.3, 0.02, 0.75)
    lines = csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))
    for line in (each for each in lines if each["model"] == "mine"):
        assert (line["accuracy"], line["limit"], line["accuracy_at_limit"]) == ("", "0.02", "0.75")


def test_a_minimum_needs_one_attack_that_reached_the_threshold():
    distances = [0.5, 0.2, 0.4, INF]
    row = rows_of(make_tables(limited(beyond=distances)), "linf")[ALL]
    cell = row.cells["mine"]
    # The near attack's find counts; what it missed is the other's.
    assert cell.reached and cell.summary == summarize(np.array([0.01, 0.2, 0.4, INF]), 0.3)
    assert f"/ {0.5:.0%} [" in to_markdown(make_tables(limited(beyond=distances)))


def test_an_attack_within_epsilon_has_an_accuracy_and_no_median():
    attacks = [planned("a", "linf", "stronger", models=("mine",), epsilon=0.3)]
    results = make_results(attacks, {("mine", "a"): records([0.3, INF, INF, INF])})
    assert "| A | \N{EN DASH} | \N{EN DASH} / 75% | epsilon 0.3, 8 queries |" in to_markdown(
        make_tables(results)
    )


def test_limits_may_differ_between_models_and_pixels_are_limits_in_l0():
    def attack(norm, reference, **settings):
        return dataclasses.replace(
            planned("a", norm, "stronger"), reference=reference,
            settings={"abs": {}, "mine": settings},
        )  # fmt: skip

    found = {(model, "a"): records([0.1, 4, INF, INF]) for model in ("abs", "mine")}
    for norm, reference, settings, limit, budget in (
        ("linf", "tests:own", {"epsilon": 0.1}, 0.1, "epsilon 0.1 (mine) to any (abs), 8 queries"),
        ("linf", "tests:own", {"epsilon": "large"}, INF, "8 queries"),
        ("linf", "tests:own", {"epsilon": True}, INF, "8 queries"),
        (
            "l0",
            "sparse_rs",
            {"num_pixels": 4},
            4,
            "at most 4 (mine) to any (abs) pixels, 8 queries",
        ),
        (
            "l0",
            "greedy_pixels",
            {"max_pixels": 4},
            4,
            "at most 4 (mine) to any (abs) pixels, 8 queries",
        ),
        ("l2", "flip_pixels", {"max_flips": 4}, INF, "8 queries"),
    ):
        results = make_results([attack(norm, reference, **settings)], found)
        row = rows_of(make_tables(results), norm)["A"]
        assert row.budget == budget
        assert row.cells["mine"].limit == limit and row.cells["abs"].limit == INF


def test_every_setting_that_limits_an_attack_is_a_setting_of_it():
    for name, entry in ATTACKS.items():
        parameters = inspect.signature(entry.function).parameters
        for norm in ("l2", "linf", "l0"):
            limit = entry.limits.get(norm)
            if limit != "epsilon":
                assert limit is None or (norm in entry.norms and limit in parameters), name
        assert ("epsilon" in parameters) == (name in ("apgd", "pgd", "square"))


def test_warnings_stand_in_the_cells_they_concern_and_below_with_the_reason():
    probe = Probe(4, False, False, 0, False, (1.0, 0.75, 0.5))
    zero = records([INF] * 4, num_zero_gradients=2)
    found = {("abs", "pgd"): zero, ("mine", "pgd"): records([1.0] * 4, num_zero_gradients=0)}
    attacks = [dataclasses.replace(planned("pgd", "linf", "stronger"), access="gradients")]
    results = dataclasses.replace(make_results(attacks, found), probes={"mine": probe})
    tables = make_tables(results)
    row, minimum = (each for each in tables.blocks[0].rows if each.title != PUBLISHED)
    assert [bool(row.cells[model].warnings) for model in ("abs", "mine")] == [True, True]
    assert [bool(minimum.cells[model].warnings) for model in ("abs", "mine")] == [False, True]
    text = to_markdown(tables)
    assert "| PGD | ∞ / 100% (!) | 1 / 100% (!) |" in text
    assert "- abs, PGD L-inf: 100.0% of the gradients are zero" in text
    assert "- mine: accuracy under PGD 100% at 0.1, 75% at 0.3, 50% at 1" in text
    warnings = to_json(tables, results)["warnings"]
    assert [each["indicator"] for each in warnings] == ["growing_epsilon", "zero_gradients"]


def test_what_only_a_failing_search_makes_adversarial_is_counted_apart():
    by_search = records([1.0, 2.0], by_search=True) | {
        index: dataclasses.replace(record, index=index)
        for index, record in zip((2, 3), records([1.5] * 2, by_search=False).values(), strict=True)
    }
    results = make_results([planned("fab", group="stronger")], {("abs", "fab"): by_search})
    tables = make_tables(results)
    rows = [row for row in tables.blocks[0].rows if row.title != PUBLISHED]
    assert [row.cells["abs"].num_by_search for row in rows] == [2, 2]
    assert "- abs, FAB, L2: 2 images" in to_markdown(tables)
