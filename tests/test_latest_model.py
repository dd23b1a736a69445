"""A model is read while the run that writes it removes its older checkpoints."""

import shutil

import pytest

from causalfusion.errors import UserError
from causalfusion.generate.pipeline import Pipeline
from causalfusion.saved.folder import packaged_models, read_latest


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint, and where its next one will lie."""
    first = tmp_path / "checkpoints" / "000000000008"
    shutil.copytree(packaged_models()["shapes"], first)
    return tmp_path, first, first.with_name("000000000016")


def test_a_checkpoint_that_vanishes_gives_way_to_the_newest(run):
    folder, first, second = run

    def read(path):
        asked.append(path)
        if path == first:  # pruned just now, as the next one is there
            shutil.copytree(first, second)
            shutil.rmtree(first)
        return Pipeline.load(path)

    asked = []
    pipeline, found = read_latest(folder, read)
    assert asked == [first, second] and found == second and pipeline.tokenizer is not None


def test_a_damaged_checkpoint_is_refused_as_it_is(run):
    folder, first, _ = run
    (first / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        Pipeline.load(folder)
    shutil.rmtree(first)
    with pytest.raises(UserError, match="holds no model"):
        Pipeline.load(folder)
