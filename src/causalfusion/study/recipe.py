"""Reading studies and their data from TOML files, in `studies/` and `studies/data/`.

A study's file has the settings to compare (`variants`), the numbers of AR steps S at which to evaluate each
(`ar_steps`), the paper's figures, and the paper's findings as pairs of (better, worse) entries.
A data file says how a small model is trained on the data and how its images are judged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from causalfusion.config import SampleConfig
from causalfusion.config.recipes import load_layers, merge
from causalfusion.config.serialize import from_dict, parse_toml, to_dict
from causalfusion.errors import UserError, check, check_values

PLACEHOLDERS: tuple[str, ...] = ("L", "side/2", "side/4")
"""Words for numbers in a variant: an image's tokens; half and a quarter of its side in tokens."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    name: str
    base: str = ""
    """An earlier variant, whose recipes, settings and sampling this one has too, and changes."""
    recipes: list[str] = field(default_factory=list)
    """Recipes over the data file's settings; a recipe's [sample] holds for the figures too."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Override the training settings of the data file."""
    sample: dict[str, Any] = field(default_factory=dict)
    """Sampling settings of this variant alone."""
    ar_steps: list[int] = field(default_factory=list)
    """Numbers of AR steps S at which this variant is evaluated, its own best first, instead of the study's;
    0: one for each token."""
    share: float = 1.0
    """Train for this share of what the study makes `equal`."""
    paper: list[float] = field(default_factory=list)
    """The paper's figure for each S, as far as it has any."""

    def __post_init__(self) -> None:
        check(0 < self.share < math.inf, f"{self.name}: share", self.share, "a positive number")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A finding of the paper, as pairs of entries to compare."""

    text: str
    better: list[str]
    """Entries "variant @ S" whose figure should be lower."""
    worse: list[str]
    """The entry with which each of `better` is compared."""
    within: float = 1.0
    """The claim is better < within * worse; 1.1 allows a tenth more."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The settings that are compared, and the findings of the paper on them."""

    title: str
    question: str
    ar_steps: list[int]
    """Numbers of AR steps S at which all variants are evaluated; 0: one for each token."""
    variants: list[Variant]
    claims: list[Claim] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of all variants."""
    sample: dict[str, Any] = field(default_factory=dict)
    """Sampling settings of all variants, which override those of the data file."""
    equal: Literal["images", "arithmetic"] = "images"
    """The length of training that all variants have in common: images, or needed arithmetic, which is the
    first variant's; the others see as many images as that allows."""
    budgets: list[float] = field(default_factory=list)
    """Shares of the training, each a multiple of the first, after which the figures at a variant's first S
    are measured too. With budgets, results also tell what each variant costs."""
    paper_figure: str = "FID-10k, ImageNet 256x256"

    def __post_init__(self) -> None:
        check_values(self, "study")

    def on(self, num_tokens: int) -> Study:
        """This study for images of so many tokens: their number in place of S = 0."""

        def numbers(ar_steps: list[int]) -> list[int]:
            return [s or num_tokens for s in ar_steps]

        def named(entries: list[str]) -> list[str]:
            last = entry("", 0)
            return [e.removesuffix(last) + entry("", num_tokens) if e.endswith(last) else e for e in entries]

        return replace(
            self,
            ar_steps=numbers(self.ar_steps),
            variants=[replace(v, ar_steps=numbers(v.ar_steps)) for v in self.variants],
            claims=[replace(c, better=named(c.better), worse=named(c.worse)) for c in self.claims],
        )

    def sampling(self, of_data: SampleConfig) -> SampleConfig:
        """The settings of the data file, with those of the study above them."""
        return from_dict(SampleConfig, merge([to_dict(of_data), self.sample]), "sample.")

    def entries(self) -> set[str]:
        return {
            entry(variant.name, s) for variant in self.variants for s in variant.ar_steps or self.ar_steps
        }

    def all_ar_steps(self, num_tokens: int) -> list[int]:
        """The numbers of AR steps of all variants, ascending; those of the study as they stand."""
        own = {s or num_tokens for variant in self.variants for s in variant.ar_steps}
        return list(dict.fromkeys(self.ar_steps)) + sorted(own - set(self.ar_steps))

    def ar_steps_of(self, variant: Variant, num_tokens: int) -> tuple[int, ...]:
        """Those of a variant, as far as an image has that many tokens."""
        steps = [s or num_tokens for s in variant.ar_steps or self.ar_steps]
        return tuple(dict.fromkeys(s for s in steps if s <= num_tokens))


