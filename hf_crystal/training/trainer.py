"""`CrystalTrainer`: transformers' Trainer without its traps for crystal regression."""

# ruff: noqa: ARG002  (the signatures are those of Trainer and TrainerCallback)

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from hf_crystal.training.arguments import CrystalTrainingArguments
from hf_crystal.training.data_order import EpochBatchSampler, EpochShuffleSampler, first_rows
from hf_crystal.training.metrics import exact_scaled_loss, make_compute_metrics
from hf_crystal.training.optimizers import InverseSqrtSchedule, build_optimizer
from hf_crystal.training.run_control import CompleteCheckpointCallback, WallBudgetCallback, last_complete_checkpoint
from hf_crystal.training.weight_averaging import SWACallback
from hf_crystal.typing import PropertyModel

_HIDDEN_OUTPUTS = ["hidden_states", "attentions", "pooler_output", "last_hidden_state"]


def calibrate_model(model: PropertyModel, rows: list[Any], collator: Callable[[list[Any]], dict[str, Any]]) -> None:
    """Set the data-dependent scale of an uncalibrated model from the first global training batch.

    Every process reads the same rows and so finds the same values, whatever the number of processes or
    accumulation steps; process 0's are sent to the others all the same.

    Args:
        model: Property model; left alone when it is calibrated already.
        rows: Data-set rows of the batch.
        collator: Turns them into a batch.
    """
    if model.is_calibrated:
        return
    device = next(model.parameters()).device
    model.calibrate({name: value.to(device) for name, value in collator(rows).items()})
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


