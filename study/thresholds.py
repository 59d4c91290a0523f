"""
The thresholds that decide the verdicts, each with its unit and its reason.

All of them were fixed before the first run. Whoever disputes a verdict can change a number here and run
`python -m study` again, which needs no new training.
"""
from typing import NamedTuple


class Threshold(NamedTuple):
    """One threshold as the report prints it."""
    name: str
    value: float
    reason: str


THRESHOLDS: list[Threshold] = []


def threshold(name: str, value: float, reason: str) -> float:
    """Adds a threshold to THRESHOLDS, which the report prints, and returns its value."""
    THRESHOLDS.append(Threshold(name, value, reason))
    return value


PARITY = threshold(
    "PARITY", 0.03,
    "nats. Losses are comparable if they differ by at most this. The paper gives no number. Its other "
    "hyperparameters gain at most 0.02, and its reviewers regarded 3.07 against 3.10 as a difference.")

COUNTS = threshold(
    "COUNTS", 2.0,
    "standard deviations over seeds. A smaller difference may be luck. For means of three seeds this is 2.4 "
    "standard errors of a difference.")

GAIN = threshold(
    "GAIN", 0.02,
    "nats. According to the paper, no hyperparameter but the learning rate and momentum gains more.")

USABLE = threshold(
    "USABLE", 0.2,
    "nats above the best loss. Up to there a learning rate is useful. This is seven times PARITY, and far "
    "from divergence.")

STEP = threshold(
    "STEP", 0.5,
    "decades: the spacing of the grid of learning rates. Two optima or widths that differ by at most this "
    "count as equal.")

RESOLVED = threshold(
    "RESOLVED", 0.1,
    "decades. Widths are interpolated between points of the grid, and noise moves them by this much.")

NARROW = threshold(
    "NARROW", 0.25,
    "decades. A variant is unstable if it is narrower than its reference by more than this. It is half a "
    "step of the grid, and more than an error of RESOLVED in both widths explains.")

NEAR = threshold(
    "NEAR", 0.5,
    "nats above the best loss. Only settings up to there tell how much seeds differ, since runs beyond it "
    "are unstable.")

ORDERS = threshold(
    "ORDERS", 100,
    "ratio of the quantiles .95 and .05. 'Several orders of magnitude' are at least two.")

ALIKE = threshold(
    "ALIKE", 10,
    "ratio of the quantiles .95 and .05. 'Remarkably similar' is within one order of magnitude.")

SMALLER = threshold(
    "SMALLER", 3.16,
    "ratio of two medians. 'Much smaller' is smaller by at least a step of the grid of learning rates.")

MOST = threshold(
    "MOST", 0.5,
    "fraction. 'Most of the gap' is at least half of it.")
