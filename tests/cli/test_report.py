import pytest

from silotune.cli import main
from simulations.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "run", {"name": "two-shops"}, private=True)
    for arm, auc in (("local-only", 0.7), ("federated-eps8", 0.75)):
        for merchant in ("north", "south"):
            score = {"kind": "score", "seed": 0, "arm": arm, "merchant": merchant}
            run.append(score | {"auc": auc})
    run.finish("finished")
    return run


def test_the_report_is_made_again_and_the_table_printed(run, capsys):
    assert main(["report", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert "LoRA, each merchant alone" in printed
    assert "+0.050" in printed
    assert printed.endswith(f"{run.path / 'report.html'}\n")
    html = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<h1>two-shops</h1>" in html
    (run.path / "report.html").unlink()
    assert main(["report", str(run.path)]) == 0
    assert (run.path / "report.html").read_text(encoding="utf-8") == html


def test_a_folder_that_holds_no_run_is_refused_in_words(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: holds no run (run.json is missing).\n"


def test_a_damaged_run_is_refused_with_file_and_line(run, capsys):
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("oops\n")
    assert main(["report", str(run.path)]) == 2
    assert "metrics.jsonl: line 5 is not valid JSON" in capsys.readouterr().err


def test_without_the_extra_the_remedy_is_named(run, capsys, monkeypatch):
    import builtins

    real = builtins.__import__

    def without_jinja2(name, *args, **kwargs):
        if name.startswith("simulations.report"):
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_jinja2)
    assert main(["report", str(run.path)]) == 2
    assert "pip install 'silotune[simulation]'" in capsys.readouterr().err
