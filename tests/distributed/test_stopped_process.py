"""A process that stops ends the whole job, by name, leaves nothing behind, and the same command goes on."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
import torch.distributed as dist
from jobs import tiny_config

from causalfusion.errors import UserError
from causalfusion.machine.processes import join_world
from causalfusion.machine.watch import (
    ProcessName,
    Watch,
    _may_be_launcher,
    host_watch,
    join_watch,
    open_watch,
)
from causalfusion.saved.folder import checkpoints_of, load_model
from causalfusion.train import saver
from causalfusion.train.log import read_log

COMMAND = """
import sys
from causalfusion import cli
from causalfusion.train import reports
reports.peak_rate = lambda *_: 1e9  # it takes seconds
sys.exit(cli.run(sys.argv[1:]))
"""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SETTINGS = [
    "--config=digits",
    "--train.images=600", "--train.batch-size=12", "--train.log-every=1", "--train.checkpoint-every=4",
    "--train.evaluate-every=0", "--train.parallel=fsdp", "--train.async-checkpoint", "--data.num-workers=1",
    "--model.hidden-size=32", "--model.depth=2", "--model.num-heads=2", "--codec.patch-size=2",
]  # fmt: skip


def of_job(mark: str) -> dict[int, str]:
    """The living processes with a mark in their environment, and their ranks (empty: not a rank). torchrun
    starts each in a session of its own."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            alive = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except (OSError, IndexError):
            continue
        if alive and f"JOB_OF_TEST={mark}" in environment:
            ranks = [v.removeprefix("RANK=") for v in environment if v.startswith("RANK=")]
            found[int(entry.name)] = ranks[0] if ranks else ""
    return found


