from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from causalfusion.config.options import Autoencoder
from causalfusion.errors import UserError

app = App(name="publish", result_action="return_value")


@app.default
def publish(
    model: Path,
    /,
    *,
    to: str = "",
    private: Annotated[bool, Parameter(negative=())] = False,
    license: str = "",
    adapter: Annotated[bool, Parameter(negative=())] = False,
    base: str = "",
    cards: Annotated[Sequence[Path], Parameter(consume_multiple=True)] = (),
    pictures: Annotated[Sequence[Path], Parameter(consume_multiple=True)] = (),
    out: Path | None = None,
    autoencoder: Autoencoder = "",
) -> int:
    """Publish a model on the Hugging Face hub, with a page that tells what is known of it.

    The page has the figures of the run's result cards with their N, the training's settings, facts about the
    data, samples and the licence. Others load the model by its name: --model user/model; an adapter, which is
    published without its model, by --adapters user/adapter.

    Parameters
    ----------
    model
        A model folder, a training run (its last checkpoint), or the name of a packaged model; with
        --adapter, a run that trained an adapter, or an adapter's folder.
    to
        The repository, user/model or user/model@branch, which is created if it is not there. Needs a token
        that may write: HF_TOKEN, or hf auth login.
    private
        Only you, and those whom you let, see it.
    license
        The model's licence, as the hub names it: apache-2.0, cc-by-nc-4.0, ...
    adapter
        Publish the run's adapter alone, not the whole model.
    base
        With --adapter: the name by which others get the model that it belongs to, user/model. Default: as it
        was named in training.
    cards
        Result cards of `evaluate` besides those in the run's folder.
    pictures
        Pictures for the page besides the run's latest samples.
    out
        Keep the folder that is uploaded; without --to, write it and upload nothing.
    """
    if not to and out is None:
        raise UserError("nowhere to publish to; give --to user/model, or --out FOLDER to write it only")
    if private and not to:
        raise UserError("--private is of the repository that is published to; give --to, or leave it out")
    if adapter and (cards or autoencoder):
        given = "--cards" if cards else "--autoencoder"
        raise UserError(f"{given} is of a whole model, not of an adapter; leave it out, or --adapter")
    if base and not adapter:
        raise UserError("--base says which model an adapter belongs to; give --adapter, too, or leave it out")
    with tempfile.TemporaryDirectory(prefix="causalfusion-") as temporary:
        folder = out or Path(temporary) / "model"
        if adapter:
            lines = _adapter(model, to, private, folder, license, base, pictures)
        else:
            lines = _model(model, to, private, folder, license, autoencoder, cards, pictures)
    for line in lines:
        print(line)
    return 0


def _model(
    model: Path,
    to: str,
    private: bool,
    folder: Path,
    license: str,
    autoencoder: str,
    cards: Sequence[Path],
    pictures: Sequence[Path],
) -> list[str]:
    from causalfusion.interop.publish import Publication, publish_model, write_publication
    from causalfusion.saved.adapter_files import WEIGHTS_FILE

    if (model / WEIGHTS_FILE).is_file() and not (model / "config.json").is_file():
        raise UserError(f"{model} holds an adapter and no model; give --adapter to publish it")
    asked = Publication(license=license, autoencoder=autoencoder, cards=cards, pictures=pictures)
    if to:
        return publish_model(model, to, folder, asked, private=private)
    return [*write_publication(model, folder, folder.name, asked), _written(folder)]


def _adapter(
    source: Path, to: str, private: bool, folder: Path, license: str, base: str, pictures: Sequence[Path]
) -> list[str]:
    from causalfusion.interop.publish_adapter import (
        AdapterPublication,
        publish_adapter,
        write_adapter_publication,
    )

    asked = AdapterPublication(license=license, base=base, pictures=pictures)
    if to:
        return publish_adapter(source, to, folder, asked, private=private)
    return [*write_adapter_publication(source, folder, folder.name, asked), _written(folder)]


def _written(folder: Path) -> str:
    return f"{folder} is ready; --to uploads it"
