from __future__ import annotations

from pathlib import Path

from cyclopts import App

from causalfusion.config.options import Autoencoder, Device, Model
from causalfusion.errors import UserError

app = App(name="doctor", result_action="return_value")


@app.default
def doctor(
    *,
    model: Model | None = None,
    reference: Path | None = None,
    autoencoder: Autoencoder = "",
    device: Device = "auto",
) -> int:
    """Check this installation, a model, or a recording of the reference code.

    The exit code is 1 if a check fails.

    Parameters
    ----------
    reference
        A folder of recorded reference tensors (masks, losses, gradients, caches, samples) to compare with.
    """
    if reference is not None:
        if model is not None or autoencoder or device != "auto":
            raise UserError("--reference is replayed by itself, on the CPU; leave all other options out")
        from causalfusion.interop.recording import format_checks
        from causalfusion.interop.reference import replay_reference

        checks = replay_reference(reference)
        print(format_checks(checks))
        return 0 if all(check.ok for check in checks) else 1

    if autoencoder and model is None:
        raise UserError("--autoencoder is that of a model; give --model, too, or leave it out")
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from causalfusion.doctor import check_machine, check_model
    from causalfusion.errors import printable
    from causalfusion.machine.runtime import select_device
    from causalfusion.saved.folder import load_spec, read_latest

    chosen = select_device(device)
    if model is not None:
        read_latest(model, load_spec)  # raises where there is none, before the machine is measured
    findings = list(check_machine(chosen))
    if model is not None:
        findings += read_latest(model, lambda folder: list(check_model(folder, chosen, autoencoder)))[0]
    table = Table(show_header=False, box=None)
    for finding in findings:
        mark = {None: "", True: "[green]ok", False: "[red]FAILED"}[finding.ok]
        table.add_row(*(escape(printable(text)) for text in (finding.name, finding.value)), mark)
    Console().print(table)
    return 1 if any(f.ok is False for f in findings) else 0
