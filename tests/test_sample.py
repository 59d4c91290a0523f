"""sample.py: which run it takes, where it finds the data, and the tokens it draws."""
import os

import pytest
import torch

import prepare_c4
import sample
from conftest import documents
from model import Decoder
from tiny_runs import run


@pytest.fixture(scope="module")
def two_runs(tiny, tmp_path_factory, device):
    """A folder with runs/a and the newer runs/b, which were trained in this folder, on its data/own."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(prepare_c4, "sotu", documents)
        assert prepare_c4.main(["--vocab=300", "--out=data/own"]) == 0
        for name, step in (("b", 1), ("a", 9)):
            assert run(tiny, "runs", name, "--data=data/own", f"--steps={step}", "--final_windows=1",
                       f"--device={device}") == 0
        os.utime(folder / "runs/b/step-00000001.pt", (2e9, 2e9))
    return folder


def text_of(capsys, *options):
    """Runs sample.py. Returns what it prints on stdout and on stderr."""
    assert sample.main(["--tokens=12", "--prompt=the", *options]) == 0
    return capsys.readouterr()


def error_of(capsys, *options):
    """Runs sample.py. Returns its one line of error after "sample.py: error: "."""
    assert sample.main([*options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("sample.py: error: ").strip()


def test_a_prompt_may_have_several_lines(two_runs, monkeypatch, capsys):
    monkeypatch.chdir(two_runs)
    assert sample.main(["--tokens=3", "--prompt=one\n\ttwo"]) == 0
    assert "one\n\ttwo" in capsys.readouterr().out


@pytest.mark.gpu
def test_each_option_has_its_effect(two_runs, monkeypatch, capsys):
    monkeypatch.chdir(two_runs)
    texts = [text_of(capsys, "--name=a", *more).out for more in (
        ["--temperature=0"], ["--temperature=0", "--seed=5"], ["--top_k=1"], ["--temperature=1e-40"],
        ["--temperature=1e-300", "--top_k=3"], ["--temperature=1"], ["--temperature=1", "--seed=5"])]
    assert texts[0].startswith("the") and set(texts[:5]) == {texts[0]}
    assert len(set(texts)) == 3


def test_only_the_likeliest_tokens_are_drawn():
    """100 draws at a high temperature give each of the three likeliest tokens, and no other one."""
    model = Decoder(width=16, layers=1, heads=2, context=8, vocab_size=50)
    likeliest = model(torch.tensor([[7]]))[0, -1, :50].topk(3).indices
    drawn = {sample.generate(model, [7], 1, temperature=100, top_k=3, seed=seed)[-1] for seed in range(100)}
    assert drawn == set(likeliest.tolist())


def test_the_newest_run_is_the_default(two_runs, monkeypatch, capsys):
    """It is the run with the newest checkpoint, and a note names it."""
    monkeypatch.chdir(two_runs)
    newest, named = text_of(capsys), text_of(capsys, "--name=b")
    assert newest.out == named.out != text_of(capsys, "--name=a").out
    assert newest.err == "note: the newest run is runs/b\n" and named.err == ""


def test_from_any_folder(two_runs, monkeypatch, tmp_path, capsys):
    """A relative path of data is also looked for beside the folder of the runs."""
    monkeypatch.chdir(two_runs)
    expected = text_of(capsys, "--name=a").out
    monkeypatch.chdir(tmp_path)
    named = ["--name=a", f"--runs={two_runs}/runs"]
    assert text_of(capsys, *named).out == expected
    assert text_of(capsys, *named, f"--data={two_runs}/data/own").out == expected


def test_other_data_are_refused(two_runs, monkeypatch, tmp_path, capsys):
    """Data of another tokenizer, of the same vocabulary or not, would give ids another meaning."""
    monkeypatch.chdir(two_runs)
    monkeypatch.setattr(prepare_c4, "sotu", lambda: documents(seed=1))
    for vocab in (300, 290):
        other = tmp_path / str(vocab)
        assert prepare_c4.main([f"--vocab={vocab}", f"--out={other}"]) == 0
        assert error_of(capsys, "--name=a", f"--data={other}").startswith(
            f"--data={other}: holds other tokens than the run was trained on (sha256 ")


def test_nothing_to_sample_from(two_runs, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/empty").mkdir(parents=True)
    assert error_of(capsys) == "--runs=runs: no run in it has a checkpoint; train one first"
    assert error_of(capsys, "--name=empty") == "--name=empty: no checkpoint in runs/empty; train it first"
    assert error_of(capsys, "--name=nothing") == "--name=nothing: no such folder in runs"
    (tmp_path / "runs/a").symlink_to(two_runs / "runs/a")
    assert error_of(capsys, "--name=a") == (f"--data={tmp_path}/data/own: no such folder; say where the data "
                                            "of the run are")


@pytest.mark.slow
def test_padded_ids_are_never_drawn():
    model = Decoder(width=8, layers=1, heads=1, context=4, vocab_size=5)    # 128 rows, 123 of them padding
    with torch.no_grad():
        model.head.weight[5:] = 100 * model.head.weight[:5].sum(0)
    ids = sample.generate(model, [0], 300, temperature=5.0)
    assert len(ids) == 301 and set(ids) == set(range(5))
