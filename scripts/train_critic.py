"""Train the judge of candidates: which of the crystals proposed for a composition is the one that exists?

python scripts/prepare_critic.py DATA/mp_20.parquet --output runs/critic          # candidates and which of them match
python scripts/train_critic.py runs/critic --output-dir runs/critic/run           # --resume goes on after a kill

A property model whose one target is a log-odds. Each training crystal is asked with the candidates that the index makes
without it; the loss is the negative logarithm of the share of exp(log-odds) that the matching ones have, and a small part
binary cross entropy, so that the log-odds are on the scale of probabilities. Votes of the index enter as an offset.
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_crystal import CrystalFeatureExtractor, CrystalformerForPropertyPrediction
from hf_crystal.checkpoints import embedded_checkpoint
from hf_crystal.training.arguments import CrystalTrainingArguments
from hf_crystal.training.optimizers import build_optimizer

TARGET = "log_odds"
_BINARY = 0.3  # weight of the binary cross entropy


class Groups(torch.utils.data.Dataset):
    """Training compositions with candidates of which some match; `limit` of them, other wrong ones each time."""

    def __init__(self, rows: list[Any], limit: int):
        self.rows, self.limit = (
            [found for _, _, found in rows if 0 < sum(_right(c) for c in found) < len(found)],
            limit,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> list[Any]:
        found = self.rows[place]
        if len(found) <= self.limit:
            return found
        # the first always; of the others as many as there is room for, at least one that matches
        keep = [0, *(1 + np.random.permutation(len(found) - 1)[: self.limit - 1])]
        if not any(_right(found[k]) for k in keep):
            keep[-1] = next(k for k, c in enumerate(found) if _right(c))
        return [found[k] for k in keep]


def _right(candidate: Any) -> bool:
    return candidate[-1] is not None


class Collator:
    """Candidates of several compositions as one batch."""

    def __init__(self, extractor: CrystalFeatureExtractor):
        self.extractor = extractor

    def __call__(self, groups: list[list[Any]]) -> dict[str, torch.Tensor]:
        """Crystals, `group` (composition of each), `votes` (log of its share) and `right`."""
        flat = [candidate for group in groups for candidate in group]
        batch = dict(self.extractor([candidate[0] for candidate in flat], return_tensors="pt"))
        batch["group"] = torch.tensor([k for k, group in enumerate(groups) for _ in group])
        batch["votes"] = torch.tensor([np.log(candidate[1]) for candidate in flat], dtype=torch.float32)
        batch["right"] = torch.tensor([_right(candidate) for candidate in flat])
        return batch


def ranking_loss(log_odds: torch.Tensor, group: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean over compositions of -log of the share of the matching candidates.

    Args:
        log_odds: (B,)
        group: Composition of each candidate, (B,), from 0 without gaps.
        right: Whether it matches, (B,).
    """
    shape = (int(group.max()) + 1, len(group))
    member = group[None] == torch.arange(shape[0])[:, None]
    rows = log_odds.expand(shape)
    every = rows.masked_fill(~member, -torch.inf).logsumexp(1)
    matching = rows.masked_fill(~(member & right), -torch.inf).logsumexp(1)
    return (every - matching).mean()


class CriticTrainer(Trainer):
    """Trainer with the loss of candidates."""

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:  # noqa: ARG002
        """Muon for the linear maps, AdamW for the rest."""
        self.optimizer = build_optimizer(self.model, self.args)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """Listwise and binary part."""
        group, votes, right = (inputs.pop(name) for name in ("group", "votes", "right"))
        output = model(**inputs)
        log_odds = output.logits[:, 0] + votes
        binary = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, right.float())
        loss = ranking_loss(log_odds, group, right) + _BINARY * binary
        return (loss, output) if return_outputs else loss


def first_right(model: Any, rows: list[Any], extractor: CrystalFeatureExtractor) -> tuple[float, float]:
    """Share of compositions whose first candidate matches: by votes, and by votes and critic."""
    collate, votes, judged = Collator(extractor), 0, 0
    model.eval()
    for start in range(0, len(rows), 32):
        groups = [found for _, _, found in rows[start : start + 32] if found]
        batch = collate(groups)
        group, shares, right = (batch.pop(name) for name in ("group", "votes", "right"))
        with torch.inference_mode():
            log_odds = model(**batch).logits[:, 0] + shares
        for k in range(len(groups)):
            places = (group == k).nonzero()[:, 0]
            votes += int(right[places[shares[places].argmax()]])
            judged += int(right[places[log_odds[places].argmax()]])
    model.train()
    return votes / len(rows), judged / len(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what prepare_critic.py wrote")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--pretrained", default="crystalformer-mp20", help="encoder to begin with")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--compositions", type=int, default=12, help="compositions of a batch")
    parser.add_argument("--candidates", type=int, default=8, help="candidates of each")
    parser.add_argument("--muon-learning-rate", type=float, default=0.003)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    set_seed(0)
    rows = pickle.loads((given.folder / "train.pkl").read_bytes())
    held = [(*row[:2], row[2][:12]) for row in pickle.loads((given.folder / "val.pkl").read_bytes())[500:2000]]
    model = CrystalformerForPropertyPrediction.from_pretrained(
        embedded_checkpoint(given.pretrained), target_names=[TARGET], target_units=[""], ignore_mismatched_sizes=True
    )
    model.set_target_scaling([0.0], [1.0])
    extractor = CrystalFeatureExtractor()
    groups = Groups(rows, given.candidates)
    print(f"{len(groups)} of {len(rows)} compositions have candidates that match and others")
    arguments = CrystalTrainingArguments(
        output_dir=str(given.output_dir),
        max_steps=given.steps,
        batch_size=given.compositions,
        optimizer="muon",
        muon_learning_rate=given.muon_learning_rate,
        learning_rate=given.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.01},
        save_steps=300,
        save_total_limit=2,
        logging_steps=50,
        report_to=[],
        remove_unused_columns=False,
        seed=0,
    )
    trainer = CriticTrainer(model, arguments, data_collator=Collator(extractor), train_dataset=groups)
    print(
        "first candidate right, of 500 validation compositions, votes and critic:", first_right(model, held, extractor)
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(given.output_dir)) if given.resume else None)
    print("after training:", first_right(model, held, extractor))
    model.save_pretrained(given.output_dir / "model")
    extractor.save_pretrained(given.output_dir / "model")


if __name__ == "__main__":
    main()
