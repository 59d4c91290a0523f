"""How the rules relate to one another, Optimizer in loops that are not ours, and what wrong use says."""
import copy
import inspect
import itertools
import math
import re
import shutil
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

import optim
import zoo
from conftest import ROOT
from optim import Optimizer, adafactor, adalayer, adamw, adasgd, lion, sgd, signum
from rule_cases import PAPER_CASES as CASES
from rule_cases import SHAPES, built, gradients, groups_of, run, weights
from trainer.measure import effective_lr
from zoo.table import state_bytes
from zoo import make
from zoo.__main__ import main as pencil_main
from zoo.frozen import FROZEN


# ---------------------------------------------------------------------------------------------------------
# What the rules have to do with one another: the lesson in numbers

def trajectory(rule, shape=(5, 7), steps=20, grads=None, blocks=None, lr=0.01, **hyper):
    draw = torch.Generator().manual_seed(3)
    w = torch.randn(shape, generator=draw, dtype=torch.float64)
    optimizer = Optimizer([dict(params=[w], blocks=[blocks or 1])], rule, lr=lr, **hyper)
    path = []
    for t in range(steps):
        w.grad = grads[t] if grads else torch.randn(shape, generator=draw, dtype=torch.float64)
        optimizer.step()
        path.append(w.clone())
    return torch.stack(path)


def same(a, b, tolerance=1e-12):
    assert (a - b).abs().max() <= tolerance, f"differ by {(a - b).abs().max():.1e}"


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_signum_is_lion_with_equal_betas(beta):
    assert torch.equal(trajectory(signum, beta1=beta), trajectory(lion, beta1=beta, beta2=beta))


def test_adams_step_is_signums_times_certainty():
    """Balles and Hennig's lemma: u_adam = sign(m) |m_hat| / sqrt(v_hat)."""
    draw = torch.Generator().manual_seed(0)
    m, v, m2 = (torch.zeros(50, dtype=torch.float64) for _ in range(3))
    for t in range(1, 30):
        g = torch.randn(50, generator=draw, dtype=torch.float64)
        time = torch.tensor(t, dtype=torch.float64)
        step, direction = adamw(g, m, v, time, beta2=0.9), signum(g, m2)
        certainty = (m / (1 - 0.9**t)).abs() / (v / (1 - 0.9**t)).sqrt()
        same(step, direction * certainty)
        assert (certainty <= 1 + 1e-12).all()    # with b1 = b2 it is |mean| / rms of one distribution


def test_adalayer_with_blocks_of_one_weight_is_adam():
    same(trajectory(adalayer, blocks=35), trajectory(adamw))


def test_adalayer_is_adam_where_gradients_have_one_size():
    draw = torch.Generator().manual_seed(5)
    grads = [torch.randn((5, 7), generator=draw, dtype=torch.float64).sign() * (t + 1) for t in range(20)]
    same(trajectory(adalayer, grads=grads), trajectory(adamw, grads=grads))


def test_adafactor_is_adam_where_squares_have_rank_one():
    draw = torch.Generator().manual_seed(5)
    rows, columns = (torch.rand(shape, generator=draw, dtype=torch.float64) for shape in ((5, 1), (1, 7)))
    signs = [torch.randn((5, 7), generator=draw, dtype=torch.float64).sign() for _ in range(20)]
    grads = [sign * rows * columns * (t + 1) for t, sign in enumerate(signs)]
    same(trajectory(adafactor, grads=grads), trajectory(adamw, grads=grads))


def test_adafactor_on_a_vector_is_adalayer():
    same(trajectory(adafactor, shape=(9,)), trajectory(adalayer, shape=(9,)))


def test_adasgd_with_one_tensor_is_adalayer():
    same(trajectory(adasgd), trajectory(adalayer))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_and_sgd_are_torchs(decay):
    for ours, theirs in ((dict(rule=adamw, beta2=0.95, eps=1e-8), lambda p: torch.optim.AdamW(
            p, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)),
            (dict(rule=sgd, beta1=0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))):
        if decay and ours["rule"] is sgd:
            continue    # torch's SGD adds its decay to the gradient: another algorithm
        a, b = weights(), weights()
        run(Optimizer(a.values(), lr=0.01, weight_decay=decay, **ours), a, gradients())
        run(theirs(list(b.values())), b, gradients())
        for role in a:
            same(a[role], b[role])


def test_adalayer_star_is_adalayer_with_the_heads_rows():
    a, b = weights(), weights()
    run(built("adalayer_star", a), a, gradients())
    run(built("adalayer", b, rows="head"), b, gradients())
    assert all(torch.equal(a[role], b[role]) for role in a)


# ---------------------------------------------------------------------------------------------------------
# What the authors' numbers do not cover, against a restatement of ours in plain loops

