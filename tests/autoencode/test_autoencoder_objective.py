"""The loss against its definition, the perceptual distance, and the settings."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from causalfusion.autoencode.build import build_codec
from causalfusion.autoencode.objective import Objective
from causalfusion.autoencode.perceptual import open_perceptual, perceptual_distance
from causalfusion.config.autoencoding import AutoencoderConfig, ReconstructionConfig
from causalfusion.errors import UserError

KL = AutoencoderConfig(downsample=2, latent_channels=3, width=8).complete()
FIXED = AutoencoderConfig(kind="fixed_variance", downsample=4, width=32, depth=1, deviation=0.5).complete()


def images(count=2, side=8):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_the_loss_of_a_learned_deviation():
    codec, x = build_codec(KL, (3, 8, 8), 0), images()
    noise = torch.randn(2, 3, 4, 4)
    losses = Objective(KL, ReconstructionConfig(kl_weight=0.5), None)(codec, x, noise)
    posterior = codec.autoencoder.encode(x).latent_dist
    expected = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).mean()
    assert losses.kl == pytest.approx(float(expected), rel=1e-5)
    decoded = codec.autoencoder.decode(posterior.mean + posterior.std * noise).sample
    assert losses.reconstruction == pytest.approx(float((decoded - x).abs().mean()))
    assert losses.total == pytest.approx(float(losses.reconstruction + 0.5 * losses.kl))


@torch.no_grad()
def test_the_loss_of_a_fixed_deviation():
    codec, x = build_codec(FIXED, (3, 8, 8), 0), images()
    noise = torch.randn(2, 4, 2, 2)
    losses = Objective(FIXED, ReconstructionConfig(reconstruction="l2"), None)(codec, x, noise)
    mean = codec.autoencoder.encode(x).latent_dist.mean
    decoded = codec.autoencoder.decode(mean + 0.5 * noise).sample
    assert losses.kl == pytest.approx(float(mean.square().mean()))
    assert losses.total == pytest.approx(float((decoded - x).square().mean() + 0.01 * mean.square().mean()))


def test_the_perceptual_loss_is_added():
    codec, x = build_codec(KL, (3, 8, 8), 0), images()
    settings = ReconstructionConfig(perceptual="x", perceptual_weight=3.0)
    distance = perceptual_distance(lambda pixels: [pixels])
    losses = Objective(KL, settings, distance)(codec, x, torch.zeros(2, 3, 4, 4))
    assert losses.perceptual is not None
    expected = losses.reconstruction + 1e-4 * losses.kl + 3 * losses.perceptual
    assert torch.allclose(losses.total, expected)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.autoencoder.parameters())


def test_perceptual_distance_is_that_of_directions():
    """Features of one place: the squared difference of unit vectors is 2 - 2 cos; lengths do not count."""
    distance = perceptual_distance(lambda pixels: [pixels.mean((2, 3))])
    a = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    b = torch.tensor([0.3, 0.3, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert distance(a, b) == pytest.approx(2 - 2 / 2**0.5)
    assert distance(a, 0.1 * a) == pytest.approx(0, abs=1e-6)


def test_a_cifar_classifier_as_perceptual_network(tmp_path):
    from safetensors.torch import save_file

    from causalfusion.encoders.resnet_cifar import ResNetCifarNetwork

    network = ResNetCifarNetwork(1).eval()
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "judge.safetensors")
    distance = open_perceptual(f"resnet-cifar:{tmp_path / 'judge.safetensors'}", torch.device("cpu"))
    x = images(side=32)
    y = (x + 0.3 * torch.randn(x.shape)).requires_grad_()
    assert distance(x, x) < 1e-6 < distance(y, x)
    distance(y, x).backward()
    assert y.grad is not None and y.grad.abs().sum() > 0
    # Its last features are those that the judge sees.
    seen = []
    hook = network.layer3.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        network(((x + 1) * 127.5).permute(0, 2, 3, 1))
    hook.remove()
    from causalfusion.encoders.networks import resnet_cifar

    maps = resnet_cifar(str(tmp_path / "judge.safetensors"), torch.device("cpu")).layers(x)
    assert torch.allclose(maps[-1], seen[0], atol=1e-5)


def test_a_vision_model_as_perceptual_network(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=16,
        patch_size=8,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    distance = open_perceptual(f"transformers:{tmp_path}", torch.device("cpu"))
    x = images(side=24)[:, :1]  # grey images, of another size than the model's
    y = x.flip(-1).clone().requires_grad_()
    assert distance(x, x) < 1e-6 < distance(y, x)
    distance(y, x).backward()
    assert y.grad is not None and y.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["vgg", "resnet-cifar:", "lpips:vgg"])
def test_unknown_perceptual_networks(name):
    with pytest.raises(UserError, match=r"expected resnet-cifar:FILE.safetensors or transformers:ID"):
        open_perceptual(name, torch.device("cpu"))


def test_a_size_that_the_downsampling_does_not_divide():
    with pytest.raises(
        UserError, match=r"image height is 30; expected a multiple of --downsample 4, such as 28 or 32"
    ):
        build_codec(AutoencoderConfig(), (3, 30, 32), 0)
    with pytest.raises(UserError, match=r"downsample is 6; expected a power of two"):
        AutoencoderConfig(downsample=6)
    with pytest.raises(UserError, match=r"heads is 3; expected a divisor of the width 32"):
        AutoencoderConfig(kind="fixed_variance", width=32, heads=3)


@pytest.mark.parametrize("config", [KL, FIXED], ids=["kl", "fixed_variance"])
def test_weights_depend_on_the_seed_alone(config):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second, other = (build_codec(config, (3, 8, 8), seed) for seed in (0, 0, 1))
    assert first.autoencoder_fingerprint == second.autoencoder_fingerprint != other.autoencoder_fingerprint
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(("width", "groups"), [(128, 32), (32, 8), (16, 4), (24, 6), (20, 5), (6, 1)])
def test_groups_of_a_norm_have_at_least_four_channels(width, groups):
    config = AutoencoderConfig(downsample=2, width=width)
    assert build_codec(config, (3, 8, 8), 0).autoencoder.config["norm_num_groups"] == groups
