"""The moving average of the weights, which a run ends with."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unrain.lab.nets.layers import RecursiveNet


class Averaging(WeightAveraging):
    """Averages weights and statistics over the steps; the averaged network can be used during training.

    Args:
        decay: Of the exponential moving average; 0 for the last weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the module the averaged weights, also where a run resumes behind its last step."""
        self._copy_average_to_current(pl_module)

    @property
    def net(self) -> RecursiveNet:
        """Return the averaged network in evaluation mode."""
        # Lightning has no public way to it.
        assert self._average_model is not None
        net = self._average_model.module.net
        assert isinstance(net, RecursiveNet)
        return net.eval()