def restated(case, grads, lr=0.1):
    """The weights after some steps, from the formulas, one block at a time."""
    name, options = CASES[case]
    w, m, v = weights(), {}, {}
    roles = list(SHAPES)
    def role_set(key, default=""):
        text = options.get(key, default)
        return zoo.role_set(key, text) if text not in ("", "none") else set()
    rows = role_set("rows", "head" if name == "adalayer_star" else "")
    adaptive, untrained = role_set("adaptive", "+".join(roles)), role_set("untrained")
    frozen, updating = options.get("freeze_steps", 0), role_set("updating")
    plan = {role: (name.removesuffix("_star"), lr) if role in adaptive
            else (options["rest"], options["rest_lr"]) for role in roles if role not in untrained}
    b1, b2 = 0.9, 0.95
    for t, g in enumerate(grads, 1):
        everywhere = {role for role in plan if plan[role][0] == "adasgd"}
        together = sum((g[r] ** 2).sum() for r in everywhere) / max(1, sum(g[r].numel() for r in everywhere))
        for role, (rule, rate) in plan.items():
            m[role] = b1 * m.get(role, 0) + (1 - b1) * g[role]
            count = len(w[role]) if role in rows else 3 if role == "qkv" else 1
            gs, ms = g[role].reshape(count, -1), (m[role] / (1 - b1**t)).reshape(count, -1)
            u = ms.clone()    # what sgd_ema takes
            for k in range(count if rule != "sgd_ema" else 0):
                square = together if rule == "adasgd" else (gs[k] ** 2).sum() / gs[k].numel()
                old = v.get((role, k), 0.0)
                measured, moved = old + (square - old) / (t + 1), b2 * old + (1 - b2) * square
                is_held = frozen and role not in updating
                v[role, k] = measured if t <= frozen else old if is_held else moved
                u[k] /= (v[role, k] / (1 if frozen else 1 - b2**t)) ** 0.5 + 1e-15
            if t > frozen:
                w[role] = w[role].detach() - rate * u.reshape(w[role].shape)
    return w


@pytest.mark.parametrize("case", [case for case, (name, _) in CASES.items()
                                  if name in ("adalayer", "adalayer_star", "adasgd")])
def test_restated(case):
    w = weights()
    run(built(case, w), w, gradients(12))
    for role, expected in restated(case, gradients(12)).items():
        same(w[role], expected)


# ---------------------------------------------------------------------------------------------------------
# In loops that are not ours

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 8),
                               torch.nn.ReLU(), torch.nn.Linear(8, 2))


def loss_of(net):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(16, 1, 8, 8, generator=draw)
    return torch.nn.functional.cross_entropy(net(x).float(), (x.sum((1, 2, 3)) > 0).long())


@pytest.mark.parametrize("name", [*optim.RULES, "adalayer_frozen"])
def test_a_model_it_has_never_seen(name):
    """Convolutions and biases; a closure gives the same bits as none, and step() returns its loss."""
    nets = [network(), network()]
    hyper = {"freeze_steps": 1} if name == "adalayer_frozen" else {}
    rule = FROZEN if hyper else optim.RULES[name]
    closed, plain = (zoo.Optimizer(net.parameters(), rule, lr=0.003, **hyper) for net in nets)

    def closure():
        closed.zero_grad()
        loss = loss_of(nets[0])
        loss.backward()
        return loss
    for _ in range(4):
        plain.zero_grad()
        loss = loss_of(nets[1])
        loss.backward()
        plain.step()
        assert closed.step(closure).item() == loss.item()
    for p, q, start in zip(nets[0].parameters(), nets[1].parameters(), network().parameters()):
        assert torch.equal(p, q) and not torch.equal(p, start)


@pytest.mark.parametrize("scheduler", [
    lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=False)])
def test_torchs_schedulers_set_the_lr(scheduler):
    w, b = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    optimizer = Optimizer([w], signum, lr=0.1)
    torchs = torch.optim.SGD([b], lr=0.1)
    ours, theirs = scheduler(optimizer), scheduler(torchs)
    for _ in range(9):
        w.grad = b.grad = torch.ones(3, dtype=torch.float64)
        optimizer.step(), torchs.step()    # signum on ones moves by lr, and so does SGD
        ours.step(), theirs.step()
    same(w, b)
    assert optimizer.param_groups[0]["lr_peak"] == 0.1


def test_a_scaler_that_skips_a_step_does_not_advance_t():
    w = torch.ones(3)
    optimizer = Optimizer([w], adamw, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for gradient, t in ((1.0, 1), (math.inf, 1), (1.0, 2)):
        scaler.scale(torch.ones(()))    # a scaler must see a loss before it steps
        w.grad = torch.full((3,), gradient) * 8.0
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.state[w]["t"] == t
    assert w.isfinite().all()


def test_add_param_group_and_groups_with_rules_of_their_own():
    w, x, y = (torch.ones(3, dtype=torch.float64) for _ in range(3))
    optimizer = Optimizer([w], signum, lr=0.1, beta1=0.5)
    optimizer.add_param_group(dict(params=[x], lr=0.01))
    optimizer.add_param_group(dict(params=y, rule=sgd, lr=1.0, beta1=0.0))
    for p in (w, x, y):
        p.grad = torch.full((3,), 0.25, dtype=torch.float64)
    copied = copy.deepcopy(optimizer)
    optimizer.step()
    assert [p[0].item() for p in (w, x, y)] == [0.9, 0.99, 0.75]
    assert [g.get("beta1") for g in optimizer.param_groups] == [0.5, 0.5, 0.0]
    copied.step()    # a deep copy is an optimizer, too
    assert copied.param_groups[2]["params"][0][0].item() == 0.75


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.compiled)])
def test_unused_parameters_are_skipped_and_keep_their_own_time(compile):
    w, unused = torch.ones(3), torch.ones(3)
    optimizer = Optimizer([w, unused], adamw, lr=0.1, compile=compile)
    for t in range(4):
        w.grad, unused.grad = torch.ones(3), torch.ones(3) if t == 3 else None
        optimizer.step()
    assert (optimizer.state[w]["t"], optimizer.state[unused]["t"]) == (4, 1)
    same(unused, torch.full((3,), 0.9), 1e-6)    # Adam's first step is lr, whenever it comes