@dataclass(frozen=True, kw_only=True)
class StudyData:
    """The data of a study, with how models are trained and judged on them."""

    recipes: list[str]
    """Recipes of the training; later ones override earlier ones."""
    num_tokens: int
    features: str
    """The feature space of the Fréchet distance, as `evaluate --features` names it."""
    count: int
    """Number of images generated for every figure."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Training settings that override the recipes."""
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        check(self.count >= 2, "count", self.count, "at least 2 generated images")


def entry(variant: str, num_ar_steps: int) -> str:
    """The name of a figure: "variant @ S"."""
    return f"{variant} @ {num_ar_steps}"


def study_names() -> list[str]:
    return _names(resources.files("causalfusion") / "studies")


def study_data_names() -> list[str]:
    return _names(resources.files("causalfusion") / "studies" / "data")


def load_study(name: str) -> Study:
    """A study by its name, or from a file. Raises UserError if it is missing or inconsistent."""
    values = _load(resources.files("causalfusion") / "studies", name, "study", study_names())
    study = _with_bases(from_dict(Study, values, f"study {name}: "), name)
    from_dict(SampleConfig, study.sample, f"study {name}: sample.")
    names = [variant.name for variant in study.variants]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not names or not study.ar_steps:
        what = f"variant {twice[0]!r} twice" if twice else "no variants or no ar_steps"
        raise UserError(f"study {name} has {what}; expected variants of different names, and ar_steps")
    _check_budgets(study, name)
    for variant in study.variants:
        if len(variant.paper) > len(study.ar_steps):
            raise UserError(
                f"study {name}: the variant {variant.name!r} has {len(variant.paper)} figures of the paper; "
                f"expected at most one for each of the ar_steps {study.ar_steps}"
            )
    for claim in study.claims:
        unknown = sorted({*claim.better, *claim.worse} - study.entries())
        if unknown or len(claim.better) != len(claim.worse):
            what = f"compares {unknown[0]!r}" if unknown else "has sides of different lengths"
            raise UserError(
                f"study {name}: the claim {claim.text!r} {what}; expected pairs of this study's 'variant @ S'"
            )
    return study


def _with_bases(study: Study, name: str) -> Study:
    """The study, each variant with the recipes and settings of its base under its own."""
    whole: dict[str, Variant] = {}
    for variant in study.variants:
        if variant.base and variant.base not in whole:
            raise UserError(
                f"study {name}: the variant {variant.name!r} has the base {variant.base!r}; expected one of "
                f"the variants before it: {', '.join(whole) or 'there is none'}"
            )
        if base := whole.get(variant.base):
            variant = replace(
                variant,
                recipes=[*base.recipes, *variant.recipes],
                settings=merge([base.settings, variant.settings]),
                sample=merge([base.sample, variant.sample]),
            )
        whole.setdefault(variant.name, variant)
    return replace(study, variants=[whole[variant.name] for variant in study.variants])


def _check_budgets(study: Study, name: str) -> None:
    first = study.budgets[0] if study.budgets else 1.0
    whole = (
        all(abs(b / first - round(b / first)) < 1e-6 for b in (*study.budgets, 1.0)) if first > 0 else False
    )
    if not whole or sorted(study.budgets) != study.budgets or not all(b <= 1 for b in study.budgets):
        raise UserError(
            f"study {name}: budgets are {study.budgets}; expected rising shares of the training, of which "
            "each and 1 are multiples of the first, such as [0.25, 0.5, 1.0]"
        )


def load_study_data(name: str, layers: list[str]) -> StudyData:
    """The content of a data file, by its name or path; `layers` are recipes or TOML files whose settings
    override its own. Raises UserError."""
    folder = resources.files("causalfusion") / "studies" / "data"
    values = _load(folder, name, "data", study_data_names())
    values["settings"] = merge([values.get("settings", {}), load_layers(layers)])
    return from_dict(StudyData, values, f"{name}: ")


def fill_in(settings: dict[str, Any], num_tokens: int) -> dict[str, Any]:
    """`settings` with the PLACEHOLDERS replaced by numbers."""
    side = math.isqrt(num_tokens)
    numbers = dict(zip(PLACEHOLDERS, (num_tokens, side // 2, max(1, side // 4)), strict=True))
    filled: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            filled[key] = fill_in(value, num_tokens)
        else:
            filled[key] = numbers.get(value, value) if isinstance(value, str) else value
    return filled


def _names(folder: Traversable) -> list[str]:
    names = (item.name for item in folder.iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def _load(folder: Traversable, name: str, what: str, names: list[str]) -> dict[str, Any]:
    if name in names:
        content = (folder / f"{name}.toml").read_bytes()
    elif Path(name).is_file():
        content = Path(name).read_bytes()
    else:
        raise UserError(f"{what} {name!r} is neither a file nor one of {', '.join(names)}")
    return parse_toml(content, f"{what} {name}")
