"""Retrain on a data set of your own, with your own augmentation: images.npy (float32 [N, ...] as the model
takes them) and labels.npy (int64 [N]) beside this file.

    optimize model.onnx --passes "prune(sparsity=0.8), retrain(epochs=3)" --data data.npz --retrain own_data.py:retrain

--data still judges the result, and calibrates where a pass needs it.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parent


class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.images = np.load(FOLDER / "images.npy", mmap_mode="r")
        self.labels = np.load(FOLDER / "labels.npy")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = torch.from_numpy(self.images[index].copy())
        return image + 0.05 * torch.randn_like(image), int(self.labels[index])


def retrain(module, job):
    loader = torch.utils.data.DataLoader(
        Images(), batch_size=job.settings["batch"], shuffle=True, num_workers=0
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, epochs=job.epochs, steps_per_epoch=len(loader)
    )
    for epoch in range(job.epochs):
        for images, labels in loader:
            loss = F.cross_entropy(module(images.to(job.device)), labels.to(job.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        job.progress(f"epoch {epoch + 1}/{job.epochs}: loss {loss.item():.4g}")
