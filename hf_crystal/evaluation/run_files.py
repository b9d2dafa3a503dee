"""Names of the files and folders of a training run."""

MODEL_FOLDER, CHECKPOINT_FOLDER = "model", "checkpoints"
RECIPE_NAME, RUN_NAME = "recipe.yaml", "run.json"
