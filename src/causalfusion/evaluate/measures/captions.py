"""Similarity of captions to reference captions: CIDEr-D, BLEU-4 and ROUGE-L, by the scorers of COCO captions
(pycocoevalcap). Its PTB tokenizer needs Java; `tokenize_caption` replaces it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from causalfusion.errors import UserError


def tokenize_caption(text: str) -> list[str]:
    """The words of a caption: lower case, without Unicode punctuation (within words too: "t-shirt" becomes
    "tshirt"), split at white space."""
    kept = (character for character in text.lower() if not unicodedata.category(character).startswith("P"))
    return "".join(kept).split()


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`CIDEr-D` in [0, 10], `BLEU-4` and `ROUGE-L` in [0, 1]: one candidate for each image against that
    image's references.

    CIDEr-D (Vedantam et al., 2015, section 6: clipped counts, sigma 6 on the difference of lengths, mean over
    1- to 4-grams, times 10; papers report 100 times this number) takes its n-gram frequencies
    from all given references: it is meaningful for many images only, and 0 for a single one.
    BLEU-4 (Papineni et al., 2002) is computed over the corpus, with the closest reference length.
    ROUGE-L (Lin, 2004) is the mean F-score, beta 1.2, with the best precision and recall over the references.
    Raises UserError without the extra `eval`, and where an image has no reference.
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
    # `Cider` clips counts and has the Gaussian penalty on lengths: it is CIDEr-D.
    cider, _ = Cider().compute_score(truth, words)
    return {"CIDEr-D": float(cider), "BLEU-4": float(bleu[3]), "ROUGE-L": float(rouge)}
