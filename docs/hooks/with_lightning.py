"""Retrain with PyTorch Lightning (pip install pytorch-lightning), here by imitating the original model.

optimize model.onnx --passes "prune(sparsity=0.8), retrain(epochs=3)" --data data.npz --retrain
with_lightning.py:retrain
"""

import pytorch_lightning as lightning
import torch
import torch.nn.functional as F


class Batches(torch.utils.data.IterableDataset):
    """The job's data, in another order in every epoch."""

    def __init__(self, job):
        self.job, self.epoch = job, 0

    def __iter__(self):
        self.epoch += 1
        for batch in self.job.data.batches(
            self.job.settings["batch"], shuffle_seed=self.job.seed + self.epoch
        ):
            yield {name: torch.from_numpy(array) for name, array in batch.inputs.items()}


class Student(lightning.LightningModule):
    def __init__(self, module, teacher):
        super().__init__()
        self.module = module
        self.teacher = [teacher]  # in a list, Lightning does not take it for a part that is trained

    def training_step(self, inputs, _):
        teacher = self.teacher[0].to(self.device)
        with torch.no_grad():
            wanted = F.log_softmax(teacher(**inputs), 1)
        return F.kl_div(
            F.log_softmax(self.module(**inputs), 1), wanted, reduction="batchmean", log_target=True
        )

    def configure_optimizers(self):
        return torch.optim.AdamW(self.module.parameters(), lr=1e-3, weight_decay=0.0)


def retrain(module, job):
    trainer = lightning.Trainer(
        max_epochs=job.epochs,
        accelerator="gpu" if job.device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Student(module, job.teacher), torch.utils.data.DataLoader(Batches(job), batch_size=None))
