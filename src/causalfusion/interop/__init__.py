"""Other people's formats: released checkpoints, recordings, bundles."""
