import csv
import html
import json
import re

import pytest

from medvol.cli.main import main
from medvol.core import ConfigError, MissingInputError
from medvol.evaluation import (
    MaskOptions,
    ScoreOptions,
    evaluate_scores,
    evaluate_segmentation,
    read_results,
)
from medvol.reporting import write_report
from medvol.reporting.cases import case_table, find_files
from tests.reporting.conftest import HOSTILE


@pytest.mark.parametrize("kind", ["mask_run", "score_run"])
def test_the_page_needs_no_network_and_names_stay_text(kind, request, tmp_path):
    page = write_report([request.getfixturevalue(kind)], tmp_path).page.read_text()
    assert "default-src 'none'" in html.unescape(page)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "<img src=x" not in page
    assert "&lt;/script&gt;&lt;img" in page
    assert "secret" not in page


def test_every_row_of_the_summary_shows_its_n_and_its_misses(mask_run, tmp_path):
    done = write_report([mask_run], tmp_path)
    with next(p for p in done.tables if p.name == "summary.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3 * 4  # two structures and both pooled, four metrics
    assert {row["n (patients)"] for row in rows} == {"6 (6)", "12 (6)"}
    of_two = [row for row in rows if row["label"].startswith(HOSTILE)]
    assert {(row["false negative"], row["false positive"]) for row in of_two} == {("1", "1")}


def test_latex_cells_are_escaped(mask_run, tmp_path):
    done = write_report([mask_run], tmp_path)
    text = next(p for p in done.tables if p.name == "summary.tex").read_text()
    assert r"\textbackslash{}frac\_\%\&" in text
    assert text.count(r"\\") == 1 + 3 * 4


def test_several_runs_share_a_page_and_keep_their_tables_apart(mask_run, score_run, tmp_path):
    done = write_report([mask_run, score_run], tmp_path, names=("organs", "../nodules"))
    assert len({path.parent for path in done.tables}) == 2
    assert all(path.resolve().is_relative_to(tmp_path) for path in done.tables)


def test_refusals_are_one_line_that_names_the_folder(tmp_path, mask_run, capsys):
    with pytest.raises(MissingInputError, match="holds no evaluation"):
        write_report([tmp_path], tmp_path / "out")
    with pytest.raises(ConfigError, match="1 runs cannot have 2 names"):
        write_report([mask_run], tmp_path / "out", names=("a", "b"))
    assert main(["report", str(tmp_path)]) == 2
    assert "medvol: " in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_the_verb_prints_where_things_are(mask_run, tmp_path, capsys):
    assert main(["report", str(mask_run), "-o", str(tmp_path), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["report"] == str(tmp_path / "report.html")


def columns(table):
    """Names of the columns as the page's filter compares them (report.js)."""
    return [re.sub(r"\s+", "_", name.lower()) for name in table.header]


def test_the_filter_that_the_page_suggests_names_a_column(mask_run, tmp_path):
    folder = mask_run.parent
    for metric in ("nsd_voxel", "hd95"):
        evaluate_segmentation(
            MaskOptions(folder / "pred", folder / "ref", tmp_path / metric, metrics=(metric,),
                        resamples=50)
        )  # fmt: skip
        results = read_results(tmp_path / metric)
        table = case_table(results, find_files(results, None))
        word = re.split("[<>]", table.example)[0]
        assert any(name.startswith(word) for name in columns(table))


def test_scores_that_are_no_probabilities_are_not_shown_as_such(tmp_path):
    lines = [f"c{k},{k // 10},{s}" for k, s in enumerate([*range(-9, 1), *range(10)])]
    (tmp_path / "t.csv").write_text("\n".join(["case,truth,score", *lines]) + "\n")
    evaluate_scores(ScoreOptions(tmp_path / "t.csv", tmp_path / "out", resamples=50))
    results = read_results(tmp_path / "out")
    table = case_table(results, find_files(results, None))
    assert table.header[-1] == "ranked rightly"
    assert not any(name.startswith("P(") for name in table.header)
    assert [table.rows[k].case for k in (0, 1)] == ["c10", "c9"]
    assert "not probabilities" in table.note
