"""`causalfusion complete` with a language model: texts in, what follows them out, on the terminal and in
story.json."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from causalfusion.codec.tokenizer import DecodeStream
from causalfusion.config.serialize import to_dict
from causalfusion.errors import UserError
from causalfusion.files import in_use
from causalfusion.generate.caption_run import is_image_name
from causalfusion.generate.language import LanguagePipeline
from causalfusion.generate.out_folder import begin, check_room, finish, settings_there
from causalfusion.generate.output import say, versions
from causalfusion.generate.request import CompleteRequest
from causalfusion.machine.processes import World
from causalfusion.machine.progress import seconds_of_command
from causalfusion.machine.runtime import compute_dtype
from causalfusion.machine.threads import Threads


def complete_text(prompt: Sequence[str], request: CompleteRequest, world: World) -> None:
    """Print what follows the prompt, whose elements stand one after another; with `chat`, the answer to a
    conversation that they are, the user's turn first."""
    for element in prompt:
        if is_image_name(element):
            raise UserError(f"{request.model} is a language model without images; it takes no {element}")
    pipeline = LanguagePipeline.load(
        request.model,
        weights=request.weights,
        device=world.device,
        autocast_dtype=compute_dtype(request.precision),
    )
    Threads().adapt()
    tokenizer = pipeline.tokenizer
    if request.chat:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(prompt)]
        if len(messages) % 2 == 0:
            raise UserError(
                f"--chat with {len(messages)} elements; expected an odd number: the last one is the user's"
            )
        ids = tokenizer.encode_chat(messages)
    else:
        ids = tokenizer.encode("\n".join(prompt))
    settings = {
        "command": "complete",
        "elements": [{"from": "prompt", "text": text} for text in prompt],
        "model": str(request.model),
        "weights": request.weights,
        "chat": request.chat,
        "seed": request.seed,
        "write": to_dict(request.write),
        "precision": request.precision,
        "device": str(pipeline.device),
        "versions": versions(),
    }
    earlier = settings_there(request.out, "complete") if request.out.is_dir() else None
    check_room(request.out, "complete", [], earlier)
    start = time.monotonic()
    stream = DecodeStream(tokenizer)
    (made,) = pipeline.write(
        [ids], request.write, seed=request.seed, watch=lambda _, token: say(stream.feed(token), end="")
    )
    say(stream.flush())
    elements = [*settings["elements"], {"from": "model", "text": tokenizer.decode(made)}]
    settings["elements"] = elements
    with in_use(request.out, "the folder"):
        begin(request.out, settings, earlier, keep=False)
        seconds = seconds_of_command(time.monotonic() - start)
        finish(request.out, {**settings, "seconds": round(seconds, 3)})
    _say_end(len(made), seconds, request.out)


def _say_end(count: int, seconds: float, out: Path) -> None:
    say(f"{count} tokens in {seconds:.1f} s in {out}")
