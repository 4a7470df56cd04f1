"""Other engines with the same model, each in an environment of its own, in turn with ours."""
