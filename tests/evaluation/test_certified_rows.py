"""Certificates in an evaluation: records, rows below the minima, resuming, publishing."""

import dataclasses
import json
import pathlib
import tarfile
import types

import numpy as np
import pytest

from abs_model import register_dataclass
from abs_model.evaluation import collect, evaluate, make_tables, pack, to_markdown
from abs_model.evaluation.run.batch_log import TIMES_FILE
from abs_model.evaluation.run.suite import SuiteError
from abs_model.evaluation.tables.rows import to_csv
from abs_model.evaluation.tables.table import CERTIFICATES
from tests.evaluation.test_evaluation import SETTINGS, spec
from tests.evaluation_fakes import StripeClassifier, stripe_classifier, stripe_dataset

CERTIFY = dataclasses.replace(SETTINGS, certify=True)
SUITE = [
    spec(name="near", norm="l2", settings={"epsilon": 3.0}),
    spec(name="other", norm="linf", settings={"epsilon": 0.1}),
]


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class CertifiedClassifier(StripeClassifier):
    """Linear, so that radii have a closed form, but for the range of images."""

    def certify(self, images, *, norm):
        logits, weights = np.asarray(self.logits(images)), np.asarray(self.weights)
        predictions = logits.argmax(axis=1)
        rows = np.arange(len(logits))
        gaps = logits[rows, predictions][:, None] - logits
        differences = weights.T[predictions][:, None] - weights.T
        dual = {"l2": 2, "linf": 1}[norm]
        slopes = np.maximum(np.linalg.norm(differences, ord=dual, axis=2), 1e-12)
        radii = np.where(gaps > 0, gaps / slopes, np.inf)
        return types.SimpleNamespace(
            radii=radii.min(axis=1), predictions=predictions, rivals=radii.argmin(axis=1)
        )


def models():
    return {
        "sure": stripe_classifier(cls=CertifiedClassifier, scale=0.05),
        "plain": stripe_classifier(name="plain"),
    }


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("certified")
    return workdir, evaluate(models(), stripe_dataset(), SUITE, CERTIFY, workdir)


def test_certified_rows_are_below_the_minima_of_models_that_certify(evaluated):
    _, results = evaluated
    assert results.complete
    for block in make_tables(results).blocks:
        titles = [row.title for row in block.rows]
        assert titles.index(CERTIFICATES) == titles.index("All") + 1
        row = block.rows[titles.index(CERTIFICATES)]
        assert set(row.cells) == {"sure"}
        attacked = block.last_minimum.cells["sure"].summary
        assert row.cells["sure"].summary.num_images == 10
        assert row.cells["sure"].summary.median.value <= attacked.median.value
    test = stripe_dataset().test
    images, labels = test.images[:10].astype(np.float32) / 255, test.labels[:10]
    expected = models()["sure"].certify(images, norm="l2")
    radii = np.where(expected.predictions == labels, expected.radii, 0)
    np.testing.assert_allclose(results.certified_radii("sure", "l2"), radii)
    assert np.all(radii <= results.closest("sure", "l2", ("stronger",)) * (1 + 1e-6))


def test_all_formats_have_the_row(evaluated):
    _, results = evaluated
    tables = make_tables(results)
    assert f"**{CERTIFICATES}**" in to_markdown(tables)
    assert f",{CERTIFICATES}," in to_csv(tables)


def test_certificates_are_not_computed_again(evaluated):
    workdir, results = evaluated
    before = (workdir / TIMES_FILE).read_text()
    assert "certified_l2" in before
    again = evaluate(models(), stripe_dataset(), SUITE, CERTIFY, workdir)
    assert make_tables(again) == make_tables(results)
    assert (workdir / TIMES_FILE).read_text() == before


def test_a_published_evaluation_keeps_them(evaluated, tmp_path):
    workdir, results = evaluated
    archive = tmp_path / "workdir.tar.xz"
    archive.write_bytes(pack(workdir, results))
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    assert make_tables(collect(tmp_path / "unpacked")) == make_tables(results)


def test_an_evaluation_without_certificates_has_no_row(evaluated, tmp_path):
    results = evaluate(models(), stripe_dataset(), SUITE, SETTINGS, tmp_path)
    assert f"| **{CERTIFICATES}**" not in to_markdown(make_tables(results))
    # Plans from before there were certificates lack the key.
    path = pathlib.Path(tmp_path) / "evaluation.json"
    content = json.loads(path.read_text())
    del content["certificates"]
    path.write_text(json.dumps(content))
    assert make_tables(collect(tmp_path)) == make_tables(results)


def test_no_attack_takes_the_name_of_certificates():
    with pytest.raises(SuiteError, match=r"no attack can be called 'certified_l0'.* certificates"):
        spec(name="certified_l0")
