import dataclasses
import io
import json
import math

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from abs_model.evaluation import tables
from abs_model.evaluation.tables import AttackSettings, Row, wilson_interval

ATTACK = AttackSettings("linf", 0.3, 0.01, 40, 2)
CLEAN = Row("abs", None, 1000, 985, {"classification": 61.5})
ATTACKED = Row(
    "abs",
    ATTACK,
    num_images=20,
    num_correct=13,
    seconds={"attack": 50.25, "verification": 1.5004},
    num_clean_errors=1,
    num_claimed=8,
    num_rejected=2,
    rejections={"out_of_bounds": 0, "beyond_epsilon": 2, "not_adversarial": 1},
)
ROWS = [CLEAN, ATTACKED, dataclasses.replace(CLEAN, model="madry")]


def test_wilson_interval_of_a_worked_example():
    # 13 of 20, z = 1.959964: centre (0.65 + z2/40) / (1 + z2/20), z2 = 3.841459.
    low, high = wilson_interval(13, 20)
    assert (low, high) == pytest.approx((0.432855, 0.818808), abs=2e-6)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation(counts):
    successes, trials = counts
    proportion = successes / trials
    for end in wilson_interval(successes, trials):
        assert 0 <= end <= 1
        deviation = 1.959963984540054**2 * end * (1 - end) / trials
        assert (proportion - end) ** 2 == pytest.approx(deviation, rel=1e-6, abs=1e-15)
    low, high = wilson_interval(successes, trials)
    assert low <= proportion <= high and low < high
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(trials - successes, trials))


@pytest.mark.parametrize("counts", [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(counts):
    with pytest.raises(ValueError, match="successes must be"):
        wilson_interval(*counts)


def test_a_row_as_dict_holds_everything_json_can():
    content = json.loads(json.dumps(tables.to_dict(ATTACKED)))
    assert content["accuracy"] == 0.65 and content["wilson_95"] == list(wilson_interval(13, 20))
    assert content["attack"] == {"name": "pgd", **dataclasses.asdict(ATTACK)}
    assert content["seconds"] == {"attack": 50.25, "verification": 1.5}
    assert (content["num_claimed"], content["num_rejected"]) == (8, 2)
    assert content["rejections"]["beyond_epsilon"] == 2
    assert "attack" not in tables.to_dict(CLEAN)


def test_markdown_rows():
    lines = tables.to_markdown(ROWS).splitlines()
    assert {line.count("|") for line in lines[:5]} == {9}
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == [
        "abs",
        "PGD L-inf <= 0.3",
        "40 steps, 2 restarts",
        "13 of 20 (19 clean)",
        "65.0%",
        "43.3% to 81.9%",
        "2 of 8 (2 beyond epsilon, 1 not adversarial)",
        "51.8 s",
    ]
    assert lines[2].startswith("| abs | clean | - | 985 of 1000 | 98.5% | 97.5% to 99.1% | - |")
    assert tables.EXPLANATION in lines


def test_terminal_table_shows_the_cells_of_the_markdown():
    output = io.StringIO()
    rich.console.Console(file=output, width=200).print(tables.to_rich(ROWS))
    for row in ROWS:
        assert any(
            all(part in line for part in (row.model, row.condition, f"{row.accuracy:.1%}"))
            for line in output.getvalue().splitlines()
        )
    assert "2 of 8 (2 beyond epsilon, 1 not adversarial)" in output.getvalue()


@pytest.mark.parametrize(
    ("steps", "restarts", "text"), [(1, 1, "1 step, 1 restart"), (2, 3, "2 steps, 3 restarts")]
)
def test_budget(steps, restarts, text):
    assert AttackSettings("l2", 1.5, 0.1, steps, restarts).budget == text


def test_the_quantile_is_that_of_the_normal_distribution():
    assert math.erf(tables._NORMAL_QUANTILE / math.sqrt(2)) == pytest.approx(0.95, abs=1e-12)
