"""The paper's comparisons, repeated with small models, with a verdict on each finding."""
