"""The paper's decoder: sizes to the unit, initial weights, roles, and the parts that can be switched."""
import tomllib

import pytest
import torch

import zoo
import prepare_c4
from conftest import ROOT
from model import Decoder, causal_attention, rotary_tables, rotate
from trainer import settings
from trainer.build import decoder_shape
from trainer.options import load, read_toml

SMALL = dict(width=32, layers=2, heads=2, context=16, vocab_size=50)
SIZES = {    # the paper's width, layers, heads, weights outside embedding and head, all, steps, tokens/s
    "150m": (1024, 12, 16, 151_045_120, 216_843_264, 25_000, 300_000),
    "300m": (1024, 24, 16, 302_089_216, 367_887_360, 50_000, 160_000),
    "600m": (1408, 24, 22, 571_086_208, 661_558_656, 100_000, 98_000),
    "1.2b": (2048, 24, 32, 1_208_158_208, 1_339_754_496, 200_000, 55_000),
    "150m-long": (1024, 12, 16, 151_045_120, 216_843_264, 100_000, 300_000),
}
WARMUP = {"150m": 2500, "300m": 5000, "600m": 10_000, "1.2b": 20_000, "150m-long": 10_000}
LRS = dict(adamw=(3.16e-3, 1e-3, 1e-3, 1e-3), adafactor=(3.16e-3, 1e-3, 1e-3, 1e-3),
           lion=(3.16e-4, 3.16e-4, 3.16e-4, 1e-4), signum=(3.16e-4, 3.16e-4, 3.16e-4, 3.16e-4))


@pytest.mark.parametrize("i, size", list(enumerate(SIZES)))
def test_the_papers_sizes_and_settings(i, size):
    width, layers, heads, hidden, total, steps, speed = SIZES[size]
    file = f"--config={ROOT}/configs/{size}.toml"
    config, hyper, _ = settings.read([file])
    assert (config.width, config.layers, config.heads, config.steps) == (width, layers, heads, steps)
    assert (config.batch, config.context, config.vocab_size, config.padded_vocab) == (256, 512, 32100, 32128)
    assert (config.warmup, config.warmup_from, config.floor, config.schedule) == (0.1, 0.1, 0.1, "cosine")
    assert zoo.schedule(WARMUP[size], steps) == 1 > zoo.schedule(WARMUP[size] - 1, steps)
    assert (config.throughput, config.seed, config.data) == (speed, 0, "data/c4_t5")
    prepared = load(prepare_c4.Options, config.prepare.split())[0]
    assert (prepared.dataset, prepared.tokenizer) == ("c4", "t5")
    assert prepared.tokens >= steps * 256 * 512 and prepared.val_tokens >= 32_000 * 512
    assert 1000 * 32 == config.final_windows    # the authors' 1,000 batches of 32
    assert (config.clip, config.weight_decay, config.weight_decay_kind) == (1.0, 0.0, "independent")
    assert (config.qk_norm, config.z_loss) == (True, 1e-4)
    assert hyper == dict(beta1=0.9, beta2=0.95, eps=1e-15, beta1_of="", beta2_of="", eps_of="")
    for name, lrs in LRS.items():
        own = read_toml(f"{ROOT}/configs/{size}.toml").get("lr", {}).get(name)
        assert own == (lrs[i] if size != "150m-long" else None)    # there the paper does not state it
        chosen = settings.read([file, f"--optimizer={name}"])[0].lr
        assert chosen == pytest.approx(own or lrs[0], rel=0.06)
    assert settings.read([file, "--optimizer=lion", "--lr=1"])[0].lr == 1.0    # the command line wins
    for name, betas in dict(adafactor=(0.9, 0.95), lion=(0.9, 0.95), signum=(0.9,), sgd=(0.98,),
                            sgd_ema=(0.9,), adalayer_star=(0.9, 0.95)).items():
        hyper = settings.read([file, f"--optimizer={name}"])[1]
        assert (hyper["beta1"], *([hyper["beta2"]] if "beta2" in hyper else [])) == betas
        assert hyper.get("eps", 1e-15) == 1e-15
    if size == "150m":
        lrs = [settings.read([file, f"--optimizer={name}"])[0].lr for name in ("sgd", "adalayer_star")]
        assert lrs == [1.0, 3.16e-3]
    plain = settings.read([file, "--qk_norm=false", "--z_loss=0"])[0]    # the paper's other architecture
    assert plain.z_loss == 0 and {k for k in vars(config) if getattr(config, k) != getattr(plain, k)} == \
        {"qk_norm", "z_loss"}
    with torch.device("meta"):
        model, other = (Decoder(**decoder_shape(c) | dict(attention="sdpa")) for c in (config, plain))
    count = sum(p.numel() for p in model.parameters())
    assert (count - model.embed.weight.numel() - model.head.weight.numel(), count) == (hidden, total)
    assert sum(p.numel() for p in other.parameters()) == total - 2 * layers * width


