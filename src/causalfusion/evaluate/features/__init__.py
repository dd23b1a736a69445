"""Feature extractors, and references in their spaces."""
