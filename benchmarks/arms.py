"""What benchmarks of training share: commands that are done once, models as they were before training, and
the rule by which a difference between two arms is called one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import torch

from causalfusion.cli import run
from causalfusion.files import write_whole
from causalfusion.generate.pipeline import Pipeline
from causalfusion.machine.progress import tell
from causalfusion.model.transformer import Transformer
from causalfusion.saved.folder import latest_model, save_model


def once(done: Path, line: str) -> float:
    """Run a command unless `done` tells that it was. Its CPU seconds. Raises SystemExit if it fails."""
    if not done.exists():
        tell(f"causalfusion {line}")
        begin = time.process_time()
        code = run(line.split())
        if code:
            raise SystemExit(code)
        write_whole(done, json.dumps(time.process_time() - begin))
    return json.loads(done.read_text())


def random_weights(folder: Path, seed: int) -> Path:
    """A model like that of a run, as it was before training."""
    out = folder / "random"
    if not out.exists():
        pipeline = Pipeline.load(latest_model(folder))
        torch.manual_seed(seed)
        weights = Transformer(pipeline.model.config).state_dict()
        save_model(out, pipeline.spec, weights, tokenizer=pipeline.tokenizer)
    return out


def in_words(gaps: Sequence[float]) -> str:
    """The mean of differences, one for each seed, with its standard error; a difference is seen if one arm is
    ahead with every seed and the mean exceeds twice that error."""
    if len(gaps) == 1:
        return f"{gaps[0]:+.4g}: one seed, no verdict"
    error = stdev(gaps) / len(gaps) ** 0.5
    seen = (min(gaps) > 0 or max(gaps) < 0) and abs(mean(gaps)) > 2 * error
    words = "a difference" if seen else "no difference to be seen"
    return f"{mean(gaps):+.4g} ± {error:.2g}: {words}"
