"""How close captions are to reference captions: CIDEr-D, BLEU-4 and ROUGE-L, by the scorers of COCO captions
(pycocoevalcap). Its PTB tokenization needs Java; ours is `tokenize_caption`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from causalfusion.errors import UserError


def tokenize_caption(text: str) -> list[str]:
    """The words of a caption: lower case, all Unicode punctuation removed (also within words: "t-shirt" is
    "tshirt"), split at white space."""
    kept = (character for character in text.lower() if not unicodedata.category(character).startswith("P"))
    return "".join(kept).split()


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`CIDEr-D` in [0, 10], `BLEU-4` and `ROUGE-L` in [0, 1], of one candidate for each image against the
    references of that image.

    CIDEr-D (Vedantam et al., 2015, section 6: counts clipped, sigma 6 on the difference of lengths, mean over
    1- to 4-grams, times 10; not times 10 again, as papers that report it in per cent do) takes its n-gram
    frequencies from all references given: it means something for many images only, and is 0 for one.
    BLEU-4 (Papineni et al., 2002) is of the corpus, with the closest reference length.
    ROUGE-L (Lin, 2004) is the mean F of beta 1.2 with the best precision and recall over the references.
    Raises UserError without the extra `eval`, or where an image has no reference.
    """
    if len(candidates) != len(references):
        raise UserError(
            f"there are {len(candidates)} captions and references for {len(references)} images; "
            "expected as many"
        )
    if not candidates:
        raise UserError("there are no captions to score; expected at least one")
    words = {image: [" ".join(tokenize_caption(text))] for image, text in enumerate(candidates)}
    truth = {
        image: [" ".join(tokenize_caption(text)) for text in texts] for image, texts in enumerate(references)
    }
    for image, texts in truth.items():
        if not any(texts):
            raise UserError(f"image {image} has no reference caption; expected at least one with a word")
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise UserError(
            f"caption scores need pycocoevalcap ({error}): pip install 'causalfusion[eval]'"
        ) from None
    bleu, _ = Bleu(4).compute_score(truth, words, verbose=0)
    rouge, _ = Rouge().compute_score(truth, words)
    # Named `Cider`, but with the clipping and the Gaussian penalty on lengths: CIDEr-D.
    cider, _ = Cider().compute_score(truth, words)
    return {"CIDEr-D": float(cider), "BLEU-4": float(bleu[3]), "ROUGE-L": float(rouge)}