@pytest.mark.parametrize("option", ["--lr=0", "--lr=-1", "--lr=nan", "--steps=0"])
def test_the_pencil_needs_a_step_that_moves(option, capsys):
    with pytest.raises(SystemExit):
        pencil_main(["adamw", option])
    assert "--lr must be above 0, and --steps 1 or more" in capsys.readouterr().err


def test_a_missing_gradient_is_named_by_make():
    w = weights()
    optimizer = built("adamw", w)
    w["qkv"].grad = torch.ones_like(w["qkv"])
    with pytest.raises(RuntimeError, match="embed: has no gradient"):
        optimizer.step()
    assert not optimizer.state[w["qkv"]]    # and nothing has moved


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = Optimizer(table.parameters(), signum, lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize("case", CASES)
def test_no_memory_format_changes_a_step(case):
    """The same weights, transposed, or as convolutions with channels last: the same steps."""
    name, options = CASES[case]
    contiguous, strided = {}, {}
    for role, shape in dict(mlp_up=(4, 6), attn_out=(4, 3, 2, 2), head=(12, 4), norm=(4,)).items():
        p = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape)
        contiguous[role] = p.clone().requires_grad_()
        other = (p.to(memory_format=torch.channels_last) if p.dim() == 4 else
                 p.mT.contiguous().mT if p.dim() == 2 else p.repeat_interleave(2)[::2])
        strided[role] = other.clone(memory_format=torch.preserve_format).requires_grad_()
        assert strided[role].is_contiguous() is (role == "norm")
    options = {key: re.sub(r"qkv\+|embed\+|\+embed", "", value) if type(value) is str else value
               for key, value in options.items()}    # this model has no such roles
    for w in (contiguous, strided):
        optimizer = make(name, [(role, p, role) for role, p in w.items()], lr=0.01, **options)
        draw = torch.Generator().manual_seed(0)
        for _ in range(6):
            for p in w.values():
                g = torch.randn(p.shape, generator=draw, dtype=torch.float64)
                p.grad = torch.empty_like(p).copy_(g)
            optimizer.sampled = {p: 2 * p.grad for p in w.values()}
            optimizer.step()
    for role in contiguous:
        same(strided[role], contiguous[role], 1e-12)


ELEMENTWISE = {name: rule for name, rule in zoo.RULES.items() if rule.elementwise} | {
    f"adamw+{name}": zoo.modified("adamw", name) for name, line in zoo.MODIFIERS.items() if line.elementwise}


@pytest.mark.parametrize("compile", [
    False, pytest.param(True, marks=[pytest.mark.compiled, pytest.mark.slow])])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_elementwise_rule_moves_each_weight_as_if_it_were_alone(name, compile):
    """A tensor moves like its pieces, bit for bit in eager code."""
    draw = torch.Generator().manual_seed(0)
    sums = name in ("adasgd", "prodigy", "adamw+stable_decay")    # over all tensors, in another order
    dtype = torch.float64 if sums else torch.float32
    whole = torch.randn(6, 8, generator=draw, dtype=dtype)
    pieces = [piece.clone() for piece in whole.flatten().split([5, 16, 27])]
    one, many = (zoo.Optimizer(params, ELEMENTWISE[name], lr=0.01, weight_decay=0.1, compile=compile)
                 for params in ([whole], pieces))
    for _ in range(7):
        whole.grad = torch.randn(6, 8, generator=draw, dtype=dtype)
        for piece, g in zip(pieces, whole.grad.flatten().split([5, 16, 27])):
            piece.grad = g
        one.sampled, many.sampled = {whole: whole.grad}, {piece: piece.grad for piece in pieces}
        one.step(), many.step()
    found = torch.cat(pieces).view(6, 8)
    tolerance = 1e-6 if compile else 1e-14 if sums else 0
    assert torch.allclose(found, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.compiled)])
def test_autograd_notices_a_step(compile):
    """A backward pass through weights that a step has changed is an error, as with torch's optimizers."""
    w = torch.ones(3, requires_grad=True)
    optimizer = Optimizer([w], signum, lr=0.1, compile=compile)
    loss = w.square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_complex_weights_are_refused_before_anything_moves():
    for name in zoo.RULES:
        with pytest.raises(ValueError, match="parameter 0 of shape .2,.: has complex weights; give"):
            zoo.Optimizer([torch.ones(2, dtype=torch.complex64)], name, lr=0.1)


def test_bf16_weights_are_rounded_once():
    w, exact = (torch.linspace(-2, 2, 64).to(dtype) for dtype in (torch.bfloat16, torch.float32))
    w32 = w.float()
    optimizer = Optimizer([w], adamw, lr=0.01, weight_decay=0.1)
    w.grad = torch.linspace(1, 2, 64).to(torch.bfloat16)
    optimizer.step()
    assert optimizer.state[w]["m"].dtype == torch.float32
    assert torch.equal(w, (w32 * (1 - 0.001) - 0.01).to(torch.bfloat16))