def test_every_parameter_has_its_role():
    model = Decoder(**SMALL)
    roles = {name: role for name, p, role in model.roles()}
    assert list(roles) == [name for name, p in model.named_parameters()]
    block = dict(attn_norm="norm", qkv="qkv", q_norm="norm", k_norm="norm", attn_out="attn_out",
                 mlp_norm="norm", mlp_up="mlp_up", mlp_down="mlp_down")
    assert roles == {"embed.weight": "embed", "final_norm.weight": "norm", "head.weight": "head"} | {
        f"blocks.{i}.{part}.weight": role for i in range(2) for part, role in block.items()}
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="extra.weight: give its module a role in ROLE_OF_MODULE"):
        list(model.roles())


def test_initial_weights():
    """Cut at 3 sigma, where the standard deviation is 0.9866 sigma;
    smaller with depth where the stream is fed."""
    shape = SMALL | dict(width=128, layers=3, vocab_size=512)
    model = Decoder(**shape, seed=1)
    for name, p, role in model.roles():
        if role == "norm":
            assert (p == 1).all()
            continue
        sigma = p.shape[1] ** -0.5
        if name.split(".")[-2] in ("attn_out", "mlp_down"):
            sigma /= (2 * (int(name.split(".")[1]) + 1)) ** 0.5
        assert p.std().item() == pytest.approx(0.9866 * sigma, rel=0.02), name
        assert p.abs().max() <= 3 * sigma * 1.0001, name
    again, other = (Decoder(**shape, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    assert not torch.equal(model.head.weight, other.head.weight)


def test_padded_vocab():
    assert Decoder(**SMALL).head.weight.shape == (128, 32)
    assert Decoder(**SMALL | dict(vocab_size=128)).head.weight.shape == (128, 32)
    assert Decoder(**SMALL | dict(padded_vocab=50)).head.weight.shape == (50, 32)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_both_attentions_agree(dtype, tolerance):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 20, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    ends = []
    fused = torch.nn.functional.scaled_dot_product_attention
    for attend in (causal_attention, lambda *x: fused(*x, is_causal=True)):
        y = attend(q, k, v)
        ends.append((y, *torch.autograd.grad(y.float().square().sum(), (q, k, v))))
    for a, b in zip(*ends):
        assert (a - b).float().norm() <= tolerance * b.float().norm()


def test_rotation_depends_on_distance_alone():
    """RoPE: q at position i and k at position j meet at an angle that only i - j decides."""
    cos, sin = rotary_tables(32, 8)
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8).expand(1, 1, 32, 8), torch.randn(1, 1, 1, 8).expand(1, 1, 32, 8)
    products = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-2, -1))[0, 0]
    for distance in range(-5, 6):
        diagonal = products.diagonal(distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-5
    assert (products.diagonal(1)[0] - products.diagonal(2)[0]).abs() > 1e-3


def test_the_future_is_unseen():
    model = Decoder(**SMALL)
    tokens = torch.randint(0, 50, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9]) and not torch.equal(before[:, 9:], after[:, 9:])


def test_z_loss_and_qk_norm_can_be_off():
    tokens = torch.randint(0, 50, (2, 17))
    model, plain = Decoder(**SMALL), Decoder(**SMALL, qk_norm=False)
    assert len(list(model.parameters())) - len(list(plain.parameters())) == 4
    objective, loss, z = model(tokens[:, :-1], tokens[:, 1:], z_loss=1e-4)
    logits = model(tokens[:, :-1]).double()
    assert z.item() == pytest.approx(1e-4 * logits.exp().sum(-1).log().square().mean().item(), rel=1e-5)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    objective, loss, z = model(tokens[:, :-1], tokens[:, 1:])
    assert z.item() == 0 and objective.item() == loss.item()


@pytest.mark.parametrize("chunk", [5, 16, 512])
def test_the_loss_in_chunks_is_the_loss(chunk):
    """Values and gradients against autograd through all logits at once."""
    tokens = torch.randint(0, 50, (2, 17))
    model, whole = (Decoder(**SMALL, loss_chunk=chunk) for _ in range(2))
    objective, loss, z = model(tokens[:, :-1], tokens[:, 1:], z_loss=1e-2)
    (3 * objective).backward()
    logits = whole(tokens[:, :-1])
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    square = 1e-2 * logits.logsumexp(-1).square().mean()
    (3 * (cross_entropy + square)).backward()
    assert [x.item() for x in (loss, z)] == pytest.approx([cross_entropy.item(), square.item()], rel=1e-5)
    for (name, a), b in zip(model.named_parameters(), whole.parameters()):
        assert (a.grad - b.grad).norm() <= 1e-5 * b.grad.norm(), name


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_parts_agree_with_eager(device):
    tokens = torch.randint(0, 50, (2, 17), device=device)
    eager, compiled = Decoder(**SMALL).to(device), Decoder(**SMALL).to(device)
    compiled.compile_parts()
    torch._dynamo.utils.counters.clear()
    for model in (eager, compiled):
        objective, loss, z = model(tokens[:, :-1], tokens[:, 1:], z_loss=1e-4)
        objective.backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2    # one block for all, and the losses
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters()):
        assert (a.grad - b.grad).norm() <= 1e-5 * a.grad.norm(), name


def test_the_default_config_is_nano():
    assert tomllib.loads((ROOT / "configs/nano.toml").read_text())["model"] == dict(
        width=128, layers=4, heads=2, context=128, vocab_size=4096)
    assert settings.Settings.config == "configs/nano.toml"
