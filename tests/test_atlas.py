"""The atlas: pages and docs/atlas.html say what the code says, hold true numbers, and work in a browser."""
import json
import os
import re
import shutil
import subprocess

import matplotlib
import pytest
import torch

import zoo
from lessons import atlas
from trainer.errors import UserError

MAKE = "run `python -m lessons atlas --keep`"
NUMBER = r"-?\d+\.\d{6}"


def without_pencil_steps(text):
    """A page without its pencil steps, and their numbers. Another CPU may round the last digit elsewhere."""
    return re.sub(rf" *{NUMBER}", " x", text), [float(number) for number in re.findall(NUMBER, text)]


@pytest.fixture(scope="module")
def runs():
    return atlas.read_runs()


def test_tree_holds_all_rules():
    for name in zoo.RULES:
        ancestors = [name]
        while parent := atlas.parent_of(ancestors[-1]):
            assert parent not in ancestors
            ancestors.append(parent)
        assert ancestors[-1] == "sgd"


def test_pages_are_up_to_date(runs):
    """Nobody edits a page by hand, and no page lags behind docstrings, code, results and words."""
    made = atlas.texts_of(runs)
    assert set(atlas.PAGES.glob("*.md")) | {atlas.HTML} == set(made)
    for path, text in made.items():
        (words, steps), (made_words, made_steps) = map(without_pencil_steps, (path.read_text(), text))
        assert words == made_words, f"{path}: {MAKE}"
        assert steps == pytest.approx(made_steps, rel=1e-4, abs=1e-5), f"{path}: {MAKE}"


def test_the_study_on_the_pages_is_the_league():
    """A page has the place, learning rate, loss and verdict that study/results/league.md has."""
    table = (atlas.ROOT / "study/results/league.md").read_text().rpartition("| --- |\n")[2]
    league = [line.strip("| ").split(" | ") for line in table.splitlines()]
    results = {name: found for name, found in atlas.study_results().items() if found["best"]}
    assert sorted(results) == sorted(row[0] for row in league) and len(league) > 24
    for place, (name, lr, loss, spread, n, difference, verdict, *_) in enumerate(league, 1):
        found = results[name]
        assert (found["place"], found["difference"]) == (place, difference)
        assert found["verdict"] == verdict
        assert found["best"] == [float(lr), float(loss), float(spread), int(n)] in found["curve"]
    assert "Its place is 2 of " in (atlas.PAGES / f"{league[1][0]}.md").read_text()


def test_the_literature_names_what_there_is():
    """Each name in the last column is that of a rule or a modifier, or it is an option or a command."""
    table = (atlas.TEMPLATES / "rules.md").read_text().partition("## The literature")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 119 and len({paper for paper, _ in rows}) == len(rows)
    for _, here in rows:
        for name in re.findall("`([^`]*)`", here):
            is_option = name.startswith(("--", "python -m"))
            assert is_option or name in zoo.RULES or name in zoo.MODIFIERS, name


def test_files_are_small():
    assert atlas.HTML.stat().st_size < 3e6
    assert sum(path.stat().st_size for path in atlas.PAGES.iterdir()) < 5e6
    assert {path.stem for path in atlas.PAGES.glob("*.svg")} == set(zoo.RULES)


def test_pictures_have_the_same_bytes_each_time(runs):
    kept = (atlas.PAGES / "adalayer.svg").read_bytes()
    if f"<!--Matplotlib v{matplotlib.__version__}-->".encode() not in kept:
        pytest.skip("another version of matplotlib drew the pictures")
    assert atlas.picture_of("adalayer", runs) == kept, MAKE


@pytest.mark.parametrize("toy, rule", [("layers", "signum"), ("ravine", "adamw"), ("matrix", "adamw")])
def test_runs_are_those_of_the_rules(runs, toy, rule):
    """Muon is not among them: its loss on `matrix` doubles with another rounding, as lesson 6 says."""
    torch.set_num_threads(1)
    fresh, kept = json.loads(json.dumps(atlas.runs_on(toy, rule))), runs[f"{toy} {rule}"]
    assert fresh["best"] == kept["best"]
    for new, old in zip(fresh["curves"], kept["curves"], strict=True):
        assert [lr for lr, _ in new] == [lr for lr, _ in old]
        assert [loss for _, loss in new] == pytest.approx([loss for _, loss in old], rel=0.02)
    at_best = [torch.tensor(one["panels"][2]) for one in (fresh, kept)]
    assert torch.allclose(*at_best, rtol=0.02, atol=0.01)