def test_an_lr_above_the_first_one_is_no_negative_decay():
    """torch's OneCycleLR begins with a part of the peak. That part is then taken for the peak."""
    w = torch.ones(2)
    optimizer = Optimizer([w], signum, lr=0.25, weight_decay=0.5, weight_decay_kind="independent")
    w.grad = torch.ones(2)
    optimizer.param_groups[0]["lr"] = 0.5    # the factor is 0, the least that is allowed
    optimizer.step()
    assert w.tolist() == [-0.5, -0.5]
    optimizer.param_groups[0]["lr"] = 1.0
    with pytest.raises(ValueError, match="weight_decay=0.5: multiplies weights by -1 at lr 1; lower it or"):
        optimizer.step()


def test_your_own_rule_in_five_lines():
    """The example of README: sign descent that remembers which way it went."""
    def stubborn(g, m, *, beta1=0.9):
        m.lerp_(g.sign(), 1 - beta1)
        return m
    w = torch.zeros(2)
    optimizer = Optimizer([w], stubborn, lr=1.0)
    w.grad = torch.tensor([5.0, -0.1])
    optimizer.step()
    same(w, torch.tensor([-0.1, 0.1]), 1e-7)


# ---------------------------------------------------------------------------------------------------------
# Wrong use is one line that names what is wrong

P = torch.ones(2)
TRIPLES = [("a", torch.ones(4, 2), "mlp_up"), ("b", torch.ones(4, 2), "head"), ("c", torch.ones(2), "norm")]


