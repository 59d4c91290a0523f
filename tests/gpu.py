"""
Checks the whole program on a GPU in at most eight minutes, and writes the numbers into gpu.json.

    bash tests/gpu.sh                          on the first GPU
    bash tests/gpu.sh --nanogpt=../nanoGPT     also compares with a checkout of karpathy/nanoGPT
    bash tests/gpu.sh --device=cpu             runs the same parts in small, to test this script without a GPU

Each part is a process of its own. So a part that fails, hangs or breaks the GPU's context leaves the others
alone. The checks run side by side. Then the measurements run one after another. All output is in gpu.log. The
exit code is 1 if a part fails.
"""
import contextlib
import functools
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import pytest
import torch

import bench
import memory
import tiny_runs
from model import Decoder
from trainer import data
from trainer.build import decoder_shape
from trainer.errors import UserError, one_line
from trainer.machine import Machine, versions
from trainer.options import load, option
from trainer.settings import Settings, read

CHECKS = ("golden", "compiled", "zoo", "runs", "resume")
MEASUREMENTS = ("150m", "memory", "optimizer", "nanogpt")
# By how many seconds after the start a part must have ended. It may use what the parts before it left over.
ENDS = dict.fromkeys(CHECKS, 180) | {"150m": 265, "memory": 300, "optimizer": 420, "nanogpt": 460}


@dataclass(frozen=True)
class Options:
    """The options of tests/gpu.sh."""
    device: str = option("cuda", None, "where to compute; cpu: the same parts in small", ("cuda", "cpu"))
    nanogpt: str = option("", None, "folder of a checkout of karpathy/nanoGPT; default: no comparison")
    only: str = option("", None, "one part instead of all, in this process",
                       (*CHECKS, *MEASUREMENTS))
    out: str = option("gpu.json", None, "file for the numbers")

    def sizes(self, config: str, *more: str) -> list[str]:
        """Returns options of train.py: a config of configs/ with changes, or on a CPU a tiny model."""
        if self.device == "cuda":
            return [f"--config={ROOT}/configs/{config}.toml", "--device=cuda", "--precision=bf16", *more]
        return [f"--config={ROOT}/configs/nano.toml", "--device=cpu", "--threads=1", *memory.SMALL,
                "--width=16", "--layers=1", "--heads=1", "--context=16", "--vocab_size=300", "--batch=2"]


# ---------------------------------------------------------------------------------------------------------
# The checks. A part returns {"failed": lines, "what": a line, and any numbers}.

class Outcomes:
    """A plugin of pytest that keeps what became of the tests. A test that is skipped has checked nothing, so
    it counts as failed."""
    def __init__(self):
        self.passed, self.failed = 0, []

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
        if not report.passed:
            self.failed.append(f"{report.nodeid}: {self.reason(report.longrepr)}")

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.append(f"{report.nodeid}: {self.reason(report.longrepr)}")

    def reason(self, longrepr) -> str:
        return one_line(getattr(longrepr, "reprcrash", longrepr))


def tests_of(options: Options, names: list[str], marks: str, few: str) -> dict:
    """Runs the tests of some files that have these marks; on a CPU, only a few of them.

    Args:
        names: of the files, without test_ and .py.
        marks: an expression, as pytest takes it behind -m.
        few: an expression for the few, as pytest takes it behind -k.
    """
    outcomes = Outcomes()
    chosen = ["-m", marks, "-k", few if options.device == "cpu" else ""]
    paths = [str(ROOT / f"tests/test_{name}.py") for name in names]
    code = pytest.main(["-q", "--tb=short", f"--device={options.device}", *chosen, *paths],
                       plugins=[outcomes])
    failed = outcomes.failed
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        failed = [*failed, f"pytest ended with {pytest.ExitCode(code).name}"]
    return dict(failed=failed, what=f"{outcomes.passed} tests passed", passed=outcomes.passed)


def golden(options: Options) -> dict:
    """The numbers of the authors' code and of other papers' code, for all rules and two models."""
    return tests_of(options, ["golden", "zoo"], "gpu and not compiled", "adamw or ademamix or plain")


def compiled(options: Options) -> dict:
    """The numbers of the authors' code, for compiled rules."""
    return tests_of(options, ["golden"], "gpu and compiled", "signum")


def compiled_zoo(options: Options) -> dict:
    """The compiled rules of other papers against the eager ones, and the compiled model."""
    return tests_of(options, ["properties", "zoo", "model"], "gpu and compiled", "lion")


