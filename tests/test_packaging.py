"""pyproject.toml says what the requirements files say."""

import tomllib

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(path: str) -> list[str]:
    lines = (ROOT / path).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_dependencies_are_those_of_the_requirements_files():
    assert PROJECT["dependencies"] == requirements("requirements.txt")
    extras = PROJECT["optional-dependencies"]
    assert extras["dev"] == requirements("tests/requirements.txt")
    assert set(extras["foolbox"]) <= set(extras["dev"])