@pytest.mark.parametrize("call, words", [
    (lambda: Optimizer([P], signum, lr=1, beta2=0.9),
     "beta2: is not a hyperparameter of signum: beta1"),
    (lambda: Optimizer([P], adamw, lr=1, beta1=1.0), "beta1=1.0: must be of type float and in "),
    (lambda: Optimizer([P], adamw, lr=1, beta2=-0.1), "beta2=-0.1: must be"),
    (lambda: Optimizer([P], adamw, lr=1, eps=math.nan), "eps=nan: must be"),
    (lambda: Optimizer([P], adamw, lr=1, beta1="0.9"), "beta1='0.9': must be of type float"),
    (lambda: Optimizer([P], signum, lr=-1), "lr=-1: must be"),
    (lambda: Optimizer([P], signum, lr=torch.ones(())), "lr=.*: must be a plain number"),
    (lambda: Optimizer([P], signum, lr=1, weight_decay=-1), "weight_decay=-1: must be"),
    (lambda: zoo.Optimizer([P], signum, lr=1, weight_decay=2),
     "weight_decay=2: multiplies weights by -1 at lr 1; lower it or lr, or give the highest lr as lr"),
    (lambda: Optimizer([P], signum, lr=1, weight_decay_kind="l2"),
     "weight_decay_kind='l2': must be coupled or"),
    (lambda: Optimizer([P, P], signum, lr=1), "given twice"),
    (lambda: Optimizer([dict(params=[P]), dict(params=[P])], signum, lr=1), "more than one parameter group"),
    (lambda: Optimizer([dict(params=[P], blocks=[3])], adalayer, lr=1),
     "2 weights do not divide into 3 blocks"),
    (lambda: Optimizer([dict(params=[P], blocks=[0])], adalayer, lr=1), "do not divide into 0 blocks"),
    (lambda: Optimizer([dict(params=[P], blocks=["2"])], adalayer, lr=1), "do not divide into '2' blocks"),
    (lambda: Optimizer([dict(params=[P], beta3=1)], signum, lr=1), "beta3: is not a hyperparameter"),
    (lambda: Optimizer([dict(params=[P], betas=(0.9, 0.9))], adamw, lr=1), "betas: is not a hyperparameter"),
    (lambda: Optimizer([dict(params=[P], momentum=0.9)], sgd, lr=1), "momentum: is not a hyperparameter"),
    (lambda: Optimizer([dict(params=[P], weight_decy=1)], sgd, lr=1), "weight_decy: is not a hyperparameter"),
    (lambda: Optimizer([dict(params=[P], block=[2])], adalayer, lr=1), "block: is not a hyperparameter"),
    (lambda: Optimizer([P], adamw, lr=True), "lr=True: must be a plain number"),
    (lambda: Optimizer([P], "muon", lr=1), "'muon' is no rule of this file; there are sgd, .*; more in zoo/"),
    (lambda: zoo.Optimizer([P], "mun", lr=1), "'mun' is no optimizer; did you mean "),
    (lambda: make("adamw", [("a", P)], lr=1), "roles: give .name, parameter, role.; without roles use Opt"),
    (lambda: optim.make("adamw", [P], lr=1), "roles: give .name, parameter, role.; without roles use Opt"),
    (lambda: make("adam", TRIPLES, lr=1), "'adam' is no optimizer; did you mean adamw"),
    (lambda: make("adamw", [("a", P, "bias")], lr=1), "a: has the unknown role 'bias'"),
    (lambda: make("adamw", [("a", P, "norm"), ("b", P, "norm")], lr=1), "given twice"),
    (lambda: make("adamw", [("a", P, "norm"), ("b", P, "head")], lr=1, of_role={"head": dict(lr=2)}),
     "more than one parameter group"),
    (lambda: make("adamw", TRIPLES, lr=1, untrained="embed"), "untrained='embed': no parameter has the role"),
    (lambda: make("adamw", TRIPLES, lr=1, of_role={"qkv": dict(lr=2)}), "of_role='qkv': no parameter has"),
    (lambda: make("adamw", TRIPLES, lr=1, of_role={"hed": dict(lr=2)}), "of_role='hed': must be one or more"),
    (lambda: make("signum", TRIPLES, lr=1, of_role={"head": dict(beta2=0.5)}),
     "beta2_of: signum, the rule of head, has no beta2; it takes lr, weight_decay, beta1"),
    (lambda: make("signum", TRIPLES, lr=1, of_role={"head": dict(beta1=1.5)}),
     "^beta1_of: head: beta1=1.5: must be of type"),
    (lambda: make("adasgd", TRIPLES, lr=1, of_role={"head": dict(lr=2)}), "lr_of: adasgd has one second"),
    (lambda: make("adamw", TRIPLES, lr=1, rows="head"),
     "rows: adamw, the rule of head, has no blocks"),
    (lambda: make("adalayer", TRIPLES, lr=1, rows="foot"), "rows='foot': must be one or more of embed"),
    (lambda: make("adalayer", TRIPLES, lr=1, rows=""), "rows='': must be one or more of"),
    (lambda: make("adalayer_star", TRIPLES, lr=1, rows="embed"), "rows='embed': must include head"),
    (lambda: make("adamw", TRIPLES, lr=1, adaptive="head"),
     "adaptive: adaptive, rest and rest_lr make a hybrid"),
    (lambda: make("adamw", TRIPLES, lr=1, rest_beta1=0.5), "rest_beta1: there is no other rule"),
    (lambda: make("adamw", TRIPLES, lr=1, adaptive="head", rest="sgd_ema", rest_lr=1, rest_beta2=0.5),
     "^rest_beta2: is not a hyperparameter of sgd_ema"),
    (lambda: make("adamw", TRIPLES, lr=1, freeze_steps=5, updating="none"), "freeze_steps: is for adalayer"),
    (lambda: make("adalayer", TRIPLES, lr=1, freeze_steps=5), "freeze_steps, updating: give both"),
    (lambda: make("adalayer", TRIPLES, lr=1, freeze_steps=0, updating="none"),
     "freeze_steps=0: must be of type int and in .1, inf."),
    (lambda: make("adamw", TRIPLES, lr=1, untrained="matrix+head+norm"),
     "untrained: leaves nothing to train"),
    (lambda: make(None, TRIPLES, lr=1), "None is no rule; give a name, a function or a Rule"),
    (lambda: make("lion+cautious", TRIPLES, lr=1),
     "'lion.cautious' is no optimizer; give lion as the optimizer and modify=cautious"),
    (lambda: make("signum", TRIPLES, lr=1, beta2=1), "beta2: is not a hyperparameter of signum"),
    (lambda: make("adamw", TRIPLES, lr=1, adaptive="head", rest="sgd", rest_lr=1, untrained="head"),
     "untrained: leaves nothing for adaptive to train"),
    (lambda: make("adamw", TRIPLES, lr=1, adaptive="head", rest="sgd", rest_lr=1, untrained="matrix+norm"),
     "untrained: leaves nothing for rest to train"),
    (lambda: make("adamw", TRIPLES, lr=1, adaptive="head+norm+matrix", rest="sgd", rest_lr=1),
     "adaptive='head.norm.matrix': names all roles"),
    (lambda: make("adalayer", TRIPLES, lr=1, rows="head", untrained="head"), "rows: names head, which is un"),
    (lambda: make("adalayer", TRIPLES, lr=1, freeze_steps=5, updating="norm", untrained="norm"),
     "updating: names norm, which is untrained"),
    (lambda: optim.make("sgd", TRIPLES, lr=1, nesterov=True), "nesterov: is not a hyperparameter of sgd"),
    (lambda: optim.make("adalayer", TRIPLES, lr=1, rows=("haed",)), "rows, by_role: there is no role 'haed'"),
    (lambda: optim.make("sgd", TRIPLES, lr=1, by_role={"nom": None}), "by_role: there is no role 'nom'"),
    (lambda: make("adamw", TRIPLES, lr=1, modify="agc+cautious+agc"), "modify='agc.*': names agc twice"),
    (lambda: make("adasgd", TRIPLES, lr=1, modify="agc"), "modify=agc: changes the gradient, but adasgd"),
    (lambda: make("prodigy", TRIPLES, lr=1, modify="mars_g"), "modify=mars_g: changes the gradient, but "),
    (lambda: make("schedule_free_sgd", TRIPLES, lr=1, modify="cautious_decay"),
     "modify=cautious_decay: changes the step, but schedule_free_sgd keeps an average"),
    (lambda: make("stable_adamw", TRIPLES, lr=1, modify="lookahead+mgup", weight_decay=0.1),
     "modify=mgup: would take the weight decay of stable_adamw"),
])
def test_wrong_use(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def forgotten_star(g, m, beta1=0.9):
    return m.lerp_(g, 1 - beta1)


def of_another_shape(g, m):
    return g.sum()


def of_nothing(g, m):
    m.add_(g)


@pytest.mark.parametrize("call, line", [
    (lambda p: Optimizer([p], forgotten_star, lr=1),
     "forgotten_star: beta1 is a hyperparameter; put a * before it"),
    (lambda p: Optimizer([p], of_another_shape, lr=1).step(),
     "the rule returns torch.Size([]), and must return u, of torch.Size([2, 2])"),
    (lambda p: Optimizer([p], of_nothing, lr=1).step(),
     "the rule returns None, and must return u, of torch.Size([2, 2])"),
    (lambda p: Optimizer("adamw", [p], lr=1),
     "params='adamw': tensors come first: Optimizer(params, 'adamw', lr=...)")])
def test_a_wrong_rule_is_one_line_also_without_the_zoo(call, line):
    p = torch.ones(2, 2)
    p.grad = torch.ones(2, 2)
    with pytest.raises(ValueError) as caught:
        call(p)
    assert str(caught.value) == line and p.tolist() == [[1, 1], [1, 1]]


def test_loading_what_does_not_fit():
    a, b = torch.ones(4, 2), torch.ones(4, 2)
    saved = Optimizer([a], adamw, lr=1)
    a.grad = torch.ones(4, 2)
    saved.step()
    with pytest.raises(ValueError, match="the state is of adamw, not of signum"):
        Optimizer([b], signum, lr=1).load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match="parameter 0 of shape .2, 4.: the state holds"):
        Optimizer([torch.ones(2, 4)], adamw, lr=1).load_state_dict(saved.state_dict())
    state = saved.state_dict()
    del state["state"][0]["v"]
    with pytest.raises(ValueError, match="the state holds"):
        Optimizer([b], adamw, lr=1).load_state_dict(state)


