"""Train an IWAE on scikit-learn's 8x8 digits, estimate its test likelihood, draw and compare.

Run: python examples/train_iwae.py     (needs scikit-learn; about ten seconds on two cores)
"""

import math

import torch
from sklearn.datasets import load_digits

from dgm_fast.models import IWAE

EPOCHS, BATCH = 30, 100

generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)  # initial weights

# 1797 images of 64 pixels with 17 grey levels, seen as probabilities of a pixel being on.
intensity = torch.from_numpy(load_digits().data).float() / 16
intensity = intensity[torch.randperm(len(intensity), generator=generator)]
train, test = intensity[:1350], torch.bernoulli(intensity[1350:], generator=generator)

model = IWAE(64, 16, hidden_sizes=(100, 100), num_samples=10, estimator="dreg")
model.init_output_bias(train.mean(0))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for epoch in range(1, EPOCHS + 1):
    total = 0.0
    for rows in torch.randperm(len(train), generator=generator).split(BATCH):
        x = torch.bernoulli(train[rows], generator=generator)  # a new binarization every epoch
        loss = model.loss(x, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    if epoch % 10 == 0:
        print(f"epoch {epoch:3d}   training bound {-total / len(train):8.3f} nats")

nll = -model.log_prob(test, num_samples=500, generator=generator).mean().item()
with torch.no_grad():
    elbo = model.elbo(test, generator=generator).mean().item()
print(f"test: -log p(x) {nll:.3f} nats = {nll / (64 * math.log(2)):.4f} bits per dimension")
print(f"test: -ELBO     {-elbo:.3f} nats, an upper bound")

for rows in model.sample(6, generator=generator).view(6, 8, 8).bool().unbind(1):
    print("   ".join("".join("#" if on else "." for on in row) for row in rows))
