"""The paper's comparisons, run on small models, with a verdict on each finding."""