class _CalibrationCallback(TrainerCallback):
    """Calibrates on the first global batch when training begins, after a checkpoint would have been loaded."""

    def __init__(self, trainer: "CrystalTrainer"):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Calibrate; does nothing for a model that is calibrated."""
        self.trainer.calibrate()


class _DataOrderCallback(TrainerCallback):
    """Tells the batch sampler its epoch, also where accelerate's wrappers lose it (resume on two processes)."""

    def __init__(self, trainer: "CrystalTrainer"):
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Set the epoch that begins or is resumed."""
        self.trainer.train_batch_sampler.set_epoch(int(state.epoch or 0))


class CrystalTrainer(Trainer):
    """Trainer for property models.

    What differs from `Trainer`:

    * AdamW groups and schedule of the papers; `SWACallback` from `args.swa_epochs`; evaluation and final saving
      with the averaged weights; checkpoints keep the raw ones and the mean.
    * The loss of a step is the mean over all *known* labels of the global batch, so accumulation, several processes
      and missing labels give the gradient of one large batch.
    * `eval_loss` is the exact mean over known labels (Trainer's repeats ragged batches), and no row of the
      evaluation is dropped or counted twice.
    * The model is calibrated once on the first global batch. Data order depends on seed and epoch only. Resuming
      takes the last complete checkpoint. `args.max_hours` ends the run cleanly.

    Args:
        model: Property model (`CrystalformerForPropertyPrediction` or alike) with its target scaling set.
        args: `CrystalTrainingArguments`.
        compute_metrics: As in Trainer; by default `make_compute_metrics(model)`.
        callbacks: As in Trainer.
        **kwargs: Passed to Trainer, among them `data_collator`, `train_dataset`, `eval_dataset`,
            `processing_class`.

    Raises:
        TypeError: If `args` is not a `CrystalTrainingArguments`.
        ValueError: If one process is given several GPUs, and with FSDP.
    """

    args: CrystalTrainingArguments
    model: Any
    train_dataset: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: PropertyModel,
        args: CrystalTrainingArguments | None = None,
        *,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, CrystalTrainingArguments):
            raise TypeError(f"args={type(args).__name__}: expected CrystalTrainingArguments")
        if args.n_gpu > 1:
            # nn.DataParallel would average the losses of its replicas without regard to unknown labels
            raise ValueError(f"one process sees {args.n_gpu} GPUs: start one process per GPU with torchrun")
        self.clock = WallBudgetCallback(args.max_hours)
        self.swa = SWACallback(args.swa_epochs, fraction_used=self.clock.fraction_used)
        self.train_batch_sampler: Any = None
        self._averaged_weights_in_place = False
        super().__init__(
            model=model,
            args=args,
            compute_metrics=compute_metrics or make_compute_metrics(model),
            callbacks=[
                _CalibrationCallback(self),
                _DataOrderCallback(self),
                self.clock,
                self.swa,
                *(callbacks or []),
                CompleteCheckpointCallback(self.clock),
            ],
            **kwargs,
        )
        if self.is_fsdp_enabled:
            raise ValueError(
                "FSDP: weight averaging and Muon need whole matrices; train encoders with data parallelism"
            )
        # the model's loss is a mean over its own batch; this class weighs it (see get_batch_samples)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True

    # -- data ---------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Batches whose order depends only on `args.seed` (`args.data_seed` if set) and the epoch."""
        if self.train_dataset is None:
            raise ValueError("Trainer: training requires a train_dataset.")
        self.train_batch_sampler = self._make_batch_sampler()
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.train_batch_sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
        )
        return self.accelerator.prepare(loader)

    def _make_batch_sampler(self) -> Any:
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        if args.max_atoms_per_batch is not None:
            from hf_crystal.data import AtomBudgetBatchSampler

            return AtomBudgetBatchSampler(
                self.train_dataset["num_atoms"],
                args.max_atoms_per_batch,
                seed=seed,
                multiple_of=args.world_size * args.gradient_accumulation_steps,
            )
        global_batch = self.get_total_train_batch_size(args)
        order = EpochShuffleSampler(
            len(self.train_dataset), seed, multiple_of=global_batch if args.drop_last_train_rows else 1
        )
        return EpochBatchSampler(order, args.per_device_train_batch_size)

    def calibrate(self) -> None:
        """Set the data-dependent scale from the first global batch of epoch 0, if that was not done before."""
        if self.train_batch_sampler is None:
            self.train_batch_sampler = self._make_batch_sampler()
        num_batches = self.args.world_size * self.args.gradient_accumulation_steps
        rows = first_rows(self.train_batch_sampler, num_batches)
        calibrate_model(self.model, [self.train_dataset[row] for row in rows], self.data_collator)

    # -- loss ---------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Micro-batches of one optimizer step and the number of known labels in them over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        known = torch.tensor(sum(int((~batch["labels"].isnan()).sum()) for batch in batches), device=device)
        return batches, self.accelerator.reduce(known, reduction="sum")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Loss of a micro-batch, weighted so that the sum over all of them is the mean over known labels."""
        outputs = model(**inputs)
        loss = outputs["loss"]
        if num_items_in_batch is not None:
            known = (~inputs["labels"].isnan()).sum()
            # DDP averages gradients over processes, hence the factor; max() keeps an all-unknown batch at zero
            loss = loss * known * self.accelerator.num_processes / max(int(num_items_in_batch), 1)
        return (loss, outputs) if return_outputs else loss

    # -- optimization -------------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the papers' parameter groups or Muon beside it, from the values in `args`."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model  # Trainer types it as any module
            self.optimizer = build_optimizer(trained, self.args)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The papers' inverse square-root decay; `num_training_steps` plays no part in it."""
        if self.lr_scheduler is None:
            self.lr_scheduler = InverseSqrtSchedule(optimizer or self.optimizer, self.args.decay_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint=True` takes the last complete checkpoint of `args.output_dir`.

        Raises:
            ValueError: If asked to resume where there is no complete checkpoint.
        """
        checkpoint: Path | None = None
        if resume_from_checkpoint is True:
            checkpoint = last_complete_checkpoint(self.args.output_dir or "")
            if checkpoint is None:
                raise ValueError(f"no complete checkpoint to resume from in {self.args.output_dir!r}")
        elif resume_from_checkpoint:
            checkpoint = Path(str(resume_from_checkpoint))
        if getattr(self.model, "error_head", None) is not None:
            self.model.drop_error_head()  # before copies are made of the model, or parts of it spread
        self.swa.resume_from = checkpoint
        self.clock.resume_from = checkpoint
        # the tails of the radial Gaussians are denormal numbers, on which Intel processors are 40 times slower: a step
        # took 30 ms a crystal of 20 atoms and takes 13 without them (published size, one core of a Xeon)
        torch.set_flush_denormal(True)
        try:
            return super().train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint), **kwargs)
        finally:
            torch.set_flush_denormal(False)

    # -- evaluation and saving ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the context the model has the averaged weights, if averaging has begun."""
        if self.swa.averaged is None or self.swa.num_averaged == 0 or self._averaged_weights_in_place:
            yield
            return
        self._averaged_weights_in_place = True
        try:
            with self.swa.averaged.applied_to(self.model):
                yield
        finally:
            self._averaged_weights_in_place = False

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """As in Trainer, with the logits as the only prediction: other outputs would be padded with -100."""
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys or _HIDDEN_OUTPUTS)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in Trainer, with averaged weights and the exact loss."""
        with self.averaged_weights():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if output.label_ids is not None and output.metrics is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = exact_scaled_loss(
                self.model, output.predictions, output.label_ids
            )
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the averaged weights, or, for a checkpoint (`_internal_call`), the raw ones."""
        with contextlib.nullcontext() if _internal_call else self.averaged_weights():
            super().save_model(output_dir, _internal_call)
