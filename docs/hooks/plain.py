"""Retrain with a plain PyTorch loop.

    optimize model.onnx --passes "prune(sparsity=0.8), retrain(epochs=3)" --data data.npz --retrain plain.py:retrain

`module` is the graph as a torch.nn.Module, trained in place; what must stay (zeros, shared values) stays,
whatever the optimizer does.
"""

import torch
import torch.nn.functional as F


def retrain(module, job):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(job.epochs):
        seen = 0
        for batch in job.data.batches(job.settings["batch"], shuffle_seed=job.seed + epoch):
            # A pass that trains, such as prune(training={epochs: 3}), acts here; in a retrain step it does nothing.
            job.shape((epoch + min(1.0, seen / (job.data.count or 1))) / job.epochs)
            seen += batch.count
            inputs = {name: torch.from_numpy(array).to(job.device) for name, array in batch.inputs.items()}
            labels = torch.from_numpy(batch.labels).to(job.device)
            loss = F.cross_entropy(module(**inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        job.progress(f"epoch {epoch + 1}/{job.epochs}: loss {loss.item():.4g}")
    job.metrics["my_loss"] = loss.item()
