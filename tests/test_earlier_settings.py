"""Settings under their earlier names: understood, said, and never taken for pixels in silence."""

from __future__ import annotations

import pytest

from causalfusion.config import CodecConfig
from causalfusion.config.earlier import rename_options, rename_settings
from causalfusion.config.recipes import load_config
from causalfusion.errors import UserError


def test_the_kind_follows_from_the_autoencoder():
    assert CodecConfig().kind == "pixels" and CodecConfig(autoencoder="vae").kind == "autoencoder"
    with pytest.raises(TypeError):
        CodecConfig(kind="pixels")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("codec", "autoencoder"),
    [
        ('path = "vae"', "vae"),
        ('kind = "autoencoder"\npath = "vae"', "vae"),
        ('kind = "pixels"', ""),
        ('kind = "autoencoder"', "autoencoder"),  # which is refused where it is not there
    ],
)
def test_a_file_with_earlier_names_is_understood_with_one_note(codec, autoencoder, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(f"[codec]\npatch_size = 2\n{codec}\n")
    with pytest.warns(UserWarning, match=r"became codec\.autoencoder") as notes:
        config = load_config("digits", str(file))
    assert (config.codec.autoencoder, config.codec.patch_size, len(notes)) == (autoencoder, 2, 1)


def test_a_file_that_says_both_is_refused_but_what_this_software_wrote_is_not(tmp_path):
    both = {"codec": {"kind": "pixels", "path": "vae", "scale": 1.0}}
    with pytest.raises(UserError, match=r"codec\.kind pixels and gives the autoencoder 'vae'"):
        rename_settings(both, "mine.toml")
    assert rename_settings(both) == {"codec": {"autoencoder": "", "scale": 1.0}}  # kind overruled path then
    with pytest.raises(UserError, match=r"codec\.kind is 'wavelets'; expected pixels or autoencoder"):
        rename_settings({"codec": {"kind": "wavelets"}})


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("encode --codec.path vae --out x", "encode --codec.autoencoder vae --out x"),
        ("encode --codec.kind autoencoder --codec.path=vae", "encode --codec.autoencoder=vae"),
        ("train --codec.kind=pixels", "train --codec.autoencoder="),
    ],
)
def test_a_command_line_with_earlier_names_is_understood(line, kept):
    with pytest.warns(UserWarning, match=r"became --codec\.autoencoder"):
        assert rename_options(line.split()) == kept.split()


def test_a_command_line_that_contradicts_itself_is_refused():
    for line in ("train --codec.kind pixels --codec.path vae", "train --codec.kind autoencoder"):
        with pytest.raises(UserError, match=r"codec\.autoencoder"), pytest.warns(UserWarning):
            rename_options(line.split())
