"""--tables: what is written is what eval.json and ablate.json hold, escaped for each format."""

import csv
import pathlib
import re
import shutil
import subprocess

import pytest
from command_line import parsed

from pinsage_jax.core.errors import UserError
from pinsage_jax.evaluation import tables
from pinsage_jax.evaluation.evaluate import read_evaluation
from pinsage_jax.evaluation.table_files import Tables, latex_text, markdown_text, write_tables

HARD = r"50% of $A_1 & {B}#2~^<x>|\y"


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """Contents of eval.json with a kind of an odd name, and the folder with its tables."""
    folder = tmp_path_factory.mktemp("tables")
    result = read_evaluation(trained.workdir)
    for method in result["methods"].values():
        method["by_kind"][HARD] = next(iter(method["by_kind"].values()))
    write_tables(folder, ["csv", "markdown", "latex"], tables.table_files(result))
    return result, folder / "tables"


def test_the_csv_has_every_number(written):
    result, folder = written
    with open(folder / "evaluation.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    found = {
        (row["group"], row["slice"], row["method"], row["quantity"], row["metric"]): row
        for row in rows
    }
    assert len(found) == len(rows)
    for method, values in result["methods"].items():
        for group in ("overall", "by_kind", "by_degree"):
            for name, scored in values[group].items():
                for quantity in ("metrics", "pinsage_minus_baseline"):
                    for metric, numbers in scored.get(quantity, {}).items():
                        row = found.pop((group, name, method, quantity, metric))
                        assert float(row["value"]) == numbers["value"]
                        assert (float(row["low"]), float(row["high"])) == (
                            numbers["low"], numbers["high"],
                        )  # fmt: skip
    assert found == {}


def test_markdown_and_latex_have_the_printed_tables(written):
    result, folder = written
    printed = tables.evaluation_tables(result)
    numbers = re.findall(r"[+-]?\d\.\d{3}", printed)
    assert len(numbers) > 50
    markdown = (folder / "evaluation.md").read_text(encoding="utf-8")
    latex = (folder / "evaluation.tex").read_text(encoding="utf-8")
    assert re.findall(r"[+-]?\d\.\d{3}", markdown) == numbers
    assert re.findall(r"[+-]?\d\.\d{3}", latex.replace("$-$", "-")) == numbers
    # As many columns in each row as in its heading.
    for block in markdown.split("\n\n")[1:]:
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len({*cells}) == 1 and cells[0] > 2
    for block in latex.split(r"\begin{tabular}")[1:]:
        columns = re.match(r"\{(l+r+)\}", block)[1]
        rows = [line for line in block.splitlines() if line.endswith(r" \\")]
        assert len(rows) > 2
        for line in rows:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 6


def test_special_characters_are_escaped():
    assert latex_text(HARD) == (
        r"50\% of \$A\_1 \& \{B\}\#2\textasciitilde{}\textasciicircum{}\textless{}x\textgreater{}"
        r"\textbar{}\textbackslash{}y"
    )
    assert latex_text("-0.012 ±0.003 [-0.100, 1-2]\n") == (
        r"$-$0.012 $\pm$0.003 {[}$-$0.100, 1-2{]}"
    )
    assert markdown_text("a|b_c <i>\n*d*") == r"a\|b\_c &lt;i&gt; \*d\*"


def test_tex_reads_it(written, tmp_path):
    if not (program := shutil.which("pdflatex")):
        pytest.skip("no pdflatex here")
    text = (written[1] / "evaluation.tex").read_text(encoding="utf-8")
    page = "\\documentclass{article}\\usepackage{booktabs}\\usepackage[T1]{fontenc}\n"
    (tmp_path / "t.tex").write_text(f"{page}\\begin{{document}}{text}\\end{{document}}")
    subprocess.run([program, "-halt-on-error", "t.tex"], cwd=tmp_path, check=True)


def test_formats_are_checked_and_none_writes_nothing(tmp_path):
    given = ("--workdir=w", "--synthetic")
    assert parsed(*given, "--tables=csv, latex,csv").evaluate.table_formats == ["csv", "latex"]
    with pytest.raises(UserError, match=r"^--tables=csv,pdf: pdf is not one of csv, markdown, "):
        parsed(*given, "--tables=csv,pdf")
    write_tables(tmp_path, [], Tables("x", [], [], []))
    assert list(pathlib.Path(tmp_path).iterdir()) == []
