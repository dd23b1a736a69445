"""docs/training_at_scale.md: its commands are ones that torchrun and the command line take, its Slurm script
queues itself again as long as it makes sense."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from causalfusion import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training_at_scale.md"
SETTINGS = {"SLURM_NNODES": "4", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-4]"}


def settings_of(tokens: list[str], monkeypatch) -> dict:
    """A torchrun command line as `causalfusion` reads it, and as torchrun does."""
    launch = get_args_parser().parse_args(tokens[1:])
    assert launch.module and launch.training_script == "causalfusion"
    own = launch.training_script_args
    prepared = cli.prepare(own)
    monkeypatch.setattr(cli.app, "config", prepared.config())
    _, bound, _ = cli.app.parse_args(prepared.tokens, exit_on_error=False, print_error=False)
    return {"launch": launch, "run": bound.arguments["run"]}


def commands() -> list[str]:
    text = PAGE.read_text().replace("\\\n", " ")
    return re.findall(r"^    (torchrun .*)$", text, re.MULTILINE)


@pytest.mark.parametrize("line", commands())
def test_commands_fit_their_processes(line, monkeypatch):
    found = settings_of(shlex.split(line), monkeypatch)
    train, launch = found["run"].train, found["launch"]
    processes = int(launch.nproc_per_node) * int(launch.nnodes.split(":")[-1])
    assert train.batch_size % (processes * train.grad_accumulation) == 0
    assert processes % train.replicas == 0


def slurm(tmp_path: Path, srun_status: int, restarts: str) -> tuple[list[str], list[str]]:
    """The calls of srun and scontrol by the page's script."""
    (script,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    calls = tmp_path / "calls"
    for name, rest in (
        ("srun", f"exit {srun_status}"),
        ("scontrol", '[ "$1" = show ] && echo n1 && echo n2'),
    ):
        stub = tmp_path / name
        stub.write_text(f'#!/bin/bash\nprintf "%s\\n" "{name} $*" >> {calls}\n{rest}\n')
        stub.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, **SETTINGS, "PATH": path, "SLURM_RESTART_COUNT": restarts}
    subprocess.run(["bash", "-c", script], env=environment, check=False)
    lines = calls.read_text().splitlines()
    calls.unlink()
    (launched,) = (shlex.split(line) for line in lines if line.startswith("srun"))
    return launched, [line for line in lines if line.startswith("scontrol requeue")]


def test_slurm_script_queues_itself_again_until_it_has_finished(tmp_path, monkeypatch):
    launched, requeued = slurm(tmp_path, 1, "3")
    assert requeued == ["scontrol requeue 77"]
    found = settings_of(launched[launched.index("torchrun") :], monkeypatch)
    launch, train = found["launch"], found["run"].train
    assert (launch.nnodes, launch.rdzv_id, launch.rdzv_endpoint) == ("4", "77-3", "n1:29500")
    assert train.parallel == "fsdp" and train.batch_size % (32 * train.grad_accumulation) == 0
    assert slurm(tmp_path, 0, "3")[1] == []
    assert slurm(tmp_path, 1, "20")[1] == []