def remap(optimizer, state_dict):
    """A hook as torch documents it: it returns another state, in which two parameters have changed places."""
    state = state_dict["state"]
    return state_dict | dict(state={0: state[1], 1: state[0]})


def forget(optimizer):
    for state in optimizer.state.values():
        state["exp_avg" if "exp_avg" in state else "m"].zero_()


@pytest.mark.parametrize("before, after", [(remap, None), (None, forget), (remap, forget), (None, None)])
def test_hooks_of_load_state_dict_work_as_with_torch(before, after):
    """Adam with torch's eps, against torch.optim.AdamW with the same hooks."""
    ends = []
    for build in (lambda p: Optimizer(p, adamw, lr=0.1, beta2=0.999, eps=1e-8),
                  lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0)):
        w = [torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)]
        optimizer = build(w)
        w[0].grad, w[1].grad = torch.tensor([1.0, 3.0]).double(), torch.tensor([-2.0, 0.5]).double()
        optimizer.step()
        loaded = build(w)
        if before:
            loaded.register_load_state_dict_pre_hook(before)
        if after:
            loaded.register_load_state_dict_post_hook(after)
        loaded.load_state_dict(optimizer.state_dict())
        w[0].grad = w[1].grad = torch.tensor([0.5, 0.5]).double()
        loaded.step()
        ends.append(torch.cat(w))
    same(*ends, 1e-9)


def test_a_state_of_fewer_parameters_is_refused_in_torchs_words():
    messages = []
    for build in (lambda p: Optimizer(p, adamw, lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1)):
        with pytest.raises(ValueError) as caught:
            build([torch.ones(2), torch.ones(2)]).load_state_dict(build([torch.ones(2)]).state_dict())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_reading_never_changes_state():
    w = torch.ones(2)
    optimizer = Optimizer([w, torch.ones(2)], adamw, lr=1)
    w.grad = torch.ones(2)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    effective_lr(optimizer)
    assert str(optimizer.state_dict()["state"]) == str(before)
    optimizer.state[optimizer.param_groups[0]["params"][1]]    # to read a defaultdict makes an entry
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(effective_lr(optimizer)) == 1


def test_groups_may_hold_names_of_the_users_own():
    """Lightning's monitor names groups, and torch's schedulers keep initial_lr there."""
    w = torch.ones(2)
    own = dict(name="all", initial_lr=0.1, lr_scale=0.5)
    optimizer = Optimizer([dict(params=[w], **own)], adamw, lr=np.float32(0.5), beta1=np.float64(0.5), eps=1)
    group = optimizer.state_dict()["param_groups"][0]
    assert {key: group[key] for key in own} == own
    assert (group["lr"], group["beta1"], group["eps"]) == (0.5, 0.5, 1.0)
    assert {type(group[key]) for key in ("lr", "lr_peak", "beta1", "eps")} == {float}


def test_a_copy_of_an_optimizer_with_a_scheduler_steps_its_own_weights():
    """A scheduler puts a wrapper of step() into the optimizer, which steps the first one."""
    w = torch.ones(2)
    optimizer = Optimizer([w], adamw, lr=0.1)
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    w.grad = torch.ones(2)
    copied, v = copy.deepcopy((optimizer, w))
    copied.step()
    assert torch.equal(w, torch.ones(2)) and not torch.equal(v, torch.ones(2))
    assert ForkingPickler.loads(ForkingPickler.dumps(optimizer)).param_groups[0]["lr"] == w.new_tensor(
        optimizer.param_groups[0]["lr"], dtype=torch.float64).item()


def test_an_update_of_another_type_does_not_round_the_weights():
    """torch.where(g > 0, 1, -1) returns int64, in which a weight of 0.5 would be 0."""
    def sign_of_ints(g):
        return torch.where(g > 0, 1, -1)
    w = torch.tensor([0.5, -0.5])
    optimizer = Optimizer([w], sign_of_ints, lr=0.25)
    w.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert w.tolist() == [0.25, -0.25]


