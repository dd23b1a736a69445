"""Features at places by frozen encoders: which place is which, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from causalfusion.encoders.places import open_encoder
from causalfusion.encoders.resnet_cifar import ResNetCifarNetwork
from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.saved.folder import latest_model

CPU = torch.device("cpu")


def test_a_classifiers_maps_on_grids_of_any_size(tmp_path):
    torch.manual_seed(0)
    network = ResNetCifarNetwork(1).eval()
    file = tmp_path / "judge.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
    encoder = open_encoder(f"resnet-cifar:{file}", CPU)
    assert encoder.width == 64
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    seen = []
    network.layer3.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        network(images)
    given = images.permute(0, 3, 1, 2) / 127.5 - 1
    same, coarse, fine = (encoder.features(given, grid) for grid in ((8, 8), (4, 4), (16, 16)))
    assert same.dtype == torch.float16
    torch.testing.assert_close(same.float(), seen[0].flatten(2).transpose(1, 2), atol=2e-3, rtol=2e-3)
    pooled = F.avg_pool2d(seen[0], 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(coarse.float(), pooled, atol=2e-3, rtol=2e-3)
    assert fine.shape == (3, 256, 64)
    grey = encoder.features(given[:, :1, :8, :8], (8, 8))
    assert grey.shape == (3, 64, 64) and grey.isfinite().all()


@pytest.mark.parametrize("registers", [0, 3])
def test_patches_of_a_vision_model_without_its_class_and_registers(tmp_path, registers):
    transformers = pytest.importorskip("transformers", reason="needs the extra eval")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
             "patch_size": 4}  # fmt: skip
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=16))
    model.eval().save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    encoder = open_encoder(f"transformers:{tmp_path}", CPU)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        hidden = model(pixel_values=images).last_hidden_state  # mean and deviation are 0.5
    assert hidden.shape[1] == 17 + registers
    found = encoder.features(images, (4, 4)).float()
    torch.testing.assert_close(found, hidden[:, 1 + registers :], atol=5e-3, rtol=5e-3)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    model.save_pretrained(tmp_path)
    assert open_encoder(f"transformers:{tmp_path}", CPU).fingerprint != encoder.fingerprint


def test_a_model_that_masks_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra eval")
    config = transformers.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
        patch_size=4, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )  # fmt: skip
    transformers.ViTMAEModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="other features of the same image each time"):
        open_encoder(f"transformers:{tmp_path}", CPU)


def test_tokens_of_a_model_of_our_own(digits_run):
    pipeline = Pipeline.load(latest_model(digits_run))
    encoder = open_encoder(f"model:{digits_run}:2", CPU)
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    expected = pipeline.features(images, layer=2, per_token=True)
    found = encoder.features(images, pipeline.grid)
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-3)
    assert open_encoder(f"model:{digits_run}:1", CPU).fingerprint != encoder.fingerprint
    colours = encoder.features(images.expand(-1, 3, -1, -1), pipeline.grid)
    torch.testing.assert_close(colours.float(), found.float(), atol=2e-2, rtol=2e-3)
