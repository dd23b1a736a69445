"""The number of threads, with a machine that is made up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from causalfusion.machine.threads import Cores, Threads, read_busy_seconds, threads_for


class Machine:
    """Cores that others keep busy at a constant rate, and a process with its own work."""

    def __init__(self, taken: float, count: int = 2) -> None:
        self.taken, self.count, self.time, self.own = taken, count, 5.0, 1.0

    def work(self, seconds: float, own_cores: float) -> None:
        self.time += seconds
        self.own += seconds * own_cores

    def cores(self) -> Cores:
        return Cores(
            lambda: 100 + self.taken * self.time + self.own, lambda: self.own, lambda: self.time,
            lambda seconds: self.work(seconds, 0), self.count,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_others_are_counted_and_this_process_is_not() -> None:
    machine = Machine(taken=0.75)
    cores = machine.cores()
    machine.work(3.0, own_cores=1.5)
    assert cores.taken() == pytest.approx(0.75)
    before = machine.time
    assert cores.taken() == pytest.approx(0.75)
    assert machine.time - before == pytest.approx(0.1), "asked again at once, it waits"
    machine.taken = 0.0
    assert machine.cores().taken() == 0.0


@pytest.mark.parametrize(
    ("most", "free", "flops", "threads"),
    [
        (2, 2.0, 1e9, 2),
        (2, 1.6, 1e9, 2),
        (2, 1.0, 1e9, 1),
        (2, 0.0, 1e9, 1),
        (16, 10.2, 1e9, 10),
        (16, 16.0, 3.5e6, 3),
        (16, 16.0, 10.0, 1),
        (16, 2.0, float("inf"), 2),
    ],
)
def test_the_rule(most: int, free: float, flops: float, threads: int) -> None:
    assert threads_for(most, free, flops) == threads


def test_threads_follow_the_load_and_come_back() -> None:
    machine = Machine(taken=1.0)
    threads = Threads(machine.cores())
    assert threads.adapt() == torch.get_num_threads() == 1
    machine.taken = 0.0
    threads = Threads(machine.cores())
    threads.most = 2
    assert threads.adapt() == torch.get_num_threads() == 2
    assert threads.adapt(flops=100.0) == 1
    machine.taken = 0.9
    assert Threads(machine.cores()).most == 1, "what it found is the most"


def test_the_users_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(Machine(taken=2.0).cores())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.adapt() == 2
    assert threads.describe() == "2, as OMP_NUM_THREADS says"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.describe() == "2 in training; 1 in generation, as others keep 2.0 of 2 cores busy"


def test_the_kernels_count(tmp_path: Path) -> None:
    """Idle and waiting for disks are not work; guests are part of user; other cores do not count."""
    file = tmp_path / "stat"
    file.write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 10 20 5000 7 1 2 3 50 0\ncpu1 1 0 0 9 0 0 0 0 0 0\n"
        "cpu7 4000 0 0 0 0 0 0 0 0 0\nintr 5 5\n"
    )
    assert read_busy_seconds({0, 1}, file) == pytest.approx(1.37)
    assert read_busy_seconds({0}, tmp_path / "none") is None