@pytest.mark.parametrize("compile", [False, True])
def test_an_optimizer_can_be_pickled(compile):
    w = torch.ones(2)
    optimizer = zoo.Optimizer([w], "muon", lr=0.1, compile=compile)
    w.grad = torch.ones(2)
    if not compile:    # the code that the compiler made is not part of the optimizer
        optimizer.step()
    copied = ForkingPickler.loads(ForkingPickler.dumps(optimizer))
    theirs, ours = copied.state_dict(), optimizer.state_dict()
    assert theirs["param_groups"] == ours["param_groups"] and theirs["state"].keys() == ours["state"].keys()
    for i, state in ours["state"].items():
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(theirs["state"][i][name]))
                   for name, x in state.items())


# ---------------------------------------------------------------------------------------------------------
# What is seen from outside, schedules, and the file itself

@pytest.mark.parametrize("case", CASES)
def test_effective_lr_is_the_one_in_the_step(case):
    """lr u = effective lr * m_hat, for every rule with a second moment; one value for each block."""
    w = weights()
    optimizer = built(case, w)
    run(optimizer, w, gradients()[:4])
    start = {role: p.detach().clone() for role, p in w.items()}
    run(optimizer, w, gradients()[4:5])
    rows = {row["name"]: row for row in effective_lr(optimizer)}
    for role, group in groups_of(optimizer).items():
        if group["rule"] in ("sgd", "sgd_ema", "signum", "lion"):
            assert role not in rows
            continue
        state, values = optimizer.state[w[role]], rows[role]["values"]
        count = dict(adamw=w[role].numel(), adafactor=w[role].numel() if w[role].dim() > 1 else 1)
        i = group["roles"].index(role)
        assert rows[role]["role"] == role and values.shape == (count.get(group["rule"], group["blocks"][i]),)
        m_hat = (state["m"] / (1 - group["beta1"] ** 5)).reshape(len(values), -1)
        same((values.double()[:, None] * m_hat).reshape(w[role].shape), start[role] - w[role], 1e-6)


@pytest.mark.parametrize("name, matrix", [("sgd", 4), ("signum", 4), ("lion", 4), ("adamw", 8),
                                          ("adalayer", 4), ("adafactor", 4), ("adasgd", 4)])
def test_state_per_weight(name, matrix):
    p = torch.zeros(64, 32)
    optimizer = Optimizer([p], optim.RULES[name], lr=1.0)
    promised = state_bytes(optimizer, optimizer.param_groups[0])
    p.grad = torch.ones(64, 32)
    optimizer.step()
    held = sum(s.numel() * s.element_size() for s in optimizer.state[p].values() if torch.is_tensor(s))
    factors = dict(adafactor=4 * (64 + 32), adalayer=4, adasgd=4).get(name, 0)
    assert promised == held == matrix * p.numel() + factors


def test_schedule():
    """The paper's: t < Tw: 0.1 + 0.9 t / Tw; then 0.1 + 0.9 (1 + cos(pi (t - Tw) / (T - Tw))) / 2."""
    for t in range(1, 41):
        expected = 0.1 + 0.9 * t / 4 if t < 4 else 0.1 + 0.9 * (1 + math.cos(math.pi * (t - 4) / 36)) / 2
        assert math.isclose(zoo.schedule(t, 40), expected, rel_tol=1e-15)
    assert zoo.schedule(40, 40) == pytest.approx(0.1) and zoo.schedule(4, 40) == 1
    assert [zoo.schedule(t, 10, zoo.SHAPES["constant"], 0.0) for t in (1, 5, 10)] == [1, 1, 1]
    linear = [zoo.schedule(t, 10, zoo.SHAPES["linear"], 0.0, floor=0.0) for t in (1, 5, 10)]
    assert linear == pytest.approx([0.9, 0.5, 0])
    # No room: no division by 0.
    assert zoo.schedule(10, 10, warmup=1.0) == 1 and zoo.schedule(1, 1) == 0.1


def pencil(capsys, *words):
    """{label: the numbers of each line that python -m zoo prints with it}."""
    assert pencil_main([*words]) == 0
    rows = {}
    printed = re.split(r"\nlr [0-9.]+, {.*\n", capsys.readouterr().out)[1]
    for line in printed.splitlines():
        if found := re.search(r"(\w+) +(-?\d+\.\d.*)", line):
            rows.setdefault(found[1], []).append([float(x) for x in found[2].replace("|", " ").split()])
    return rows


def test_by_hand(capsys):
    """The first of five weights has g 1, 0.5, -1. With beta1 0.9: m 0.1, 0.14, 0.026."""
    rows = pencil(capsys, "signum")
    first = {label: [numbers[0] for numbers in lines] for label, lines in rows.items()}
    assert first == dict(g=[1, 0.5, -1], m=[0.1, 0.14, 0.026], u=[1, 1, 1], w=[1, 0.9, 0.8, 0.7])
    rows = pencil(capsys, "adamw", "--lr=0.5", "--steps=4", "--grads=2 1 1 1 1; 0 1 1 1 1")
    assert [numbers[0] for numbers in rows["g"]] == [2, 0, 2, 0]
    assert rows["m_hat"][0] == [2, 1, 1, 1, 1] and rows["v_hat"][0] == [4, 1, 1, 1, 1]
    assert rows["w"][1] == [0.5, -2.5, 2.5, 0, 0.5]


