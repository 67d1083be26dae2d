"""The same training once more with the plain formulas: do the loss curves agree?"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from dgm_fast.train import session as sessions
from dgm_fast.train.comparison import largest_difference
from dgm_fast.train.interrupt import StopSignals
from dgm_fast.train.progress import Progress

# Rounding differences grow from epoch to epoch; a gradient that points elsewhere shows at once.
EARLY_EPOCHS = 5


def compare_with_reference(
    session: sessions.Session,
    *,
    progress: Progress | None = None,
    signals: StopSignals | None = None,
) -> dict[str, Any]:
    """Train again from the seed with backend "reference", for as many epochs; nothing is saved.

    Returns:
        ``epochs``; for ``train_loss`` and each validation figure the largest relative difference over the
        first epochs and over all; and the median seconds an epoch of both.
    """
    epochs = session.trainer.epoch
    config = dataclasses.replace(session.config, backend="reference", epochs=epochs, patience=None)
    # A cosine schedule depends on the number of epochs that was asked for.
    if session.config.schedule != "constant":
        config = dataclasses.replace(config, epochs=session.config.epochs)
    with sessions.execution(config):
        other = sessions.build(config, dataset=session.dataset, progress=progress, signals=signals)
        other.trainer.max_epochs = epochs
        other.trainer.fit()
    ours, reference = session.trainer.history, other.trainer.history
    names = ["train_loss", *(name for name in ours[0] if name.startswith("valid_"))]
    return {
        "epochs": epochs,
        "early_epochs": min(EARLY_EPOCHS, epochs),
        "largest_relative_difference": {
            name: {
                "early": largest_difference(ours[:EARLY_EPOCHS], reference[:EARLY_EPOCHS], name),
                "all": largest_difference(ours, reference, name),
            }
            for name in names
        },
        "seconds_per_epoch": {
            name: statistics.median(record["seconds"] for record in history)
            for name, history in (("run", ours), ("reference", reference))
        },
    }
