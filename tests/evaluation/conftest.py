"""Its place puts `crystals_for_metrics` on the path of the tests in sub-folders too."""