ALIKE_BY_HAND = [    # on so few weights and steps these rules are the same, for the reason given
    ("adam_mini", "adalayer_star"),    # both have a block for each row of a matrix without a role
    ("adalomo", "adafactor_original"),    # one is the other until step 1 / lr^2
    ("adabound", "amsbound"),    # v only rises here
    ("lion", "lion_huber"),    # all gradients are above the corner
    ("adamw", "coupled_adam", "adamw_8bit"),    # no tensor is an embedding, or is as large as a block
    ("muon", "muon_8bit"),
    ("amsgrad", "adamp", "badam"),    # v only rises, no weight is projected, and there is only one layer
]


def test_by_hand_tells_every_rule_apart(capsys):
    """On one row of two weights, many rules gave equal digits."""
    updates = {name: str(pencil(capsys, name, "--steps=6")["u"]) for name in zoo.RULES}
    equal = {frozenset((a, b)) for a in updates for b in updates if a != b and updates[a] == updates[b]}
    assert equal == {frozenset(pair) for alike in ALIKE_BY_HAND for pair in itertools.combinations(alike, 2)}
    assert min(max(abs(x) for x in pencil(capsys, name)["u"][-1]) for name in zoo.RULES) > 1e-3


def test_by_hand_takes_a_rule_of_your_own(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def mine(g, m, *, beta1=0.5):\n    return m.lerp_(g, 1 - beta1).clone()\n")
    assert [numbers[0] for numbers in pencil(capsys, str(path))["m"]] == [0.5, 0.5, -0.25]


@pytest.mark.parametrize("words, line", [
    (["adam"], "argument NAME: 'adam' is no optimizer; did you mean adamw? There are sgd, "),
    *((["adamw", f"--grads={numbers}"], f"argument --grads: {numbers!r}: give five numbers for each step: "
       '"1 2 3 4 5; 5 4 3 2 1"') for numbers in ("1 2 3", "1,2,3,4,5", "")),
    (["adamw", "--lr=x"], "argument --lr: invalid float value: 'x'")])
def test_by_hand_refuses(words, line, capsys):
    with pytest.raises(SystemExit):
        pencil_main(words)
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_optim_starts_the_pencil_example(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "optim.py", "adalayer_star"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Adalayer* is Adalayer with one block for each row of the output head. In")


@pytest.mark.parametrize("rule", [rule.function for rule in (*optim.RULES.values(), FROZEN)])
def test_a_rule_explains_itself(rule):
    doc = inspect.getdoc(rule)
    for word in ("Remembers", "Moves", "lr ", "Defaults", "Source", "u  ="):
        assert word in doc, word


def test_a_role_may_have_settings_of_its_own():
    """lr is a multiple of the peak, all else a value; a set of roles stands for each of them."""
    w, plain, start = weights(), weights(), weights()
    own = {"head": dict(lr=0.5), "matrix+norm": dict(lr=2.0, beta1=0.0), "embed": dict(weight_decay=0.5)}
    optimizer = built("adamw", w, of_role=own)
    found = {role: (group["lr"], group["lr_peak"], group["beta1"], group["weight_decay"])
             for role, group in groups_of(optimizer).items()}
    assert found == dict(embed=(0.1, 0.1, 0.9, 0.5), qkv=(0.1, 0.1, 0.9, 0.0), mlp_up=(0.2, 0.2, 0.0, 0.0),
                         norm=(0.2, 0.2, 0.0, 0.0), head=(0.05, 0.05, 0.9, 0.0))
    run(optimizer, w, gradients(1))
    run(built("adamw", plain), plain, gradients(1))
    same(w["head"] - start["head"], 0.5 * (plain["head"] - start["head"]))
    same(w["mlp_up"] - start["mlp_up"], 2 * (plain["mlp_up"] - start["mlp_up"]))    # any beta1
    same(w["embed"] + 0.5 * start["embed"], plain["embed"])
    assert torch.equal(w["qkv"], plain["qkv"])


def test_a_plain_copy_of_the_settings_changes_no_bit():
    a, b = weights(), weights()
    run(built("adalayer_star", a, of_role={"head": dict(lr=1.0), "qkv": dict(beta2=0.95)}), a, gradients())
    run(built("adalayer_star", b), b, gradients())
    assert all(torch.equal(a[role], b[role]) for role in a)


ALONE = """
import torch, optim
torch.manual_seed(0)
for compile in COMPILE:
    for name, rule in optim.RULES.items():
        net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
        optimizer = optim.Optimizer(net.parameters(), rule, lr=3e-3 * rule.lr_factor / 10, compile=compile)
        x = torch.randn(256, 8)
        y = x * x.roll(1, 1)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], (name, losses)
        assert all(state["t"] == 20 for state in optimizer.state.values())
        print(name, compile)
"""


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.compiled)])
def test_optim_works_alone(tmp_path, compile):
    """optim.py in an empty folder trains a model that it has never seen, with each of the nine."""
    shutil.copy(ROOT / "optim.py", tmp_path)
    done = subprocess.run([sys.executable, "-c", ALONE.replace("COMPILE", f"({compile},)")], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} {compile}" for name in optim.RULES]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix) == ["optim.py"]
