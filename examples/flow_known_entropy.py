"""Train flows on a density of known entropy and see how close their likelihood comes to it.

Run: python examples/flow_known_entropy.py --dims 6 8 21 43 63 --model nsf --steps 2000
"""

import argparse
import time

import torch

from dgm_fast.data import SineChain
from dgm_fast.models import IAF, MAF, NSF, GaussianMixture, RealNVP

MODELS = {
    "realnvp": lambda dims: RealNVP(dims, hidden_sizes=(128, 128)),
    "nsf": lambda dims: NSF(dims, num_layers=5, hidden_size=128),
    "nsf-ar": lambda dims: NSF(dims, kind="autoregressive", num_layers=3, hidden_size=128),
    "maf": lambda dims: MAF(dims, hidden_sizes=(128, 128)),
    "iaf": lambda dims: IAF(dims, hidden_sizes=(128, 128)),
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--dims", type=int, nargs="+", default=[6, 8, 21, 43, 63])
parser.add_argument("--model", choices=MODELS, default="nsf")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--batch-size", type=int, default=256)
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--test-rows", type=int, default=10_000)
options = parser.parse_args()

print("  D   entropy   test: truth     flow  one Gaussian   flow - truth   seconds")
for dims in options.dims:
    torch.manual_seed(0)
    density = SineChain(dims)
    test = density.sample(options.test_rows)
    gaussian = GaussianMixture(dims, 1, covariance="full")
    rows = density.sample(20_000)
    gaussian.fit_em(rows, max_iterations=2)
    model = MODELS[options.model](dims)
    model.standardize(rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    start = time.perf_counter()
    for _ in range(options.steps):
        optimizer.zero_grad()
        model.loss(density.sample(options.batch_size)).backward()  # rows are new at every step
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        truth = -density.log_prob(test)
        flow = torch.cat([model.nll(x) for x in test.split(1000)])
        line = -gaussian.log_prob(test).mean()
    gap = flow - truth
    print(
        f"{dims:3d}  {density.entropy:8.3f}  {truth.mean():11.3f}  {flow.mean():7.3f}  {line:12.3f}"
        f"  {gap.mean():6.3f} ± {gap.std() / len(gap) ** 0.5:5.3f}  {seconds:8.1f}",
        flush=True,
    )