def wait_until(condition, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.slow
def test_a_killed_process_ends_the_job_by_name_and_the_job_resumes(tmp_path):
    script, out = tmp_path / "command.py", tmp_path / "run"
    script.write_text(COMMAND)
    command = [*TORCHRUN, "--nproc-per-node=2", str(script), "train", *SETTINGS, f"--out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "JOB_OF_TEST": str(out)}
    job = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait_until(lambda: len(checkpoints_of(out)) > 1 or job.poll() is not None)
    ranks = of_job(str(out))
    # Its data worker has the same environment; it is the younger of the two.
    victim = min(pid for pid, rank in ranks.items() if rank == "1")
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0 and time.monotonic() - killed < 60
    line = f"causalfusion: process 1 of 2 ({socket.gethostname()}, pid {victim}) stopped: it was killed"
    assert errors.count(line) == 1, errors[-3000:]
    wait_until(lambda: not of_job(str(out)), 10)
    reached = checkpoints_of(out)[-1]
    assert int(reached.name) < 600

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"going on from {int(reached.name)} images" in again.stdout
    steps = [r["images_seen"] for r in read_log(out / "log.jsonl") if r["kind"] == "train"]
    assert steps == list(range(12, 601, 12))
    assert int(checkpoints_of(out)[-1].name) == 600 and not list((out / "checkpoints").glob(".partial-*"))


def end_after_sigterm(victim: int | None) -> str:
    """One process is killed, the other is asked to end, as torchrun would ask, before it can say a word."""
    try:
        with join_world("cpu") as world:
            if world.rank == victim:
                os._exit(9)
            try:
                world.barrier()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
    except UserError as told:
        return str(told)
    return "well"


def test_the_others_have_time_to_tell():
    job = jobs.start(2, end_after_sigterm, 1)
    told = job.wait()[0]
    assert job.exit_codes == [0, 9] and told.startswith("process 1 of 2 (")


def test_without_news_sigterm_ends_a_process():
    """The first of the two at least: its end may be news to the other one, which then goes its own way."""
    job = jobs.start(2, end_after_sigterm, None)
    ends = list(zip(job.wait(), job.exit_codes, strict=True))
    assert (None, -signal.SIGTERM) in ends
    assert set(ends) <= {(None, -signal.SIGTERM), ("well", 0)}


JOIN_AND_SLEEP = """
import time
from causalfusion.machine.processes import join_world
with join_world("cpu") as world:
    print(world.rank, flush=True)
    time.sleep(300)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
@pytest.mark.slow
def test_a_killed_launcher_takes_its_processes_along(tmp_path):
    (tmp_path / "sleep.py").write_text(JOIN_AND_SLEEP)
    command = [*TORCHRUN, "--nproc-per-node=2", str(tmp_path / "sleep.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JOB_OF_TEST": str(tmp_path)}
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert job.stdout is not None
    with job.stdout:
        assert {job.stdout.readline(), job.stdout.readline()} == {b"0\n", b"1\n"}
        assert {"0", "1"} < set(of_job(str(tmp_path)).values())
        job.kill()
        job.wait()
    wait_until(lambda: not of_job(str(tmp_path)), 60)


ORPHAN = """
import time
from causalfusion.machine import watch
watch._may_be_launcher = lambda process: False  # it is gone, and init has adopted this process
watch.end_with_launcher()
time.sleep(60)
"""


def test_a_process_whose_launcher_died_before_it_could_look_ends():
    assert subprocess.run([sys.executable, "-c", ORPHAN], timeout=30).returncode == -signal.SIGTERM


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_launcher_is_told_from_what_adopts_orphans():
    with subprocess.Popen(["sleep", "60"]) as other:
        assert not _may_be_launcher(other.pid)
        other.kill()
    assert _may_be_launcher(os.getpid())


def limit_of_operations() -> timedelta:
    """Within a job; PyTorch has no public question for it."""
    with join_world("cpu"):
        group = dist.group.WORLD
        assert group is not None
        return group._get_backend(torch.device("cpu")).options._timeout


def test_others_wait_for_the_main_process_without_a_limit():
    """It samples or evaluates alone for longer than NCCL's ten minutes."""
    assert min(jobs.run(2, limit_of_operations)) > timedelta(days=7)


def die_while_saving(config, victim: int) -> str:
    """A process ends while the second checkpoint is being written in the background: the main one when all
    but the name is done, another one before its share is written. What the user reads of the others."""
    calls = []

    def second_time(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                os._exit(9)
            return real(*arguments, **options)

        return call

    if victim == 0 and int(os.environ["RANK"]) == 0:
        saver.commit = second_time(saver.commit)
    elif victim == int(os.environ["RANK"]):
        saver.FileSystemWriter.write_data = second_time(saver.FileSystemWriter.write_data)
    try:
        jobs.train(config)
    except UserError as error:
        return str(error)
    return "trained to the end"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_during_a_save_leaves_the_checkpoint_before(victim, tmp_path):
    options = {"parallel": "fsdp", "async_checkpoint": True, "checkpoint_every": 2, "images": 96}
    config = tiny_config(tmp_path / "run", train=options)
    job = jobs.start(2, die_while_saving, config, victim)
    told = job.wait()[1 - victim]
    assert job.exit_codes[victim] == 9
    assert told.startswith(f"process {victim} of 2 (") and "stopped: it was killed" in told
    (first,) = checkpoints_of(tmp_path / "run")
    assert int(first.name) == 24 and (first.parent / ".partial-000000000048").is_dir()
    load_model(first)
    jobs.run(2, jobs.train, config)
    assert [int(p.name) for p in checkpoints_of(tmp_path / "run")] == [72, 96]
    assert not list(first.parent.glob(".partial-*"))
    jobs.run(1, jobs.train, tiny_config(tmp_path / "one", train={"images": 96}))
    losses = [
        [r["loss"] for r in read_log(tmp_path / name / "log.jsonl") if r["kind"] == "train"]
        for name in ("run", "one")
    ]
    assert len(losses[0]) == 8 and losses[0] == pytest.approx(losses[1], rel=1e-6)


def fail_on(rank: int | None, error: Exception | None) -> str:
    """The user's line of a process that fails (None: all do), or of one that works with it."""
    try:
        with join_world("cpu") as world:
            if rank in (world.rank, None) and error is not None:
                raise error
            world.barrier()
    except UserError as told:
        return f"one line: {told}"
    except SystemExit as silent:
        return f"silent: {silent}"
    except Exception as own:
        return f"own: {own}"
    return "well"


@pytest.mark.parametrize(
    ("error", "own", "reason"),
    [
        (UserError("the disk is full"), "one line: the disk is full", "the disk is full"),
        (RuntimeError("out of\nmemory"), "own: out of\nmemory", "RuntimeError: out of memory"),
    ],
)
def test_a_failure_is_told_once_with_its_reason(error, own, reason):
    main, second, third = jobs.run(3, fail_on, 1, error)
    assert second == own and third == "silent: 1"
    assert main.startswith("one line: process 1 of 3 (") and f") stopped: {reason}; the others end" in main
    second = jobs.run(2, fail_on, 0, error)[1]
    assert second.startswith("one line: process 0 of 2 (") and f"stopped: {reason}; the others end" in second


def test_what_is_wrong_for_all_is_told_once():
    found = jobs.run(3, fail_on, None, UserError("there is no such data"))
    assert found == ["one line: there is no such data", "silent: 1", "silent: 1"]


def test_processes_that_end_well_alarm_nobody():
    assert jobs.run(2, fail_on, 0, None) == ["well", "well"]


def connected(members: list[ProcessName], exits: list[int]) -> tuple[Watch, Watch]:
    server, port, token = open_watch()
    found: list[Watch] = []
    host = threading.Thread(target=lambda: found.append(host_watch(server, token, members)))
    host.start()
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b'{"token": "guessed", "rank": 1}\n')
        other = join_watch(1, ("localhost", port), token, members)
        host.join()
    other.leave = found[0].leave = exits.append
    return found[0], other


def test_a_process_that_hangs_is_told_and_ended(monkeypatch, capfd):
    """If the work hangs where Python cannot interrupt it, the watch itself reports and ends the process."""
    monkeypatch.setattr("causalfusion.machine.watch.GRACE", 0.1)
    members, exits = [ProcessName(0, "here", 1), ProcessName(1, "there", 2)], []
    main, other = connected(members, exits)
    other.peers[0].shutdown(socket.SHUT_RDWR)  # as when its process is killed
    wait_until(lambda: exits == [1, 1], 10)
    assert main.stopped is not None and main.stopped.rank == 1 and main.news.is_set()
    told = capfd.readouterr().err
    assert "process 1 of 2 (there, pid 2) stopped: it was killed" in told  # says the main one
    assert "process 0 of 2 (here, pid 1) stopped: it was killed" in told  # says the other, cut off from it


def test_a_watch_without_a_main_process_says_so(capfd):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    watch = join_watch(1, ("127.0.0.1", port), "", [ProcessName(0, "here", 1), ProcessName(1, "here", 2)])
    assert (
        not watch.peers
        and f"process 1 cannot reach the main one at 127.0.0.1 port {port}" in capfd.readouterr().err
    )
    watch.end()


def test_one_process_takes_a_numbered_device_that_is_no_cuda_device(monkeypatch):
    monkeypatch.setattr("causalfusion.machine.processes.select_device", torch.device)
    with join_world("xpu:0") as world:
        assert world.device == torch.device("xpu:0") and world.size == 1
