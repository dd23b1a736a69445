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
    cards: Annotated[Sequence[Path], Parameter(consume_multiple=True)] = (),
    pictures: Annotated[Sequence[Path], Parameter(consume_multiple=True)] = (),
    out: Path | None = None,
    autoencoder: Autoencoder = "",
) -> int:
    """Publish a model on the Hugging Face hub, with a page that tells what is known of it.

    The page has the figures of the run's result cards with their N, the training's settings, facts about the
    data, samples and the licence. Others load the model by its name: --model user/model.

    Parameters
    ----------
    model
        A model folder, a training run (its last checkpoint), or the name of a packaged model.
    to
        The repository, user/model or user/model@branch, which is created if it is not there. Needs a token
        that may write: HF_TOKEN, or hf auth login.
    private
        Only you, and those whom you let, see it.
    license
        The model's licence, as the hub names it: apache-2.0, cc-by-nc-4.0, ...
    cards
        Result cards of `evaluate` besides those in the run's folder.
    pictures
        Pictures for the page besides the run's latest samples.
    out
        Keep the folder that is uploaded; without --to, write it and upload nothing.
    """
    from causalfusion.interop.publish import Publication, publish_model, write_publication

    if not to and out is None:
        raise UserError("nowhere to publish to; give --to user/model, or --out FOLDER to write it only")
    asked = Publication(license=license, autoencoder=autoencoder, cards=cards, pictures=pictures)
    with tempfile.TemporaryDirectory(prefix="causalfusion-") as temporary:
        folder = out or Path(temporary) / "model"
        if to:
            *notes, page = publish_model(model, to, folder, asked, private=private)
        else:
            notes, page = write_publication(model, folder, folder.name, asked), str(folder)
    for note in notes:
        print(note)
    print(page)
    return 0