def test_the_middle_of_the_slider_is_the_best_learning_rate(runs):
    """On the spike, both variants have the learning rates that are best without it."""
    for key, one in runs.items():
        variants = one["curves"][:1] if key.startswith("spike") else one["curves"]
        for curve, best in zip(variants, one["best"]):
            losses = {lr: loss for lr, loss in curve if loss is not None}
            assert losses[best] == min(losses.values()), key
        assert len(one["panels"]) == len(atlas.POSITIONS)


# ---------------------------------------------------------------------------------------------------------
# In a real browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
         "--dump-dom"]


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """A function that opens the atlas, runs a line of JavaScript, and returns the page as it is then."""
    if not CHROMIUM:
        pytest.skip("there is no chromium, so nobody has opened docs/atlas.html")
    folder = tmp_path_factory.mktemp("browser")

    def opened(script):
        page = folder / "atlas.html"
        page.write_text(atlas.HTML.read_text() + f"<script>{script}</script>")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", page.as_uri()]
        done = subprocess.run(command, text=True, capture_output=True, timeout=120,
                              env=os.environ | {"HOME": str(folder)})
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout.partition('<div id="show">')[2].partition("<script")[0]

    return opened


def test_the_browser_reports_errors(browse):
    with pytest.raises(AssertionError, match="not_defined"):
        browse("not_defined()")


def test_the_slider_changes_the_picture(browse):
    moved = "$('lr').value = {}; $('lr').dispatchEvent(new Event('input'))"
    best, lowest = browse(moved.format(0)), browse(moved.format(-2))
    assert best.count("<svg") == lowest.count("<svg") == 3
    assert re.findall("<svg.*?</svg>", best)[0] != re.findall("<svg.*?</svg>", lowest)[0]
    assert "<td>0.1</td><td>0.00163" in best.replace("\n", "")    # Adam in the ravine, at its best lr


def test_three_clicks_tell_adalayer_from_adam_mini(browse):
    page = browse("""for (const value of ["adalayer", "adam_mini", "code"])
                     document.querySelector(`button[value=${value}]`).click()""")
    marked = re.findall("<mark>(.*?)</mark>", page)
    assert "    v.lerp_(mean_of_blocks(g.square(), v), 1 - beta2)" in marked
    assert "    v.lerp_(square, 1 - beta2)" in marked
    assert "    m.lerp_(g, 1 - beta1)" not in marked and "<span>    m.lerp_(g, 1 - beta1)</span>" in page


def test_keys(browse):
    """1 ... 9 choose a view, Esc no rule, and a fifth rule takes the place of the first."""
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}));"
    five = "for (const name of ['sgd', 'lion', 'muon', 'soap', 'sophia']) toggle(name);"
    page = browse(press % "Escape" + five + press % "9")
    assert re.findall("<th><b.*?</b> (.*?)</th>", page) == ["Lion", "Muon", "SOAP", "Sophia"]


def test_runs_of_changed_rules_are_not_kept(monkeypatch):
    facts_of = atlas.facts_of
    changed = dict(code="u = 0")
    monkeypatch.setattr(atlas, "facts_of", lambda name: facts_of(name) | (changed if name == "lion" else {}))
    known = {key.split()[1] for key in atlas.read_runs(["muon"])}
    assert zoo.RULES.keys() - known == {"lion", "muon", "sophia"}    # Sophia needs labels, which toys lack


@pytest.mark.parametrize("options, message", [
    (["--keep", "--anew=mun"], "--anew=mun: there is no such rule"),
    (["--anew=muon"], "--anew: goes with --keep")])
def test_rules_to_train_anew_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        atlas.main(options)
