"""adaptmix for the Hugging Face Trainer: one callback, and nothing else to change.

::

    trainer = Trainer(model, args, train_dataset=ds, callbacks=[AdaptMixCallback("source")])
    trainer.train()

``"source"`` is a column of the training dataset that names each row's domain. Rows are drawn by
plan, the loss is weighted so that its gradient stays that of the stated objective, and weights and
statistics go into the Trainer's logs and checkpoints. The default policy adapts sampling alone and
leaves the objective as it is: with token labels every token counts the same, as in the Trainer's
own loss.

====================================  ============================================================
works with                            how
====================================  ============================================================
string or integer column, one label   by row index; the column may be removed on the way
per row, ConcatDataset, Mixture
epochs and max_steps, accumulation    every optimizer step has its full global batch; an epoch has
                                      as many steps as without adaptmix
dataloader_num_workers, persistent    what is drawn does not depend on them
workers
resume_from_checkpoint                to the bit; also from a checkpoint from before the callback,
                                      with a FreshStartWarning
DistributedDataParallel (torchrun)    each process trains its slice of one global batch
group_by_length                       rows of like length share a micro-batch of their step
bf16, fp16, gradient checkpointing,   nothing to do
PEFT, auto_find_batch_size,
model_init
torch_compile                         observed steps run uncompiled, since hooks are ignored in
                                      compiled code
label_smoothing_factor                part of every row's loss
auxiliary losses (mixtures of         kept as the model adds them, unweighted
experts), a compute_loss override
that does more with the model's loss
compute_loss_func                     if it is the cross-entropy or squared error of logits and
                                      labels; otherwise pass loss=
evaluation                            eval_loss_<domain>, and their mean by importance as
                                      eval_weighted_loss, for metric_for_best_model
TRL SFTTrainer, DPOTrainer            at the log-probabilities; SFT with losses nll and dft, DPO
                                      with losses that are a mean over pairs
TensorBoard, W&B, log_history         adaptmix/... with every logged loss; charts by quantity on
                                      TensorBoard's page Custom Scalars
====================================  ============================================================

Refused, by name and with the way out: streaming datasets, DeepSpeed and FSDP, DataParallel,
tensor and sequence parallelism, ``dispatch_batches``, ``split_batches``, Liger kernels (their fused
loss never builds the logits), samplers of one's own, TRL's packing and ``padding_free`` (they mix
domains in a row; rows packed within one domain are fine), and any loss that is found not to be made
of the rows' losses. The first training step proves that the loss which was weighted is the loss
that is differentiated.
"""

try:
    from adaptmix_transformers.callback import AdaptMixCallback
except ModuleNotFoundError as error:
    if error.name not in ("transformers", "accelerate"):
        raise
    raise ModuleNotFoundError(
        'adaptmix_transformers needs transformers: pip install "adaptmix[transformers]"',
        name=error.name,
    ) from error

__all__ = ["AdaptMixCallback"]
