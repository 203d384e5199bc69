"""The rules of a study are older than its rows, as far as git knows."""

import ast
import csv
import subprocess

import pytest
import yaml

from scripts.studies.origin import rules_at
from tests.runs import PROJECT


def test_rules_at_a_commit_are_those_of_the_study_s_file():
    if rules := rules_at("HEAD", "lipsformer"):  # else this is no git repository
        assert rules == rules_at("HEAD+", "lipsformer") and {"kind", "least"} <= rules[0].keys()
        assert rules_at("HEAD", "no_such_study") == ()
    assert rules_at("0123456789", "lipsformer") is None


@pytest.mark.parametrize(
    "table", sorted((PROJECT / "docs/lab").glob("**/*.csv")), ids=lambda path: f"{path.parent.name}"
)
def test_the_rules_of_a_study_are_older_than_its_rows(table):
    """At the commit of every row, the study file had the rules that it has now. A claim's sentence may be corrected."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    if not git("rev-parse", "--git-dir"):
        pytest.skip("this is no git repository, so it has no commits")

    def rules_in(text: str) -> object:
        if file.endswith(".py"):
            statements = [s for s in ast.parse(text).body if isinstance(s, ast.Assign)]
            return [ast.unparse(s) for s in statements if "CLAIMS" in {getattr(t, "id", "") for t in s.targets}]
        written = yaml.safe_load(text)
        return [claim["rule"] for claim in (written["init"] if table.stem == "at_init" else written).get("claims", ())]

    name = table.relative_to(PROJECT / "docs/lab").parts[0]  # results of a larger scale are in a folder below
    file = "scripts/language.py" if name == "language" else f"conf/study/{name}.yaml"
    with table.open(newline="") as rows:
        commits = {row["commit"] for row in csv.DictReader(rows)}
    now = rules_in((PROJECT / file).read_text())
    assert commits
    for commit in (commit.rstrip("+") for commit in commits):
        if not git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
            pytest.skip("this clone lacks the history")
        assert rules_in(git("show", f"{commit}:{file}")) == now