def runs(options: Options) -> dict:
    """Tiny runs that are resumed, and sampled text."""
    return tests_of(options, ["train", "sample"], "gpu", "adamw and fp32 or effect")


def resume(options: Options) -> dict:
    """A run that is resumed has the same bits, also with a context that takes several tiles of attention."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        words = [*options.sizes("nano", "--context=512", "--batch=8"), f"--data={folder}", "--steps=6",
                 "--save_every=3", "--keep=9", "--eval_every=0", "--final_windows=1"]
        memory.random_data(folder, read(words)[0].vocab_size)
        # The words name the config.
        run = functools.partial(tiny_runs.run, "", folder, compile=options.device == "cuda")
        first = run("a", *words)
        assert first == 0, f"train.py ended with exit code {first}"
        tiny_runs.rewound(folder / "a", folder / "b", 3)
        second = run("b", *words, "--resume")
        assert second == 0, f"train.py --resume ended with exit code {second}"
        tiny_runs.assert_same_run(folder / "a", folder / "b")
    return dict(failed=[], what="weights, state and losses have the same bits")


# ---------------------------------------------------------------------------------------------------------
# The measurements

def metrics(folder: str | Path) -> list[dict]:
    """Returns the lines of metrics.jsonl of the run that memory.measured() has left in a folder."""
    return [json.loads(line) for line in Path(folder, "runs/1/metrics.jsonl").read_text().splitlines()]


def tokens_per_second(rows: list[dict], skip: int) -> list[float]:
    """Returns the speeds that a run has logged after step `skip`. The first steps compile."""
    return [row["tokens_per_second"] for row in rows if row["kind"] == "train" and row["step"] > skip]


def share_of_peak(speed: float, config: Settings, peak: float) -> float:
    """Returns which part of the FLOP/s of a large matrix product a training reaches.

    Args:
        speed: of the training, in tokens per second.
        peak: of the product, in FLOP/s.
    """
    with torch.device("meta"):    # without memory
        model = Decoder(**decoder_shape(config))
    return speed * bench.flops_per_token(model, config.layers) / peak


def against_plan(predicted: int, measured: int, compiled: bool) -> list[str]:
    """Returns what is wrong with a prediction of --plan, in bytes. It is for eager code, and compiled code
    needs less."""
    is_right = measured <= 1.1 * predicted if compiled else memory.agree(predicted, measured)
    how = "compiled" if compiled else "eager"
    return [] if is_right else [f"--plan predicts {predicted:,} bytes, and {how} code needs {measured:,}"]


def below_the_floor(rows: list[dict]) -> list[str]:
    """Returns the rules whose step is faster than the memory, which means that the clock is wrong. A fifth of
    the bytes may be in the cache.

    Args:
        rows: those of bench.bench_optimizer().
    """
    return [f"{row['step of']}: takes {row['to the floor']} of the time that its bytes need"
            for row in rows if row.get("to the floor") and float(row["to the floor"]) < 0.8]


def train_150m(options: Options) -> dict:
    """30 steps of 150m on random tokens, compiled: speed, share of the peak of bf16, and memory."""
    words = [*options.sizes("150m"), "--optimizer=adamw", "--log_every=1"]
    with tempfile.TemporaryDirectory() as folder:
        measured = memory.measured(words, folder, steps=30)
        rows = metrics(folder)
    speeds, config = tokens_per_second(rows, skip=5), read(words)[0]
    low, speed, high = np.percentile(speeds, (25, 50, 75))
    on_gpu = options.device == "cuda"
    peak = bench.matmul_peak(torch.device(options.device), "bf16", (4096, 8192) if on_gpu else (256,))
    share, predicted = share_of_peak(speed, config, peak), memory.predicted(words)
    failed = against_plan(predicted, measured, compiled=True) if on_gpu else []
    if on_gpu and not rows[0]["config"]["compile"]:
        failed.append("the run was not compiled; gpu.log says why")
    what = f"{speed:,.0f} tokens/s, {share:.0%} of the bf16 peak, {measured / 1e9:.1f} GB"
    return {"failed": failed, "what": what, "tokens/s": speed, "quartiles": [low, high], "n": len(speeds),
            "bf16 peak, FLOP/s": peak, "of the peak": share, "peak memory, bytes": measured,
            "--plan, bytes": predicted, "losses": [row["loss"] for row in rows if row["kind"] == "train"]}


def memory_of_150m(options: Options) -> dict:
    """Two steps of 150m in eager code: the memory that --plan predicts."""
    words = [*options.sizes("150m", "--compile=false"), "--optimizer=adamw"]
    with tempfile.TemporaryDirectory() as folder:
        measured = memory.measured(words, folder)
    predicted, on_gpu = memory.predicted(words), options.device == "cuda"
    what = f"{measured:,} bytes, {measured / predicted:.2f} of --plan"
    if not on_gpu:    # there a tiny model is lost in the memory of the process
        what += ", which only a GPU judges"
    failed = against_plan(predicted, measured, compiled=False) if on_gpu else []
    return {"failed": failed, "what": what, "peak memory, bytes": measured, "--plan, bytes": predicted}


def optimizer(options: Options) -> dict:
    """A step of each rule of optim.py against fused AdamW, and against the time that its bytes need."""
    more = ["--rounds=20"]
    if options.device == "cpu":
        sizes = [word for word in options.sizes("nano") if not word.startswith(("--device=", "--threads="))]
        more = ["--rounds=3", "--threads=1", f"--options={' '.join(sizes)}"]    # those two are bench.py's own
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "bench.json")
        code = bench.main(["--only=optimizer", "--first_steps=false", f"--device={options.device}",
                           f"--out={out}", *more])
        assert code == 0, f"bench.py ended with exit code {code}"
        rows = json.loads(out.read_text())["optimizer"]
    steps = {row["step of"]: row["to fused AdamW"] for row in rows if "step of" in row}
    what = f"adamw takes {steps['adamw']} of fused AdamW, signum {steps['signum']}"
    return dict(failed=below_the_floor(rows) if options.device == "cuda" else [], what=what, rows=rows)


def against_nanogpt(options: Options) -> dict:
    """Steps of nano on random tokens, and steps of nanoGPT on the same tokens and with the same sizes."""
    words = [*options.sizes("nano"), "--optimizer=adamw", "--log_every=5"]
    config, on_gpu = read(words)[0], options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        memory.measured(words, folder, steps=60)
        ours = tokens_per_second(metrics(folder), skip=20)
        for split in ("train", "val"):
            shards = data.Tokens(folder, split, config.context).shards
            np.concatenate(shards).tofile(Path(folder, f"{split}.bin"))
        # This is {"vocab_size": ...} in the text format of pickle, which nanoGPT reads.
        Path(folder, "meta.pkl").write_text(f"(dVvocab_size\nI{config.vocab_size}\ns.")
        command = [sys.executable, "train.py", f"--device={options.device}", f"--compile={on_gpu}",
                   f"--dataset={folder}", f"--out_dir={folder}/out", f"--n_layer={config.layers}",
                   f"--n_head={config.heads}", f"--n_embd={config.width}", f"--block_size={config.context}",
                   f"--batch_size={config.batch}", "--gradient_accumulation_steps=1", "--dropout=0.0",
                   "--eval_interval=100000", "--eval_iters=1", "--log_interval=1", "--max_iters=60"]
        done = subprocess.run(command, cwd=options.nanogpt, text=True, stdout=subprocess.PIPE)
    print(done.stdout)
    assert done.returncode == 0, f"nanoGPT's train.py ended with exit code {done.returncode}"
    theirs = nanogpt_speeds(done.stdout, config.batch * config.context, skip=20)
    ratio = float(np.median(ours) / np.median(theirs))
    return {"failed": [], "what": f"{ratio:.2f} times nanoGPT's tokens/s", "tokens/s": ours,
            "tokens/s of nanoGPT": theirs, "ratio of the medians": ratio}


def nanogpt_speeds(output: str, tokens: int, skip: int) -> list[float]:
    """Returns the tokens per second of each iteration of nanoGPT after the first `skip`.

    Args:
        output: of its train.py, with lines such as "iter 7: loss 8.3127, time 12.50ms, mfu 3.10%".
        tokens: of an iteration.
    """
    times = [line.split("time ")[1].partition("ms")[0] for line in output.splitlines()
             if line.startswith("iter ")]
    return [1000 * tokens / float(ms) for ms in times[skip:]]


# ---------------------------------------------------------------------------------------------------------
# All parts

PARTS = dict(golden=golden, compiled=compiled, zoo=compiled_zoo, runs=runs, resume=resume,
             memory=memory_of_150m, optimizer=optimizer, nanogpt=against_nanogpt) | {"150m": train_150m}


def run_part(options: Options) -> int:
    """Runs one part in this process and writes its result into a file. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell may have started all this without it
    try:
        result = PARTS[options.only](options)
    except (Exception, KeyboardInterrupt) as error:
        traceback.print_exc()
        place = traceback.extract_tb(error.__traceback__)[-1]
        result = dict(failed=[one_line(f"{type(error).__name__} in {place.name}, `{place.line}`: {error}")])
    Path(options.out).write_text(json.dumps(result, indent=1))
    return int(bool(result["failed"]))


