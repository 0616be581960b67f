"""AdaptMix for the Hugging Face Trainer: one callback, and nothing else to change.

::

    trainer = Trainer(model, args, train_dataset=ds, callbacks=[AdaptMixCallback("source")])
    trainer.train()

A subclass is ``class MyTrainer(AdaptMixMixin, Trainer)``, with
``adaptmix=AdaptMixCallback("source")`` among its arguments.

``"source"`` is a column of the training dataset that names each row's domain. Rows are drawn
by domain. The trainer's own loss stays the loss, whatever it is: each row's gradient is multiplied
where the loss meets the model's outputs, so that it stays that of the stated objective, and class
weights, smoothing and penalties are kept as they are. Weights and statistics go into the Trainer's
logs and checkpoints. The default policy adapts sampling alone and leaves the objective as it is:
with token labels every token counts the same, as in the Trainer's own loss.

====================================  ============================================================
works with                            how
====================================  ============================================================
string or integer column, one label   by row index; the column may be removed on the way
per row, ConcatDataset, Mixture
epochs and max_steps, accumulation    every optimizer step has its full global batch; an epoch has
                                      as many steps as without AdaptMix
dataloader_num_workers, persistent    what is drawn does not depend on them
workers
resume_from_checkpoint                to the bit; also from a checkpoint from before the callback,
                                      with a FreshStartWarning
DistributedDataParallel (torchrun)    each process trains its slice of one global batch
group_by_length                       rows of similar length share a micro-batch of their step
bf16, fp16, gradient checkpointing,   nothing to do
PEFT, auto_find_batch_size,
model_init
torch_compile                         measured steps run uncompiled, because compiled code
                                      ignores hooks
label_smoothing_factor, class         kept, with whatever divisor the loss has; a plain mean over
weights, focal losses, any mean or    tokens or rows divides by the expected number instead of the
sum over rows, in the model, in       realised one
compute_loss or compute_loss_func
penalties on parameters               kept as they are, unweighted
declared auxiliary losses             kept as the model adds them, unweighted
(outputs.aux_loss of mixtures of
experts)
rows whose labels are all masked      have no loss; the objective is the mean over the others
evaluation                            eval_loss_<domain>, and their mean by importance as
                                      eval_weighted_loss, for metric_for_best_model
TRL SFTTrainer, DPOTrainer,           at the log-probabilities, or rewards; a sample is a pair. DPO
RewardTrainer, CPOTrainer,            with all losses but aot and aot_unpaired, which sort pairs;
ORPOTrainer, KTOTrainer               KTO with apo_zero_unpaired, which has no baseline of the batch
TRL GRPOTrainer                       a sample is a prompt with its group of completions; losses
                                      grpo, dr_grpo, dapo, luspo, sapo, cispo and vespo
rows flattened or packed by the       weights and statistics stay those of the rows that were drawn;
collator (TRL's padding_free,         rows that see each other are warned of
DataCollatorWithFlattening)
TRL's packing=True                    with AdaptMixMixin, which packs each domain by itself; a pack
                                      is a sample, and every token counts the same
TensorBoard, W&B, log_history         adaptmix/... with every logged loss; charts by quantity on
                                      TensorBoard's page Custom Scalars
====================================  ============================================================

Refused by name, with what to do instead: streaming datasets, DeepSpeed and FSDP, DataParallel,
tensor and sequence parallelism, ``dispatch_batches``, ``split_batches``, Liger's two losses (one
never builds the logits, one overwrites them; its other kernels work), samplers of one's own, packs
with rows of several domains, RLOO, distillation and Sentence Transformers, and any loss that is no
sum of one term per row: contrastive and ranking losses, hard-example mining, a second head that is
not among the outputs, a learnt temperature.

That a loss is such a sum is proved, not assumed. In the first and in every measured step its mixed
second derivatives between rows must vanish, and a hinge or maximum must be of one row. Before the
first step, a loss of one's own is also computed on other rows and labels. This shows couplings that
leave no trace in the graph, such as a mask made of losses.
``mode="observe"`` refuses no loss, and reports as unknown what it cannot measure.
"""

try:
    from adaptmix_transformers._callback import AdaptMixCallback
    from adaptmix_transformers._mixin import AdaptMixMixin
except ModuleNotFoundError as error:
    if error.name not in ("transformers", "accelerate"):
        raise
    raise ModuleNotFoundError(
        "adaptmix_transformers needs transformers: pip install transformers accelerate, or "
        'pip install ".[transformers]" in a clone of AdaptMix.',
        name=error.name,
    ) from error

__all__ = ["AdaptMixCallback", "AdaptMixMixin"]
