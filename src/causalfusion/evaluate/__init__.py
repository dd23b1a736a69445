"""From images to figures with their uncertainty, and a result card with everything that they depend on.

    samples/      the images to measure: read from a name, or generated into a sample set
    features/     extractors, from images to features, one feature space a file
    references/   features and statistics of real images, made once and kept
    measures/     arithmetic, from features to numbers: Fréchet and kernel distance, precision, ...
    cards/        result cards: saved, compared, printed

`run` is the command, `figures` joins features and measures. `quality`, `text_image` and `digits_judge` are
quicker judgements for `study`, `plan` and the demo.
"""
