"""Command line `hf-crystal`; every module imports what is heavy inside its functions, so that `--help` is quick."""
