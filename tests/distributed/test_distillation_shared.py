"""A distillation by two processes against one. Which images' targets end with the teacher's steps, and which
documents have images, differs between them; how often they run the student they share must not."""

from dataclasses import replace

import jobs
import pytest

from causalfusion.config import DistillConfig
from causalfusion.train.log import read_log
from causalfusion.train.teacher import student_of

TEXT = {"tokenizer": "train", "vocab_size": 262, "caption_first": 0.5, "image_first": 0.0, "text_only": 0.5}


@pytest.mark.parametrize(("parallel", "text"), [("ddp", {}), ("fsdp", TEXT)], ids=["copies", "shares"])
def test_two_processes_distil_as_one_does(tmp_path, text, parallel):
    sections = {}
    if text:
        sections = {"text": text, "model": {"max_text_tokens": 24, "num_class_tokens": 0}}
    jobs.run(1, jobs.train, config_of(tmp_path / "teacher", sections, images=12))
    losses = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        config = config_of(out, sections, images=32, batch_size=4, parallel=parallel)
        distill = DistillConfig(teacher=str(tmp_path / "teacher"), steps=1, teacher_steps=2)
        job = jobs.start(processes, jobs.train, student_of(replace(config, distill=distill)))
        job.wait(60)
        assert job.exit_codes == [0] * processes
        losses.append([r["loss"] for r in read_log(out / "log.jsonl") if r["kind"] == "train"])
    assert len(losses[0]) == 8 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def config_of(out, sections, **train):
    config = jobs.tiny_config(out, train=train, **sections)
    if "text" in sections:
        config = replace(config, data=replace(config.data, captions="class_names", flip=False))
    return config
