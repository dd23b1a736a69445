"""Cards side by side: what may be ranked is, what may not is not, and the reason is said."""

from dataclasses import replace
from pathlib import Path

import pytest

from causalfusion.errors import UserError
from causalfusion.evaluate.cards.card import Card
from causalfusion.evaluate.cards.compare import compare_cards, to_markdown
from causalfusion.evaluate.cards.terminal import card_names, show_comparison
from causalfusion.evaluate.measures.figure import Figure

REFERENCE = {
    "name": "imagenet", "features": "inception", "fingerprint": "r", "statistics_hash": "h", "mean_norm": 8.0,
    "covariance_trace": 300.0,
}  # fmt: skip


def card(
    value: float,
    *,
    count: int = 50_000,
    quantity: str = "frechet",
    fingerprint: str = "f",
    reference: dict | None = None,
    error: float | None = None,
    warnings: tuple[str, ...] = (),
    **samples,
) -> Card:
    reference = {**REFERENCE, **(reference or {})}
    one = Figure(
        quantity=quantity, value=value, count=count, features="inception", features_fingerprint=fingerprint,
        reference=reference["fingerprint"], standard_error=error,
    )  # fmt: skip
    return Card(
        figures={one.name: one}, samples={"name": "m", "count": count, "hash": str(value), **samples},
        references=[reference], features=[{"name": "inception", "fingerprint": fingerprint}],
        warnings=list(warnings), run={"device": "cpu", "date": str(value)},
    )  # fmt: skip


def compared(*cards: Card):
    return compare_cards(cards, [f"c{i}" for i in range(len(cards))])


def test_the_best_is_marked_in_the_right_direction():
    (row,) = compared(card(5.12), card(3.61)).rows
    assert (row.name, row.best, row.verdict) == ("fid_50k", 1, "c1 is best (no interval)")
    assert row.cells() == ["5.12", "3.61 (-1.51)"]
    (row,) = compared(card(5.12, quantity="precision"), card(3.61, quantity="precision")).rows
    assert row.best == 0


def test_rounding_makes_no_difference():
    """As between figures of one process and of two."""
    (row,) = compared(card(5.0, error=0.1), card(5.0 + 1e-14, error=0.1)).rows
    assert row.best is None and row.verdict == "equal" and row.cells() == ["5", "5 (+0)"]
    (row,) = compared(card(5.0), card(5.0 + 1e-6)).rows
    assert row.best == 0


def test_overlapping_intervals_are_not_told_apart():
    (row,) = compared(card(5.0, error=0.5), card(5.5, error=0.5)).rows
    assert row.best is None and row.verdict == "c0; within the interval: c1"
    (row,) = compared(card(5.0, error=0.1), card(5.5, error=0.1)).rows
    assert row.best == 0 and row.verdict == "c0 is best"
    (row,) = compared(card(5.0, error=0.1), card(5.5, error=0.1), card(5.1, error=0.1)).rows
    assert row.best is None and row.verdict == "c0; within the interval: c2"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"count": 10_000}, "not ranked: N differs (50k, 10k)"),
        ({"fingerprint": "g"}, "not ranked: the features differ"),
        ({"reference": {"fingerprint": "s"}}, "not ranked: the reference differs"),
        (
            {"reference": {"statistics_hash": "i", "covariance_trace": 310.0}},
            "not ranked: the reference has the same files, but other statistics",
        ),
    ],
)
def test_what_is_not_comparable_is_not_ranked(other, reason):
    (row,) = compared(card(5.0), card(3.0, **other)).rows
    assert row.best is None and row.verdict == reason


def of_earlier_version(one: Card, *, told: bool) -> Card:
    """A card whose figures do not say which images they compare with; `told`: the card says it."""
    figures = {name: replace(figure, reference="") for name, figure in one.figures.items()}
    return replace(one, figures=figures, references=one.references if told else [])


def test_figures_of_unknown_references_are_not_ranked():
    """As of studies of earlier versions, which may be of different data."""
    studies = [of_earlier_version(card(value), told=False) for value in (5.0, 3.0)]
    unknown = "not ranked: the reference is not known; run the study again, which writes its cards anew"
    assert compared(*studies).rows[0].verdict == compared(card(5.0), studies[1]).rows[0].verdict == unknown
    scores = [card(value, quantity="inception_score") for value in (5.0, 3.0)]
    assert compared(*(of_earlier_version(one, told=False) for one in scores)).rows[0].best == 0