def start(name: str, options: Options, folder: str) -> subprocess.Popen:
    """Starts a part in a process of its own. Its output and its result come into files in the folder."""
    command = [sys.executable, __file__, f"--only={name}", f"--device={options.device}",
               f"--nanogpt={options.nanogpt}", f"--out={folder}/{name}.json"]
    with open(f"{folder}/{name}.log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def finish(name: str, process: subprocess.Popen, folder: str, begun: float) -> dict:
    """Waits for a part, or stops it when its time is over. Returns its result.

    Args:
        begun: when the first part began, by time.monotonic().
    """
    failed = []
    try:
        process.wait(max(0, begun + ENDS[name] - time.monotonic()))
    except subprocess.TimeoutExpired:
        failed.append(f"was stopped {ENDS[name]} seconds after the start")
        process.send_signal(signal.SIGINT)    # pytest still reports what it has found
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
    file, result = Path(folder, f"{name}.json"), dict(failed=[])
    if file.exists():
        result = json.loads(file.read_text())
    else:
        failed.append(f"ended with exit code {process.returncode} and left no result")
    return result | dict(failed=failed + result["failed"], ended=round(time.monotonic() - begun))


def report(name: str, result: dict) -> None:
    """Prints what became of a part."""
    outcome = "FAILED" if result["failed"] else "passed"
    print(f"{name:10s} {outcome} by second {result['ended']}: {result.get('what', 'no result')}", flush=True)
    for line in result["failed"]:
        print(f"           - {line}", flush=True)


def nvidia_smi() -> str:
    """Returns name, driver, memory and power limit of the GPU, or why nvidia-smi does not tell them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit",
               "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"none: {one_line(error)}"


def run_all(options: Options) -> int:
    """Runs all parts. Returns the exit code."""
    machine = Machine(Settings(device=options.device))
    results = dict(machine=versions() | dict(device=machine.name(), nvidia_smi=nvidia_smi(),
                                             cores=machine.threads), parts={})
    measurements = [name for name in MEASUREMENTS if name != "nanogpt" or options.nanogpt]
    print(f"{machine.name()}; nvidia-smi: {results['machine']['nvidia_smi']}")
    print(f"first {', '.join(CHECKS)}, side by side, then {', '.join(measurements)}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(Path(options.out).with_suffix(".log"), "w") as log:
        for names in (CHECKS, *([name] for name in measurements)):
            processes = {name: start(name, options, folder) for name in names}
            for name, process in processes.items():
                result = results["parts"][name] = finish(name, process, folder, begun)
                report(name, result)
                log.write(f"--- {name}\n{Path(folder, f'{name}.log').read_text()}\n")
                Path(options.out).write_text(json.dumps(results, indent=1))
    failed = [name for name, result in results["parts"].items() if result["failed"]]
    if not options.nanogpt:
        print("nanogpt    left out; --nanogpt=FOLDER names a checkout to compare with")
    print(f"failed: {', '.join(failed)}" if failed else f"all {len(results['parts'])} parts passed")
    print(f"the numbers are in {options.out}, the output of all parts in {log.name}")
    return int(bool(failed))


def main(argv: list[str]) -> int:
    """Runs a command line. Returns the exit code."""
    try:
        options = load(Options, argv, __doc__)[0]
        if options.nanogpt and not Path(options.nanogpt, "train.py").exists():
            raise UserError(f"--nanogpt={options.nanogpt}: has no train.py; give a checkout of nanoGPT")
        return run_part(options) if options.only else run_all(options)
    except UserError as error:
        print(f"tests/gpu.sh: error: {one_line(error)}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:    # the terminal has interrupted the parts, too
        return 75


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
