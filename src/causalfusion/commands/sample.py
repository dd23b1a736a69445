from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import App

from causalfusion.config.options import SamplingFiles, Settings
from causalfusion.generate.request import SampleRequest

app = App(name="sample", result_action="return_value")


@app.default
def sample(
    prompts: Sequence[str] = (),
    /,
    *,
    request: Annotated[SampleRequest, Settings] = SampleRequest(),  # noqa: B008
    config: SamplingFiles = (),
) -> int:
    """Generate images from classes or prompts.

    Image i depends on the seed and i alone, not on the number of images or processes (`torchrun`). Sampling
    settings that are not given are as the model's sample.toml says; the defaults below are for the rest.

    Parameters
    ----------
    prompts
        The same as --prompt.
    """
    from causalfusion.generate.run import sample_to_folder

    sample_to_folder(request)
    return 0