def test_reconstructions_of_different_images_are_not_ranked():
    """Cards of earlier versions name their images beside the figures."""
    one, same, other = (
        of_earlier_version(card(value, quantity="psnr", reference={"fingerprint": of}), told=True)
        for value, of in ((20.0, "a"), (30.0, "a"), (30.0, "b"))
    )
    assert compared(one, same).rows[0].best == 1
    assert compared(one, other).rows[0].verdict == "not ranked: the reference differs"


def test_a_reference_without_statistics_is_known_by_its_fingerprint():
    """As of a study's card, beside one of `evaluate`."""
    study = card(3.0)
    study = replace(study, references=[{"name": "imagenet", "features": "inception", "fingerprint": "r"}])
    assert compared(card(5.0), study).rows[0].best == 1
    assert compared(study, card(5.0)).rows[0].best == 0


def test_rounding_of_another_machine_does_not_make_another_reference():
    (row,) = compared(card(5.0), card(3.0, reference={"statistics_hash": "i", "mean_norm": 8.0000001})).rows
    assert row.best == 1


def test_counts_stand_in_the_cells_where_they_differ():
    (row,) = compared(card(5.0), card(13.78, count=10_000)).rows
    assert row.name == "fid" and row.cells() == ["5 (N 50k)", "13.78 (N 10k) (+8.78)"]


def test_a_figure_of_one_card_only():
    first, second = compared(card(5.0), card(0.7, quantity="recall")).rows
    assert first.cells() == ["5", "-"] and second.cells() == ["-", "0.7"]
    assert {first.verdict, second.verdict} == {"in one card only"}


def test_only_differing_settings_are_listed():
    one = card(5.0, seed=0, sample={"num_ar_steps": 1, "guidance_interval": [0, 10]}, weights="ema")
    two = card(4.0, seed=0, sample={"num_ar_steps": 4, "guidance_interval": [0, 10]}, weights="raw")
    comparison = compared(one, replace(two, preset={"name": "paper-system"}))
    assert dict(comparison.differences) == {
        "preset": ("-", "paper-system"), "sample.num_ar_steps": ("1", "4"), "weights": ("ema", "raw"),
    }  # fmt: skip


def test_warnings_and_equal_images_are_told():
    notes = compared(card(5.0, warnings=("few",)), card(5.0)).notes
    assert notes == ("c0: few", "c1 and c0 measured the same images")


def test_markdown():
    lines = to_markdown(compared(card(5.0, seed=0), card(3.0, seed=1))).splitlines()
    assert lines[0] == "| figure | c0 | c1 | best |"
    assert lines[2] == "| fid_50k | 5 | **3 (-2)** | c1 is best (no interval) |"
    assert "| seed | 0 | 1 |" in lines


HOSTILE = "a|b\x1b[2J<script>x</script>\n| [c](d) `e`"


def test_texts_of_a_card_stay_texts_in_markdown():
    lines = to_markdown(compared(card(5.0, prompts=HOSTILE), card(3.0, warnings=(HOSTILE,)))).splitlines()
    said = "a\\|b\\x1b\\[2J&lt;script&gt;x&lt;/script&gt;\\n\\| \\[c\\](d) \\`e\\`"
    assert f"| prompts | {said} | - |" in lines
    assert lines[-1] == f"- c1: {said}"


def test_texts_of_a_card_stay_texts_on_a_terminal(capsys):
    show_comparison(compared(card(5.0, prompts=HOSTILE), card(3.0, warnings=(HOSTILE,))))
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\\x1b[2J" in said.err


def test_one_card_is_not_compared():
    with pytest.raises(UserError, match="there is 1 card to compare; expected two or more"):
        compared(card(5.0))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/card.json", "runs/b"], ["a", "b"]),
        (["/far/away/a/s1/card.json", "/far/away/b/s1/card.json"], ["a/s1", "b/s1"]),
        (["/far/away/a/s1", "/far/away/b/s1", "/far/away/b/s4"], ["a/s1", "b/s1", "b/s4"]),
        (["s1", "a/s1"], ["s1", "a/s1"]),
        (["a/s1", "a/s1/card.json"], ["a/s1 (1)", "a/s1 (2)"]),
        (["card.json", "old.json"], ["card.json", "old.json"]),
        ([".", "runs/b"], [Path.cwd().name, "b"]),
        (["..", "runs/b"], [Path.cwd().parent.name, "b"]),
    ],
)
def test_cards_are_named_by_what_tells_their_paths_apart(paths, names):
    assert card_names([Path(path) for path in paths]) == names
